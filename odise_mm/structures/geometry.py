"""Boxes, parts and outlines of masks."""

from __future__ import annotations

from typing import Any, NamedTuple

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


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Return the run-length code of a mask: COCO's ``size`` (height, width) and ``counts`` (bytes).

    pycocotools needs masks in Fortran's order. OpenCV transposes them 6 times as fast as numpy.

    Args:
        mask: (H, W) bool.
    """
    import cv2
    from pycocotools import mask as coco_mask

    return coco_mask.encode(cv2.transpose(np.ascontiguousarray(mask).view(np.uint8)).T)


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


# Right, down, left, up: steps along the edges of pixels, clockwise around the pixel.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def edge_outlines_of(mask: np.ndarray) -> list[Outline]:
    """Return the outlines of a mask's connected parts along the edges of its pixels.

    Vertices are corners of pixels: pixel (0, 0) has the corners (0, 0) and (1, 1). An outline
    encloses exactly the part; its edges are horizontal or vertical.

    Args:
        mask: (H, W) bool.
    """
    import cv2

    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    padded = np.pad(mask, 1)
    neighbors = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    # All edges between a pixel of the mask and another one: the part by start and direction.
    edges: dict[tuple[int, int], dict[int, int]] = {}
    for direction, neighbor in enumerate(neighbors):
        rows, columns = np.nonzero(mask & ~neighbor)
        x, y = columns + (direction in (1, 2)), rows + (direction in (2, 3))
        parts = labels[rows, columns]
        for start, part in zip(zip(x.tolist(), y.tolist(), strict=True), parts, strict=True):
            edges.setdefault(start, {})[direction] = int(part)
    exteriors: dict[int, np.ndarray] = {}
    holes: dict[int, list[np.ndarray]] = {part: [] for part in range(1, count)}
    while edges:
        first, there = next(iter(edges.items()))
        direction, part = next(iter(there.items()))
        ring = _follow(edges, first, direction)
        # The shoelace formula: positive for rings that run clockwise, which are exteriors.
        x, y = ring.T.astype(np.int64)
        if (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() > 0:
            exteriors[part] = ring
        else:
            holes[part].append(ring)
    return [Outline(exteriors[part], holes[part]) for part in range(1, count)]


def _follow(
    edges: dict[tuple[int, int], dict[int, int]], start: tuple[int, int], direction: int
) -> np.ndarray:
    """Remove a ring of edges, and return its corners, (N, 2) int32."""
    corners = []
    place, first, before = start, direction, -1
    while True:
        del edges[place][direction]
        if not edges[place]:
            del edges[place]
        if direction != before:
            corners.append(place)
        place = (place[0] + _STEPS[direction][0], place[1] + _STEPS[direction][1])
        before = direction
        # Where two pixels touch at a corner, the turn to the left joins them.
        turns = ((before - 1) % 4, before, (before + 1) % 4)
        onward = [turn for turn in turns if turn in edges.get(place, ())]
        if not onward:
            break
        direction = onward[0]
    if before == first:  # the ring started in the middle of an edge
        del corners[0]
    return np.array(corners, np.int32)
