"""Boxes, parts and outlines of masks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Outline(NamedTuple):
    """Outline of one connected part of a mask.

    Vertices are the centers of the part's boundary pixels, as in OpenCV, so an outline encloses
    half a pixel less than the part on every side.
    """

    exterior: np.ndarray
    """(N, 2) int32, x and y in pixels."""
    holes: list[np.ndarray]
    """Outlines of the holes: boundary pixels of the part around each hole, (M, 2) int32."""


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the box of a mask: left, top, right, bottom in pixels, right and bottom exclusive.

    Args:
        mask: (H, W) bool, with at least one pixel.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def parts_of(mask: np.ndarray) -> list[np.ndarray]:
    """Return the connected parts of a mask, (H, W) bool each, largest first.

    Pixels that touch at a corner are connected.
    """
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    return [labels == 1 + index for index in np.argsort(-areas, kind="stable")]


def outlines_of(mask: np.ndarray) -> list[Outline]:
    """Return the outlines of a mask's connected parts, with their holes.

    Filling the exteriors, clearing the holes and drawing the holes' vertices again gives the mask.

    Args:
        mask: (H, W) bool.
    """
    import cv2

    contours, tree = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    outlines = {
        index: Outline(contour[:, 0], [])
        for index, contour in enumerate(contours)
        if tree[0, index, 3] < 0
    }
    for index, contour in enumerate(contours):
        parent = int(tree[0, index, 3])
        if parent >= 0:
            outlines[parent].holes.append(contour[:, 0])
    return list(outlines.values())
