"""Segments of successive frames, linked to tracks.

A link is scored by the intersection over union of two masks and, if they are known, by the cosine
of their embeddings. scipy finds the assignment with the highest total score. Stuff needs no
assignment: there is one track per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from odise_mm.structures import Segment, SegmentationResult
from odise_mm.utils.settings import check_weight, check_whole

SAME = 0.9
"""Cosine of mask embeddings from which two things that don't overlap may be the same object."""

Cut = tuple[np.ndarray, tuple[int, int]]
"""A mask without empty rows and columns around it, (h, w) bool, and its first row and column."""


@dataclass
class Track:
    """One object, or the stuff of one class, in a video."""

    id: int
    """From 1, in the order of appearance."""
    is_thing: bool
    votes: np.ndarray
    """(K,) smoothed probability of every class: the mean over its frames, in which recent ones
    count more."""
    labels: set[int] = field(default_factory=set)
    """Classes that its segments were given."""
    embedding: np.ndarray | None = None
    """Smoothed mask embedding, (C,), if the results have it."""
    frames: int = 0
    """Number of frames in which it was found."""
    last_frame: int = -1
    mask: Cut | None = None
    """Its last mask."""

    @property
    def label(self) -> int:
        """Class index with the highest smoothed probability, among those of its segments."""
        return max(self.labels, key=lambda label: (self.votes[label], -label))


class Tracker:
    """Links the segments of every frame to those of the frames before.

    If the results keep their queries, embeddings take part in the links, and the probabilities of
    all classes in the names. Otherwise, links use masks alone, and names the scores of the
    segments.

    Args:
        min_iou: things with a lower intersection over union are not linked, unless their embeddings
            are alike (a cosine of at least ``SAME``) and they are close (their centers are not
            farther apart than the diagonal of the larger box).
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
        # One array for all segments: the queries compute it at every access.
        queries = result.queries
        scores = None if queries is None else queries.probabilities()
        embeddings = [None if queries is None else _embedding(result, s) for s in things]
        found = self._assign(
            [cut for s in things if (cut := cuts[s.id]) is not None], embeddings, result
        )
        track_of = dict(zip((s.id for s in things), found, strict=True))
        segments = []
        for segment in result.segments:
            if segment.is_thing and segment.id not in track_of:
                continue  # without pixels
            track = track_of.get(segment.id) or self._stuff_track(segment, len(result.class_names))
            self._vote(track, segment, self._probabilities(result, segment, scores))
            track.mask = cuts.get(segment.id)
            segments.append(_named(segment, track, result.class_names))
        return replace(result, segments=segments)

    def _assign(
        self,
        cuts: Sequence[Cut],
        embeddings: Sequence[np.ndarray | None],
        result: SegmentationResult,
    ) -> list[Track]:
        """Return the track of every mask; new tracks for those that no track fits."""
        scores = np.zeros((len(self._active), len(cuts)))
        for row, track in enumerate(self._active):
            for column, (cut, embedding) in enumerate(zip(cuts, embeddings, strict=True)):
                scores[row, column] = self._score(track, cut, embedding)
        # Pairs without a score must not take part: they could displace a better pair.
        rows, columns = linear_sum_assignment(np.where(scores > 0, scores, -10.0), maximize=True)
        linked = {
            int(c): self._active[r] for r, c in zip(rows, columns, strict=True) if scores[r, c] > 0
        }
        tracks = []
        for column, embedding in enumerate(embeddings):
            track = linked.get(column)
            if track is None:
                track = self._new_track(True, len(result.class_names))
                self._active.append(track)
            if embedding is not None:
                old = 0.0 if track.embedding is None else self._smoothing * track.embedding
                mean = old + (1 - self._smoothing) * embedding
                track.embedding = mean / max(float(np.linalg.norm(mean)), 1e-12)
            tracks.append(track)
        return tracks

    def _score(self, track: Track, cut: Cut, embedding: np.ndarray | None) -> float:
        """Return the score of a link; 0 if it is not allowed."""
        overlap = _iou(track.mask, cut)
        alike = 0.0
        if embedding is not None and track.embedding is not None:
            alike = max(0.0, float(embedding @ track.embedding))
        if overlap < max(self._min_iou, 1e-9) and not (
            alike >= SAME and track.mask is not None and _are_close(track.mask, cut)
        ):
            return 0.0
        return overlap + 0.5 * alike

    @staticmethod
    def _probabilities(
        result: SegmentationResult, segment: Segment, scores: np.ndarray | None
    ) -> np.ndarray:
        """Return the probabilities of a segment's classes, (K,)."""
        if scores is not None and result.queries is not None:
            return result.queries.of_segment(scores, segment)[:-1]
        alone = np.zeros(len(result.class_names), np.float32)
        alone[segment.label] = segment.score
        return alone

    def _new_track(self, is_thing: bool, num_classes: int) -> Track:
        self.count += 1
        return Track(self.count, is_thing, np.zeros(num_classes, np.float32))

    def _stuff_track(self, segment: Segment, num_classes: int) -> Track:
        if segment.label not in self._stuff:
            self._stuff[segment.label] = self._new_track(False, num_classes)
        return self._stuff[segment.label]

    def _vote(self, track: Track, segment: Segment, probabilities: np.ndarray) -> None:
        # The mean of the first frames, then an exponential moving average.
        old = min(self._smoothing, track.frames / (track.frames + 1))
        track.votes = old * track.votes + (1 - old) * probabilities
        track.labels.add(segment.label)
        track.frames += 1
        track.last_frame = self._frame


def _named(segment: Segment, track: Track, names: Sequence[str]) -> Segment:
    label = track.label if track.is_thing else segment.label
    if label == segment.label and not track.is_thing:
        return replace(segment, track_id=track.id)
    name = segment.name if label == segment.label else names[label]
    score = float(track.votes[label])
    return replace(segment, label=label, name=name, score=score, track_id=track.id)


def _embedding(result: SegmentationResult, segment: Segment) -> np.ndarray | None:
    """Return the normalized mask embedding of a segment, if the model makes any."""
    if result.queries is None or result.queries.embeddings is None:
        return None
    return result.embedding(segment)


def _are_close(first: Cut, second: Cut) -> bool:
    """Return whether the boxes of two masks are closer than the diagonal of the larger one."""
    centers = [np.add(start, np.divide(mask.shape, 2)) for mask, start in (first, second)]
    reach = max(float(np.hypot(*mask.shape)) for mask, _ in (first, second))
    return float(np.linalg.norm(centers[0] - centers[1])) <= reach


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
