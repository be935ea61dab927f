"""Interface of the writers, and outlines as single closed lines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from odise_mm.structures import SegmentationResult
from odise_mm.structures.geometry import Outline
from odise_mm.vocabulary import Vocabulary


class LabelWriter:
    """Base class of the writers of a format.

    Args:
        folder: Folder to write to; it exists.
        vocabulary: The classes.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        self.folder = folder
        self.vocabulary = vocabulary

    @classmethod
    def check(cls) -> None:
        """Raise ``OutputError`` if a package that the format needs is missing."""

    def add(self, result: SegmentationResult, stem: str) -> None:
        """Write or collect the segments of an image.

        Args:
            result: Result with a panoptic map.
            stem: Unique name of the image, without extension. It may contain folders: "a/1".
        """
        raise NotImplementedError

    @staticmethod
    def image_name(result: SegmentationResult) -> str:
        """Return the name of the image file, relative to the folder of all images, with slashes."""
        return result.image_name.replace(os.sep, "/")

    def close(self) -> None:
        """Write what concerns all images. Called once, after the last image."""


def closed_line(outline: Outline) -> np.ndarray:
    """Return an outline as one closed line, for formats without holes.

    The leftmost vertex of each hole is connected with the line to its left, in the same row, and
    the connection is passed in both directions. Programs that fill lines leave the holes empty.
    Connections must be horizontal: Pillow leaves out some pixels of slanted ones.

    Args:
        outline: Outline of a connected part.

    Returns:
        (N, 2) int32, x and y of the vertices.
    """
    line = outline.exterior
    for hole in sorted(outline.holes, key=lambda hole: int(hole[:, 0].min())):
        start = int(hole[:, 0].argmin())
        after, x = _nearest_to_the_left(line, *hole[start].tolist())
        point = np.array([[x, hole[start, 1]]], line.dtype)
        around = [hole[start:], hole[: start + 1]]
        line = np.concatenate([line[: after + 1], point, *around, point, line[after + 1 :]])
        line = line[np.r_[True, (line[1:] != line[:-1]).any(axis=1)]]
    return line


def _nearest_to_the_left(line: np.ndarray, x: int, y: int) -> tuple[int, int]:
    """Return where a closed line is nearest to a point, in its row and not to the right of it.

    Args:
        line: (N, 2), vertices of edges that are horizontal, vertical or diagonal.
        x: Column of the point.
        y: Row of the point.

    Returns:
        Index of the vertex at which the edge starts, and the column of the place.
    """
    (x1, y1), (x2, y2) = line.T.astype(np.int64), np.roll(line, -1, axis=0).T.astype(np.int64)
    # On an edge that is not horizontal, the column changes with the row, against it or not at all.
    places = np.where(y1 == y2, x1, x1 + np.abs(y - y1) * np.sign(x2 - x1))
    on_edge = (np.minimum(y1, y2) <= y) & (y <= np.maximum(y1, y2)) & (places <= x)
    after = int(np.where(on_edge, places, -1).argmax())
    return after, int(places[after])


def polygons_of(outlines: Sequence[Outline]) -> list[np.ndarray]:
    """Return the outlines as closed lines with at least three vertices, (N, 2) int32 each.

    If vertices are centers of pixels, a part of one or two pixels in a row has fewer; the last one
    is repeated.
    """
    lines = [closed_line(outline) for outline in outlines]
    return [np.concatenate([line, line[-1:].repeat(max(0, 3 - len(line)), 0)]) for line in lines]
