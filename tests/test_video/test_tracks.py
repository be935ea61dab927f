"""Objects keep their numbers and their names."""

from __future__ import annotations

import numpy as np
import pytest

from odise_mm.errors import ConfigError
from odise_mm.structures import Segment, SegmentationResult
from odise_mm.structures.queries import MaskFate, Queries
from odise_mm.video.tracks import Tracker

NAMES = ("ball", "box", "sky")
SIZE = 60


def result(
    things: list[tuple[int, int, str]], sky: bool = True, score: float = 0.8
) -> SegmentationResult:
    """Return a frame with squares of 10 x 10 pixels at (row, column), later ones in front."""
    panoptic = np.full((SIZE, SIZE), int(sky), np.int32)
    segments = [Segment(1, 2, "sky", 0.9, 0, False)] if sky else []
    for number, (row, column, name) in enumerate(things, start=2):
        panoptic[max(0, row) : row + 10, max(0, column) : column + 10] = number
        segments.append(Segment(number, NAMES.index(name), name, score, 100, True))
    return SegmentationResult(
        height=SIZE, width=SIZE, panoptic=panoptic, segments=segments, class_names=NAMES
    )


def tracks_of(found: SegmentationResult) -> list[int | None]:
    return [segment.track_id for segment in found.segments if segment.is_thing]


def test_objects_keep_their_numbers_in_any_order() -> None:
    """Two objects move toward each other and past; the order of the segments is random."""
    rng, tracker = np.random.default_rng(0), Tracker()
    for step in range(20):
        things = [(5, 2 * step, "ball"), (20, 40 - 2 * step, "ball")]
        order = rng.permutation(2)
        found = tracker.update(result([things[i] for i in order]))
        ids = tracks_of(found)
        if step == 0:
            number = dict(zip(order.tolist(), ids, strict=True))
        assert ids == [number[i] for i in order]
    assert tracker.count == 3  # with the sky


def test_stuff_has_one_track_per_class() -> None:
    tracker = Tracker()
    ids = []
    for sky in (True, False, False, True):
        found = tracker.update(result([(0, 0, "box")], sky))
        ids.append([segment.track_id for segment in found.segments if not segment.is_thing])
    assert ids == [[ids[0][0]], [], [], ids[0]]


@pytest.mark.parametrize(("hidden", "same"), [(3, True), (4, False)])
def test_hidden_objects_come_back(hidden: int, same: bool) -> None:
    tracker = Tracker(max_gap=3)
    (first,) = tracks_of(tracker.update(result([(5, 5, "ball")])))
    for _ in range(hidden):
        assert tracks_of(tracker.update(result([]))) == []
    (last,) = tracks_of(tracker.update(result([(6, 6, "ball")])))
    assert (first == last) == same


def test_the_assignment_is_the_best_of_all() -> None:
    """The greedy choice (the best pair first) would leave one object without a track."""
    tracker = Tracker(min_iou=0.2)
    before = tracks_of(tracker.update(result([(20, 10, "ball"), (20, 21, "ball")])))
    after = tracks_of(tracker.update(result([(20, 5, "ball"), (20, 15, "ball")])))
    assert after == before


def test_names_are_smoothed() -> None:
    tracker = Tracker(smoothing=0.9)
    typed = ["ball", "ball", "box", "ball", "box", "ball"] + ["box"] * 30
    found = [tracker.update(result([(5, 5, name)])).segments[-1] for name in typed]
    names = [segment.name for segment in found]
    assert names[:6] == ["ball"] * 6  # single frames change nothing
    assert names[-1] == "box"  # a lasting change does
    assert [NAMES[segment.label] for segment in found] == names
    changes = sum(a != b for a, b in zip(names, names[1:], strict=False))
    assert changes == 1
    # The score is the share of the votes times the score of the frames.
    assert found[0].score == pytest.approx(0.8)
    assert found[2].score == pytest.approx(0.8 * 2 / 3)
    each = Tracker(smoothing=0)
    assert [each.update(result([(5, 5, n)])).segments[-1].name for n in typed] == typed


def test_results_are_not_changed() -> None:
    given = result([(5, 5, "ball")])
    found = Tracker().update(given)
    assert given.segments[-1].track_id is None and found.panoptic is given.panoptic
    with pytest.raises(ValueError, match="no panoptic map"):
        Tracker().update(SegmentationResult())


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="min_iou=2"):
        Tracker(min_iou=2)
    with pytest.raises(ConfigError, match="max_gap=-1"):
        Tracker(max_gap=-1)
    with pytest.raises(ConfigError, match="smoothing=-1"):
        Tracker(smoothing=-1)


class KnownQueries(Queries):
    """One mask per segment, with given probabilities and embeddings."""

    def __init__(self, scores: list[list[float]], embeddings: list[list[float]]) -> None:
        self.class_names, self.classifiers, self.settings = NAMES, (), {}
        self.scores, self._embeddings = np.array(scores), np.array(embeddings, np.float32)
        self.fates = [MaskFate("kept", i + 1, 1, 1) for i in range(len(scores))]

    def __len__(self) -> int:
        return len(self.scores)

    def probabilities(self, classifier: str | None = None) -> np.ndarray:
        return self.scores

    @property
    def embeddings(self) -> np.ndarray:
        return self._embeddings

    def mask(self, query: int) -> np.ndarray:
        raise NotImplementedError

    small_masks = confidence = segmented = embeddings_of = mask


def test_embeddings_link_objects_that_do_not_overlap() -> None:
    """Both objects move by more than their size; their embeddings tell them apart."""
    sky, flat = [0, 0, 1, 0], [0.5, 0.5, 0, 0]
    embeddings = [[0, 0, 1], [1, 0, 0], [0.1, 1, 0]]
    before, after = (result([(10, c, "ball"), (30, c, "ball")]) for c in (5, 16))
    before.queries = KnownQueries([sky, flat, flat], embeddings)
    after.queries = KnownQueries([sky, flat, flat], [embeddings[i] for i in (0, 1, 2)])
    tracker = Tracker()
    first = tracks_of(tracker.update(before))
    assert tracks_of(tracker.update(after)) == first
    after.queries = None
    tracker = Tracker()
    first = tracks_of(tracker.update(before))
    assert not set(tracks_of(tracker.update(after))) & set(first)


def test_the_probabilities_of_all_classes_vote() -> None:
    """The box is second in the first frame by a little, and far ahead in the next one."""
    sky = [0, 0, 1, 0]
    frames = [([0.5, 0.48, 0, 0], "ball"), ([0.1, 0.9, 0, 0], "box")]
    names = []
    tracker = Tracker()
    for probabilities, name in frames:
        given = result([(5, 5, name)])
        given.queries = KnownQueries([sky, probabilities], [[0, 1], [1, 0]])
        found = tracker.update(given).segments[-1]
        names.append((found.name, found.score))
    assert names[0] == ("ball", pytest.approx(0.5))
    assert names[1] == ("box", pytest.approx(0.69))
