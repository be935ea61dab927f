"""Large images: cut into overlapping windows, segmented one by one, and joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from odise_mm.errors import ConfigError
from odise_mm.structures import Segment, SegmentationResult
from odise_mm.utils.settings import check_whole

MIN_IOU = 0.5
"""Things of neighboring windows are one object from this intersection over union on, measured
where the windows overlap. Two objects of a window cannot both reach it with the same third one."""


@dataclass(frozen=True)
class Windows:
    """Square windows that cover an image.

    Args:
        size: edge of a window in pixels.
        overlap: how far neighboring windows overlap at least, in pixels.

    Raises:
        ConfigError: a value is not allowed.
    """

    size: int = 1024
    overlap: int = 256

    def __post_init__(self) -> None:
        check_whole("window", self.size, 8)
        check_whole("overlap", self.overlap, 2)
        if 2 * self.overlap > self.size:
            raise ConfigError(
                f"overlap={self.overlap} must be at most half of window={self.size}, so that a "
                "place belongs to at most two windows in each direction"
            )

    def starts(self, length: int) -> list[int]:
        """Return where windows start along an edge of the image; the last one ends with it."""
        if length <= self.size:
            return [0]
        count = -(-(length - self.overlap) // (self.size - self.overlap))
        return np.rint(np.linspace(0, length - self.size, count)).astype(int).tolist()

    def count(self, height: int, width: int) -> int:
        """Return the number of windows of an image."""
        return len(self.starts(height)) * len(self.starts(width))


def segment_windows(
    image: np.ndarray,
    segment: Callable[[np.ndarray], SegmentationResult],
    windows: Windows,
    after_each: Callable[[], None] = lambda: None,
    min_area: int = 0,
) -> SegmentationResult:
    """Segment a large image window by window.

    Things are joined across windows if they have the same class and cover the same pixels where the
    windows overlap (:data:`MIN_IOU`). Stuff of one class is one segment. Every pixel takes the
    segment of the window whose border is farther away. Beyond the image and the map, memory is that
    of one window.

    Args:
        image: (H, W, 3) uint8 BGR.
        segment: segments a window, an image of this kind. Its result needs a panoptic map.
        windows: the windows.
        after_each: called after every window.
        min_area: joined segments with fewer pixels become void.

    Returns:
        Result of the whole image with a panoptic map and segments, whose scores are means over
        their windows, weighted by area. It has no semantic map and no instances.
    """
    height, width = image.shape[:2]
    joined = _Joined(height, width)
    rows, columns = windows.starts(height), windows.starts(width)
    found = SegmentationResult()
    for top, row_border in zip(rows, _borders(rows, windows.size), strict=True):
        for left, column_border in zip(columns, _borders(columns, windows.size), strict=True):
            window = image[top : top + windows.size, left : left + windows.size]
            found = segment(np.ascontiguousarray(window))
            joined.add(found, top, left, row_border, column_border)
            after_each()
    return SegmentationResult(
        height=height,
        width=width,
        segments=joined.finish(min_area),
        panoptic=joined.ids,
        class_names=found.class_names,
        random_weights=found.random_weights,
    )


def _borders(starts: Sequence[int], size: int) -> Iterator[int]:
    """Yield the middle of each window's overlap with the one before."""
    yield 0
    for before, start in zip(starts, starts[1:], strict=False):
        yield (before + size + start) // 2


class _Joined:
    """The map of the whole image, window by window."""

    def __init__(self, height: int, width: int) -> None:
        self.ids = np.full((height, width), -1, np.int32)  # -1: no window was here
        self._segments: dict[int, Segment] = {}
        self._parent: dict[int, int] = {}
        self._next = 1

    def add(
        self, found: SegmentationResult, top: int, left: int, row_border: int, column_border: int
    ) -> None:
        """Add a window, which takes the pixels from its borders on and all that are new."""
        local = found.require_panoptic()
        place = self.ids[top : top + local.shape[0], left : left + local.shape[1]]
        numbers = np.zeros(int(local.max(initial=0)) + 1, np.int32)
        for segment in found.segments:
            if segment.id < len(numbers):
                numbers[segment.id] = self._next
                self._segments[self._next] = segment
                self._parent[self._next] = self._next
                self._next += 1
        new = numbers[local]
        old_place = place >= 0
        if old_place.any():
            self._link(place[old_place], new[old_place])
        own = ~old_place
        own[max(0, row_border - top) :, max(0, column_border - left) :] = True
        place[own] = new[own]

    def _link(self, old: np.ndarray, new: np.ndarray) -> None:
        """Link the things of a window to those that are there; pixels of the overlap, (N,)."""
        pairs, counts = np.unique(old.astype(np.int64) << 32 | new, return_counts=True)
        area: dict[tuple[int, int], int] = {}
        common: dict[tuple[int, int], int] = {}
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
            a, b = pair >> 32, pair & 0xFFFFFFFF
            a = self._root(a) if a else 0
            area[0, a] = area.get((0, a), 0) + count
            area[1, b] = area.get((1, b), 0) + count
            if a and b and self._are_alike(a, b):
                common[a, b] = common.get((a, b), 0) + count
        olds, news = sorted({a for a, _ in common}), sorted({b for _, b in common})
        overlaps = np.zeros((len(olds), len(news)))
        for (a, b), count in common.items():
            union = area[0, a] + area[1, b] - count
            overlaps[olds.index(a), news.index(b)] = count / union
        allowed = np.where(overlaps >= MIN_IOU, overlaps, 0.0)
        for row, column in zip(*linear_sum_assignment(allowed, maximize=True), strict=True):
            if allowed[row, column] > 0:
                self._parent[self._root(news[column])] = self._root(olds[row])

    def _are_alike(self, a: int, b: int) -> bool:
        first, second = self._segments[a], self._segments[b]
        return first.is_thing and second.is_thing and first.label == second.label

    def _root(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = number = self._parent[self._parent[number]]
        return number

    def finish(self, min_area: int = 0) -> list[Segment]:
        """Number the joined segments from 1 and return them, except those that are too small."""
        # In strips of rows, since counting and looking up make copies.
        strips = [self.ids[row : row + 256] for row in range(0, len(self.ids), 256)]
        areas = np.zeros(self._next, np.int64)
        for strip in strips:
            areas += np.bincount(strip.ravel(), minlength=self._next)
        keys = {
            number: self._root(number) if segment.is_thing else ("stuff", segment.label)
            for number, segment in self._segments.items()
        }
        total: dict[object, int] = {}
        for number, key in keys.items():
            total[key] = total.get(key, 0) + int(areas[number])
        final: dict[object, int] = {}
        table = np.zeros(self._next, np.int32)
        parts: dict[int, list[tuple[Segment, int]]] = {}
        for number, segment in self._segments.items():
            if not areas[number] or total[keys[number]] < min_area:
                continue
            table[number] = final.setdefault(keys[number], len(final) + 1)
            parts.setdefault(int(table[number]), []).append((segment, int(areas[number])))
        for strip in strips:
            strip[:] = table[strip]
        return [
            replace(
                pieces[0][0],
                id=number,
                area=sum(area for _, area in pieces),
                score=sum(s.score * area for s, area in pieces) / sum(area for _, area in pieces),
            )
            for number, pieces in parts.items()
        ]
