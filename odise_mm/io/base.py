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

    Each hole is connected to the line before it at the nearest pair of vertices, and the connection
    is passed in both directions. Programs that fill lines leave the holes empty.

    Args:
        outline: Outline of a connected part.

    Returns:
        (N, 2) int32, x and y of the vertices, the centers of pixels.
    """
    line = outline.exterior
    for hole in sorted(outline.holes, key=lambda hole: int(hole[:, 0].min())):
        distances = ((line[:, None].astype(np.int64) - hole[None]) ** 2).sum(-1)
        at, start = np.unravel_index(int(distances.argmin()), distances.shape)
        around = np.concatenate([hole[start:], hole[: start + 1]])
        line = np.concatenate([line[: at + 1], around, line[at:]])
    return line


def polygons_of(outlines: Sequence[Outline]) -> list[np.ndarray]:
    """Return the outlines as closed lines with at least three vertices, (N, 2) int32 each.

    A part of one or two pixels in a row has fewer vertices; the last one is repeated.
    """
    lines = [closed_line(outline) for outline in outlines]
    return [np.concatenate([line, line[-1:].repeat(max(0, 3 - len(line)), 0)]) for line in lines]
