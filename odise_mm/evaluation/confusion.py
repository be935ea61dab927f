"""Confusion of classes: which class was found where another one is annotated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from odise_mm.annotations.ground_truth import PanopticTruth, count_pairs, count_values
from odise_mm.annotations.label_maps import IGNORED

MIN_SEGMENTS = 3
"""Number of annotated segments from which a class gets advice."""


class Confusion(NamedTuple):
    """Confusion matrices of K classes, summed over images.

    Rows are annotated classes, columns are found classes. The last row has what is found where
    nothing is annotated, and the last column what is annotated but not found (void).
    """

    pixels: np.ndarray
    """(K + 1, K + 1) int64, pixels."""
    segments: np.ndarray
    """(K + 1, K + 1) int64, annotated segments, by the class that is found on most of their pixels.
    In the last row: found segments that lie mostly where nothing is annotated."""

    @classmethod
    def zeros(cls, num_classes: int) -> Confusion:
        """Return empty matrices."""
        return cls(*np.zeros((2, num_classes + 1, num_classes + 1), np.int64))

    def add(self, other: Confusion) -> None:
        """Add other matrices in place."""
        for total, part in zip(self, other, strict=True):
            total += part


def add_panoptic(
    confusion: Confusion, truth: PanopticTruth, ids: np.ndarray, labels: dict[int, int]
) -> None:
    """Add an image with panoptic ground truth. Crowd regions count as pixels, not as segments.

    Args:
        confusion: the matrices.
        truth: annotated segments.
        ids: (H, W) segment ids of the result, 0 for void.
        labels: class index by segment id of the result.
    """
    none = len(confusion.pixels) - 1
    truth_labels = {segment.id: segment.label for segment in truth.segments}
    votes: dict[int, np.ndarray] = {}
    outside: dict[int, list[int]] = {}
    pairs, counts = count_pairs(truth.ids, ids)
    for pair, pixels in zip(pairs.tolist(), counts.tolist(), strict=True):
        annotated, found = pair >> 32, pair & 0xFFFFFFFF
        row, column = truth_labels.get(annotated, none), labels.get(found, none)
        confusion.pixels[row, column] += pixels
        votes.setdefault(annotated, np.zeros(none + 1, np.int64))[column] += pixels
        if found:
            parts = outside.setdefault(found, [0, 0])
            parts[0] += pixels
            parts[1] += pixels * (row == none)
    for segment in truth.segments:
        if not segment.is_crowd:
            confusion.segments[segment.label, votes[segment.id].argmax()] += 1
    for found, (pixels, unlabeled) in outside.items():
        if 2 * unlabeled > pixels:
            confusion.segments[none, labels[found]] += 1


def add_semantic(confusion: Confusion, truth: np.ndarray, labels: np.ndarray) -> None:
    """Add an image with semantic ground truth, which has no segments to count.

    Args:
        confusion: the matrices.
        truth: (H, W) class indices or :data:`IGNORED`; ignored pixels are not counted.
        labels: (H, W) class indices of the result.
    """
    known = truth != IGNORED
    size = len(confusion.pixels)
    values, counts = count_values(truth[known].astype(np.int64) * size + labels[known])
    confusion.pixels.ravel()[values] += counts


class Pair(NamedTuple):
    """A class and another one that is found in its place."""

    truth: int
    """Annotated class; K: nothing is annotated."""
    found: int
    """Class that is found; K: void."""
    segments: int
    segment_share: float
    """Share of the annotated segments of the class, 0 to 1; NaN if there are none."""
    pixels: int
    pixel_share: float
    """Share of the annotated pixels of the class, 0 to 1."""


def confused_pairs(confusion: Confusion) -> list[Pair]:
    """Return all pairs of different classes with at least one pixel, most segments first."""
    segments = confusion.segments.sum(axis=1)
    pixels = confusion.pixels.sum(axis=1)
    pairs = [
        Pair(
            int(row),
            int(column),
            int(confusion.segments[row, column]),
            confusion.segments[row, column] / segments[row] if segments[row] else float("nan"),
            int(confusion.pixels[row, column]),
            float(confusion.pixels[row, column] / pixels[row]),
        )
        for row, column in zip(*np.nonzero(confusion.pixels), strict=True)
        if row != column
    ]
    return sorted(pairs, key=lambda p: (-p.segments, -p.pixels, p.truth, p.found))


def suggest_synonyms(
    confusion: Confusion, names: Sequence[str], is_thing: Sequence[bool]
) -> Iterator[str]:
    """Yield advice for classes that are mostly found as another class of the same kind.

    Args:
        confusion: the matrices. If no segments are counted, pixels are used. Classes with fewer
            than ``MIN_SEGMENTS`` segments are left out.
        names: K class names.
        is_thing: K flags.
    """
    by_count = confusion.segments.any()
    matrix = confusion.segments if by_count else confusion.pixels
    for row, name in enumerate(names):
        total = int(matrix[row].sum())
        column = int(matrix[row, :-1].argmax())
        wrong = int(matrix[row, column])
        if column == row or 2 * wrong <= total or is_thing[row] != is_thing[column]:
            continue
        if by_count and total < MIN_SEGMENTS:
            continue
        what = f"{wrong:,} of {total:,} {'segments' if by_count else 'pixels'}"
        yield (
            f"{name!r} is mostly found as {names[column]!r} ({what}): if both mean the same to "
            f'you, make them one class, "{names[column]}, {name}"; otherwise add a synonym that '
            f"tells {name!r} apart"
        )
