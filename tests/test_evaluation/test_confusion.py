"""Confusion matrices equal counts pixel by pixel; advice for confused classes."""

from __future__ import annotations

import numpy as np
import pytest

from odise_mm.annotations.ground_truth import PanopticTruth, TruthSegment
from odise_mm.annotations.label_maps import IGNORED
from odise_mm.evaluation.confusion import (
    Confusion,
    add_panoptic,
    add_semantic,
    confused_pairs,
    suggest_synonyms,
)
from odise_mm.visualization.confusion import MAX_CLASSES, confusion_figure

CLASSES = 4


def random_image(rng: np.random.Generator) -> tuple[PanopticTruth, np.ndarray, dict[int, int]]:
    """Draw a truth with void and a crowd region, and a result with void."""
    truth = rng.integers(0, 6, (5, 7)).repeat(2, 0).repeat(3, 1)
    found = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 8, truth.shape))
    segments = [TruthSegment(int(i), int(i) % CLASSES, True, i == 2) for i in np.unique(truth) if i]
    labels = {int(i): int(rng.integers(CLASSES)) for i in np.unique(found) if i}
    return PanopticTruth("map.png", truth.astype(np.int32), tuple(segments)), found, labels


@pytest.mark.parametrize("seed", range(5))
def test_panoptic_counts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    confusion, pixels = Confusion.zeros(CLASSES), np.zeros((CLASSES + 1, CLASSES + 1), int)
    segments = np.zeros_like(pixels)
    for _ in range(3):
        truth, ids, labels = random_image(rng)
        add_panoptic(confusion, truth, ids, labels)
        class_of = {s.id: s.label for s in truth.segments}
        rows = np.vectorize(lambda i, c=class_of: c.get(i, CLASSES))(truth.ids)
        columns = np.vectorize(lambda i, c=labels: c.get(i, CLASSES))(ids)
        np.add.at(pixels, (rows, columns), 1)
        for segment in truth.segments:
            if not segment.is_crowd:
                votes = np.bincount(columns[truth.ids == segment.id], minlength=CLASSES + 1)
                segments[segment.label, votes.argmax()] += 1
        for number, label in labels.items():
            segments[CLASSES, label] += (rows[ids == number] == CLASSES).mean() > 0.5
    assert np.array_equal(confusion.pixels, pixels)
    assert np.array_equal(confusion.segments, segments)
    pairs = confused_pairs(confusion)
    assert len(pairs) == np.count_nonzero(pixels) - np.count_nonzero(np.diag(pixels))
    for pair in pairs:
        assert pair.truth != pair.found and pair.pixels == pixels[pair.truth, pair.found]
        assert pair.pixel_share == pytest.approx(pair.pixels / pixels[pair.truth].sum())
    assert [p.segments for p in pairs] == sorted((p.segments for p in pairs), reverse=True)


def test_found_where_nothing_is_annotated() -> None:
    """More than half of segment 1 is void in the truth, and half of segment 2."""
    truth = PanopticTruth(
        "map.png", np.array([[0, 0, 5, 0, 5]], np.int32), (TruthSegment(5, 0, True, False),)
    )
    confusion = Confusion.zeros(2)
    add_panoptic(confusion, truth, np.array([[1, 1, 1, 2, 2]]), {1: 1, 2: 1})
    assert confusion.segments.tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 0]]


def test_semantic_counts() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, CLASSES, (9, 11))
    truth[rng.random(truth.shape) < 0.2] = IGNORED
    found = rng.integers(0, CLASSES, truth.shape)
    confusion, pixels = Confusion.zeros(CLASSES), np.zeros((CLASSES + 1, CLASSES + 1), int)
    add_semantic(confusion, truth, found)
    known = truth != IGNORED
    np.add.at(pixels, (truth[known], found[known]), 1)
    assert np.array_equal(confusion.pixels, pixels) and not confusion.segments.any()


def test_suggestions() -> None:
    names = ["sofa", "couch", "cat", "sky"]
    confusion = Confusion.zeros(4)
    confusion.segments[0, :2] = 1, 4  # mostly found as couch
    confusion.segments[2, 3] = 9  # a thing and stuff are never one class
    confusion.segments[3, 4] = 9  # not found at all
    (advice,) = suggest_synonyms(confusion, names, [True, True, True, False])
    assert "'sofa' is mostly found as 'couch' (4 of 5 segments)" in advice
    assert '"couch, sofa"' in advice
    confusion.segments[0, :2] = 0, 2  # too few
    assert list(suggest_synonyms(confusion, names, [True, True, True, False])) == []
    confusion.segments[:] = 0
    confusion.pixels[1, :2] = 30, 20
    (advice,) = suggest_synonyms(confusion, names, [True] * 4)
    assert "'couch' is mostly found as 'sofa' (30 of 50 pixels)" in advice


def test_the_figure_shows_the_most_confused_classes() -> None:
    count = MAX_CLASSES + 5
    names = [f"class {i}" for i in range(count)]
    matrix = np.diag([10] * count + [0])
    for row in range(5, count):
        matrix[row, row - 1] = row
    figure = confusion_figure(matrix, names, "pixels")
    (axes,) = figure.axes
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == [*names[5:], "(nothing)"]
    assert np.allclose(axes.images[0].get_array().sum(axis=1)[1:-1], 100)
