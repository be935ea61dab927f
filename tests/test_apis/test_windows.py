"""Large images: windows are joined to the map that one window would give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from odise_mm.apis import OpenVocabInferencer
from odise_mm.apis.windows import Windows, segment_windows
from odise_mm.errors import ConfigError
from odise_mm.structures import Segment, SegmentationResult
from projects.toy_world import world

TOY = Path(world.__file__).parent
NAMES = ("ball", "box", "sky", "sea")
SKY, SEA = 2, 3


def scene(height: int, width: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Return (H, W) object numbers from 2, and the class of every object.

    1 is sky, which covers the upper half, and 0 is sea. Objects don't touch.
    """
    rng = np.random.default_rng(seed)
    objects = np.zeros((height, width), np.int32)
    objects[: height // 2] = 1
    labels = []
    for row in range(3, height - 12, 16):
        for column in range(3, width - 12, 16):
            if rng.random() < 0.6:
                size = rng.integers(4, 11, 2)
                labels.append(int(rng.integers(2)))
                objects[row : row + size[0], column : column + size[1]] = 1 + len(labels)
    return objects, labels


class Model:
    """Segments an image whose channels hold the object's number and class. Things of one window
    are numbered in any order, as a model does it."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.sizes: list[tuple[int, ...]] = []

    def __call__(self, image: np.ndarray) -> SegmentationResult:
        self.sizes.append(image.shape)
        numbers = image[..., :2].astype(int) @ (1, 256)
        there = self.rng.permutation(np.unique(numbers))
        panoptic = np.zeros(numbers.shape, np.int32)
        segments = []
        for index, number in enumerate(there.tolist(), start=1):
            mask = numbers == number
            panoptic[mask] = index
            label = (SEA, SKY)[number] if number < 2 else int(image[mask][0, 2])
            segments.append(Segment(index, label, NAMES[label], 0.5, int(mask.sum()), number > 1))
        return SegmentationResult(panoptic=panoptic, segments=segments, class_names=NAMES)


def as_image(objects: np.ndarray, labels: list[int]) -> np.ndarray:
    table = np.array([0, 0, *labels])
    return np.stack([objects % 256, objects // 256, table[objects]], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(150, 230), (64, 64), (40, 130), (65, 63)])
def test_the_joined_map_is_that_of_one_window(height: int, width: int) -> None:
    objects, labels = scene(height, width, seed=height)
    model = Model()
    windows = Windows(size=64, overlap=24)
    steps: list[int] = []
    found = segment_windows(as_image(objects, labels), model, windows, lambda: steps.append(1))
    assert len(steps) == len(model.sizes) == windows.count(height, width)
    assert all(max(size[:2]) <= 64 for size in model.sizes)
    ids = found.require_panoptic()
    assert ids.dtype == np.int32 and ids.min() == 1
    assert len(np.unique(ids)) == len(np.unique(objects)) == len(found.segments)
    for segment in found.segments:
        mask = ids == segment.id
        (number,) = np.unique(objects[mask])
        assert np.array_equal(mask, objects == number)  # neither cut nor joined with another one
        assert segment.area == mask.sum() and segment.score == pytest.approx(0.5)
        wanted = (SEA, SKY)[number] if number < 2 else labels[number - 2]
        assert (segment.label, segment.name) == (wanted, NAMES[wanted])
    limit = sorted(segment.area for segment in found.segments)[len(found.segments) // 2]
    large = segment_windows(as_image(objects, labels), Model(), windows, min_area=limit)
    kept = [segment.area for segment in found.segments if segment.area >= limit]
    assert sorted(segment.area for segment in large.segments) == sorted(kept)
    assert [segment.id for segment in large.segments] == list(range(1, len(kept) + 1))
    assert (large.require_panoptic() > 0).sum() == sum(kept)


def test_windows_cover_the_image_and_overlap() -> None:
    for length in range(1, 400, 7):
        windows = Windows(size=64, overlap=24)
        starts = windows.starts(length)
        assert starts[0] == 0 and starts[-1] + 64 >= length
        assert len(starts) == 1 or starts[-1] + 64 == length
        steps = np.diff(starts)
        assert (steps > 0).all() and (steps <= 64 - 24).all()


def test_objects_of_different_classes_are_not_joined() -> None:
    """A window calls the object a ball, the next one a box: the border between them stays."""
    objects = np.zeros((40, 100), np.int32)
    objects[10:30, 20:80] = 2
    image = as_image(objects, [0])
    calls: list[int] = []

    def segment(window: np.ndarray) -> SegmentationResult:
        window = window.copy()
        window[..., 2] = len(calls)
        calls.append(1)
        return Model()(window)

    found = segment_windows(image, segment, Windows(size=64, overlap=28))
    things = [s for s in found.segments if s.is_thing]
    assert [s.label for s in things] == [0, 1]
    assert sum(s.area for s in things) == 20 * 60


def test_scores_are_means_by_area() -> None:
    objects = np.ones((64, 100), np.int32)
    scores = iter([0.2, 0.6])

    def segment(window: np.ndarray) -> SegmentationResult:
        panoptic = np.ones(window.shape[:2], np.int32)
        sky = Segment(1, SKY, "sky", next(scores), panoptic.size, False)
        return SegmentationResult(panoptic=panoptic, segments=[sky], class_names=NAMES)

    found = segment_windows(as_image(objects, []), segment, Windows(size=64, overlap=28))
    (sky,) = found.segments
    assert sky.score == pytest.approx(0.4) and sky.area == 6400  # both own 50 columns


def test_void_stays_void() -> None:
    def segment(window: np.ndarray) -> SegmentationResult:
        return SegmentationResult(panoptic=np.zeros(window.shape[:2], np.int32), class_names=NAMES)

    image = np.zeros((100, 100, 3), np.uint8)
    found = segment_windows(image, segment, Windows(size=64, overlap=28))
    assert not found.require_panoptic().any() and found.segments == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(size=0), "window=0: must be a whole number of at least 8"),
        (dict(size=64, overlap=33), "overlap=33 must be at most half of window=64"),
        (dict(overlap=0), "overlap=0: must be a whole number of at least 2"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Windows(**settings)


def test_the_inferencer_cuts_large_images(tmp_path: Path) -> None:
    """Four scenes of the toy world side by side; smaller images in the list stay whole."""
    scenes = [world.scene((0, i), "val").image for i in range(4)]
    large = np.concatenate([np.concatenate(scenes[:2], 1), np.concatenate(scenes[2:], 1)])
    inferencer = OpenVocabInferencer("odise_toy_label", TOY / "weights/odise_label.safetensors")
    names = str(TOY / "vocabularies/all.txt")
    whole, cut = inferencer(
        [scenes[0], large],
        vocabulary=names,
        window=128,
        overlap=32,
        channel_order="rgb",
        out_dir=tmp_path / "out",
    )
    assert whole.semantic is not None and cut.semantic is None
    assert (cut.height, cut.width, cut.image_name) == (256, 256, "images[1]")
    ids = cut.require_panoptic()
    assert ids.shape == (256, 256)
    assert {s.id: s.area for s in cut.segments} == {
        i: n for i, n in zip(*np.unique(ids, return_counts=True), strict=True) if i
    }
    # Away from the other windows, the map is that of the first scene alone.
    (alone,) = inferencer(scenes[0], vocabulary=names, channel_order="rgb")
    named = [{s.id: s.name for s in found.segments} | {0: "void"} for found in (alone, cut)]
    same = np.vectorize(named[0].get)(alone.require_panoptic()[:96, :96])
    assert (same == np.vectorize(named[1].get)(ids[:96, :96])).all()
    assert (tmp_path / "out/panoptic").is_dir()
    with pytest.raises(ConfigError, match="overlap=32 is for images in windows: set window, too"):
        inferencer(large, overlap=32)
    with pytest.raises(ConfigError, match="keep_queries=True keeps the masks of whole images"):
        inferencer(large, window=128, keep_queries=True)
