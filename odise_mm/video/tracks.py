"""Segments of successive frames, linked to tracks.

The cost of a link is one minus the intersection over union of two masks, as in most trackers of
masks; the assignment with the lowest total cost is found by scipy. Stuff needs no assignment: there
is one track per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from odise_mm.structures import Segment, SegmentationResult
from odise_mm.utils.settings import check_weight, check_whole

Cut = tuple[np.ndarray, tuple[int, int]]
"""A mask without empty rows and columns around it, (h, w) bool, and its first row and column."""


@dataclass
class Track:
    """One object, or the stuff of one class, in a video."""

    id: int
    """From 1, in the order of appearance."""
    is_thing: bool
    votes: dict[int, float] = field(default_factory=dict)
    """Smoothed score of every class that the track was given: the mean over its frames, in which
    recent ones count more."""
    frames: int = 0
    """Number of frames in which it was found."""
    last_frame: int = -1
    mask: Cut | None = None
    """Its last mask."""

    @property
    def label(self) -> int:
        """Class index with the highest smoothed score."""
        return max(self.votes, key=lambda label: (self.votes[label], -label))


class Tracker:
    """Links the segments of every frame to those of the frames before.

    Args:
        min_iou: things with a lower intersection over union are not linked.
        max_gap: number of frames for which an object may be hidden.
        smoothing: weight of the frames before in the score of a track's classes, 0 to 1. 0: every
            frame has its own name. 0.9: about ten frames decide.

    Raises:
        ConfigError: a value is not allowed.
    """

    def __init__(self, min_iou: float = 0.3, max_gap: int = 12, smoothing: float = 0.9) -> None:
        check_weight("min_iou", min_iou)
        check_weight("smoothing", smoothing)
        check_whole("max_gap", max_gap, 0)
        self._min_iou, self._max_gap, self._smoothing = min_iou, max_gap, smoothing
        self._active: list[Track] = []
        self._stuff: dict[int, Track] = {}
        self._frame = -1
        self.count = 0
        """Number of tracks so far."""

    def update(self, result: SegmentationResult) -> SegmentationResult:
        """Return the result of the next frame with ``track_id`` in its segments.

        Things get the name that their track has by now. Its score is the smoothed score of the
        track. Void and the map itself do not change.

        Args:
            result: result with a panoptic map. It is not changed.

        Raises:
            ValueError: there is no panoptic map.
        """
        panoptic = result.require_panoptic()
        self._frame += 1
        self._active = [t for t in self._active if self._frame - t.last_frame <= self._max_gap + 1]
        things = [s for s in result.segments if s.is_thing]
        cuts = {s.id: _cut(panoptic, s.id) for s in things}
        things = [s for s in things if cuts[s.id] is not None]
        found = self._assign([cut for s in things if (cut := cuts[s.id]) is not None])
        track_of = dict(zip((s.id for s in things), found, strict=True))
        segments = []
        for segment in result.segments:
            if segment.is_thing and segment.id not in track_of:
                continue  # without pixels
            track = track_of.get(segment.id) or self._stuff_track(segment)
            self._vote(track, segment)
            track.mask = cuts.get(segment.id)
            segments.append(_named(segment, track, result.class_names))
        return replace(result, segments=segments)

    def _assign(self, cuts: Sequence[Cut]) -> list[Track]:
        """Return the track of every mask; new tracks for those that no track fits."""
        overlaps = np.array(
            [[_iou(track.mask, cut) for cut in cuts] for track in self._active]
        ).reshape(len(self._active), len(cuts))
        # Pairs below the threshold must not take part: they could displace a better pair.
        allowed = np.where(overlaps >= max(self._min_iou, 1e-9), overlaps, -1.0)
        rows, columns = linear_sum_assignment(allowed, maximize=True)
        linked = {
            int(c): self._active[r] for r, c in zip(rows, columns, strict=True) if allowed[r, c] > 0
        }
        tracks = []
        for column in range(len(cuts)):
            track = linked.get(column)
            if track is None:
                track = self._new_track(is_thing=True)
                self._active.append(track)
            tracks.append(track)
        return tracks

    def _new_track(self, is_thing: bool) -> Track:
        self.count += 1
        return Track(self.count, is_thing)

    def _stuff_track(self, segment: Segment) -> Track:
        if segment.label not in self._stuff:
            self._stuff[segment.label] = self._new_track(is_thing=False)
        return self._stuff[segment.label]

    def _vote(self, track: Track, segment: Segment) -> None:
        # The mean of the first frames, then an exponential moving average.
        old = min(self._smoothing, track.frames / (track.frames + 1))
        track.votes = {label: old * score for label, score in track.votes.items()}
        track.votes[segment.label] = track.votes.get(segment.label, 0.0) + (1 - old) * segment.score
        track.frames += 1
        track.last_frame = self._frame


def _named(segment: Segment, track: Track, names: Sequence[str]) -> Segment:
    label = track.label if track.is_thing else segment.label
    if label == segment.label and not track.is_thing:
        return replace(segment, track_id=track.id)
    name = segment.name if label == segment.label else names[label]
    return replace(segment, label=label, name=name, score=track.votes[label], track_id=track.id)


def _cut(panoptic: np.ndarray, value: int) -> Cut | None:
    """Return the mask of a segment; None if it has no pixels."""
    mask = panoptic == value
    rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    if not len(rows):
        return None
    top, left = int(rows[0]), int(columns[0])
    return mask[top : rows[-1] + 1, left : columns[-1] + 1].copy(), (top, left)


def _iou(first: Cut | None, second: Cut) -> float:
    """Return the intersection over union of two masks."""
    if first is None:
        return 0.0
    (a, (top_a, left_a)), (b, (top_b, left_b)) = first, second
    top, left = max(top_a, top_b), max(left_a, left_b)
    bottom = min(top_a + a.shape[0], top_b + b.shape[0])
    right = min(left_a + a.shape[1], left_b + b.shape[1])
    if bottom <= top or right <= left:
        return 0.0
    common = np.count_nonzero(
        a[top - top_a : bottom - top_a, left - left_a : right - left_a]
        & b[top - top_b : bottom - top_b, left - left_b : right - left_b]
    )
    return common / (np.count_nonzero(a) + np.count_nonzero(b) - common)
