"""Maps of segments in training pipelines, compared with one mask per segment and with Pillow."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from PIL import Image

from odise_mm.annotations.panoptic_io import write_panoptic_png
from odise_mm.datasets import PanopticDataset
from odise_mm.datasets.seeding import random_numbers_of
from odise_mm.errors import ConfigError, DatasetError
from odise_mm.registry import DATASETS, TRANSFORMS
from tests.support.small_coco import SmallCoco, write_small_coco

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def coco(tmp_path: Path) -> SmallCoco:
    return write_small_coco(tmp_path / "coco")


def build(coco: SmallCoco, pipeline: list[dict], **changes: Any) -> PanopticDataset:
    return DATASETS.build(coco.config(pipeline=pipeline, **changes))


LOAD = [dict(type="LoadImage"), dict(type="LoadPanopticMap")]


def scene(rng: np.random.Generator, height: int, width: int, count: int) -> tuple:
    """Return an image and a map of ``count`` patches with holes."""
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    rows, columns = -(-height // 5), -(-width // 5)
    coarse = rng.integers(0, count + 1, (rows, columns))
    numbers = np.kron(coarse, np.ones((5, 5), int))[:height, :width]
    return image, numbers.astype(np.int32), rng.integers(0, 1500, count)


def jitter(size: int) -> list[dict]:
    return [
        dict(type="LargeScaleJitter", scale=(size, size), ratio_range=(0.1, 2.0)),
        dict(type="mmdet.RandomCrop", crop_size=(size, size)),
        dict(type="mmdet.Pad", size=(size, size), pad_val=dict(img=(128, 128, 128), seg=0)),
    ]


def run(steps: list[dict], results: dict, seed: int) -> dict:
    with random_numbers_of(seed):
        for step in steps:
            results = TRANSFORMS.build(step)(results)
    return results


def equal_to_masks(done: dict, expected: list[np.ndarray], labels: np.ndarray) -> None:
    left = [index for index, mask in enumerate(expected) if mask.any()]
    assert done["gt_bboxes_labels"].tolist() == labels[left].tolist()
    assert done["gt_masks"].masks.shape == (len(left), *expected[0].shape)
    assert np.array_equal(done["gt_masks"].masks, np.stack(expected)[left])
    assert "gt_seg_map" not in done and "gt_segment_labels" not in done


@pytest.mark.parametrize("seed", range(12))
def test_jitter_of_a_map_equals_jitter_of_masks(seed: int) -> None:
    """Compare with mmdet's transforms, applied to one mask after the other."""
    rng = np.random.default_rng(seed)
    image, numbers, labels = scene(rng, *rng.integers(20, 90, 2), 12)
    flip = dict(type="mmdet.RandomFlip", prob=0.5)
    theirs = dict(
        type="mmdet.RandomResize",
        resize_type="mmdet.Resize",
        scale=(48, 48),
        ratio_range=(0.1, 2.0),
        keep_ratio=True,
        backend="pillow",
    )
    results = dict(img=image, gt_seg_map=numbers, gt_segment_labels=labels)
    done = run([flip, *jitter(48), dict(type="PanopticMapToMasks")], results, seed)
    expected = []
    for number in range(1, 13):
        mask = dict(img=image, gt_seg_map=(numbers == number).astype(np.uint8))
        alone = run([flip, theirs, *jitter(48)[1:]], mask, seed)
        assert np.array_equal(alone["img"], done["img"])
        expected.append(alone["gt_seg_map"])
    equal_to_masks(done, expected, labels)


@pytest.mark.parametrize("seed", range(6))
def test_opencv_resize_equals_bitmap_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, numbers, labels = scene(rng, *rng.integers(20, 90, 2), 12)
    scale = tuple(int(v) for v in rng.integers(16, 120, 2))
    flip = dict(type="mmdet.RandomFlip", prob=1.0)
    ours = dict(type="ResizeKeepRatio", scale=scale, backend="cv2")
    theirs = dict(type="mmdet.Resize", scale=scale, keep_ratio=True, backend="cv2")
    results = dict(img=image, gt_seg_map=numbers, gt_segment_labels=labels)
    done = run([flip, ours, dict(type="PanopticMapToMasks")], results, seed)
    stack = np.stack([numbers == number for number in range(1, 13)]).astype(np.uint8)
    masks = run([flip, theirs], dict(img=image, gt_masks=BitmapMasks(stack, *numbers.shape)), seed)
    equal_to_masks(done, list(masks["gt_masks"].masks), labels)


@pytest.mark.parametrize("seed", range(8))
def test_large_scale_jitter_equals_pillow(seed: int) -> None:
    """Compare with Pillow; the factor is drawn first, then the position of the crop."""
    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in rng.integers(30, 120, 2))
    image, numbers, _ = scene(rng, height, width, 300)  # more than 8 bits can hold
    done = run(jitter(64), dict(img=image, gt_seg_map=numbers), seed)

    numpy_rng = np.random.RandomState(seed)
    box = int(64 * (0.1 + 1.9 * numpy_rng.random_sample()))
    size = tuple(int(side * (box / max(height, width)) + 0.5) for side in (width, height))
    with Image.fromarray(image) as pil:
        picture = np.asarray(pil.resize(size, Image.Resampling.BILINEAR))
    with Image.fromarray(numbers) as pil:
        assert pil.mode == "I"
        expected = np.asarray(pil.resize(size, Image.Resampling.NEAREST))
    top = numpy_rng.randint(0, max(size[1] - 64, 0) + 1)
    left = numpy_rng.randint(0, max(size[0] - 64, 0) + 1)
    canvas, labels = np.full((64, 64, 3), 128, np.uint8), np.zeros((64, 64), np.int32)
    picture, expected = (x[top : top + 64, left : left + 64] for x in (picture, expected))
    canvas[: picture.shape[0], : picture.shape[1]] = picture
    labels[: picture.shape[0], : picture.shape[1]] = expected
    assert np.array_equal(done["img"], canvas)
    assert np.array_equal(done["gt_seg_map"], labels) and done["gt_seg_map"].dtype == np.int32


@pytest.mark.parametrize("seed", range(30))
def test_crop_inside_the_jitter_equals_a_crop_behind_it(seed: int) -> None:
    """Bit by bit, with the same random numbers, for sizes on both sides of the crop's."""
    rng = np.random.default_rng(seed)
    image, numbers, _ = scene(rng, *(int(v) for v in rng.integers(1, 150, 2)), 300)
    resize, crop, pad = jitter(64)
    resize = {**resize, "scale": (90, 70)}
    outside = run([resize, crop], dict(img=image, gt_seg_map=numbers), seed)
    inside = run([{**resize, "crop_size": (64, 64)}], dict(img=image, gt_seg_map=numbers), seed)
    for key in ("img", "gt_seg_map"):
        assert np.array_equal(inside[key], outside[key]), key
        assert inside[key].dtype == outside[key].dtype
    for key in ("img_shape", "scale_factor", "scale", "keep_ratio"):
        assert inside[key] == outside[key], key


def test_crop_of_masks_needs_mmdets_transform() -> None:
    step = dict(type="LargeScaleJitter", scale=(64, 64), crop_size=(64, 64))
    with pytest.raises(ConfigError, match="does not crop gt_masks"):
        run([step], dict(img=np.zeros((9, 9, 3), np.uint8), gt_masks=None), 0)
    with pytest.raises(ConfigError, match="crop_size"):
        run([{**step, "crop_size": (0, 5)}], {}, 0)


@pytest.mark.parametrize("fill", [dict(), dict(pad_val=dict(seg=0)), dict(pad_val=dict(seg=255))])
def test_padding_is_not_a_segment(fill: dict, tmp_path: Path) -> None:
    """mmdet pads maps with 255 by default; an image may have more segments than that."""
    ids = np.arange(1, 301).reshape(15, 20)
    write_panoptic_png(tmp_path / "many.png", ids)
    segments = [dict(id=i, label=i % 7, is_thing=True, is_crowd=i == 9) for i in range(1, 301)]
    item = dict(
        img=np.zeros((15, 20, 3), np.uint8),
        img_path="many.jpg",
        seg_map_path=str(tmp_path / "many.png"),
        segments_info=segments,
    )
    steps = [
        dict(type="LoadPanopticMap"),
        dict(type="mmdet.Pad", size=(30, 30), **fill),
        dict(type="PanopticMapToMasks"),
    ]
    done = run(steps, item, 0)
    masks = done["gt_masks"].masks
    expected = [i for i in range(1, 301) if i != 9]
    assert done["gt_bboxes_labels"].tolist() == [i % 7 for i in expected]
    assert masks.shape == (299, 30, 30) and masks.sum() == 299
    for mask, number in zip(masks, expected, strict=True):
        assert mask[divmod(number - 1, 20)] == 1


def test_the_range_of_large_scale_jitter() -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    step = dict(type="LargeScaleJitter", scale=(200, 200))
    factors = [run([step], dict(img=image), seed)["scale_factor"][0] / 5 for seed in range(400)]
    assert 0.09 < min(factors) < 0.12 and 1.97 < max(factors) <= 2
    assert np.mean(factors) == pytest.approx(1.05, abs=0.08)  # uniform from 0.1 to 2


def test_pipeline_of_the_coco_config(coco: SmallCoco) -> None:
    """Run the config's pipeline at full size: check shapes and types, and that crowds are gone."""
    cfg = Config.fromfile(ROOT / "configs/_base_/datasets/coco.py")
    dataset = build(coco, cfg.train_pipeline)
    for index, labels in enumerate(([0, 2, 1, 1, 3], [0, 2, 1, 1, 3], [0, 2, 1, 1])):
        for seed in range(4):
            with random_numbers_of(seed):
                item = dataset[index]
            sample = item["data_samples"]
            assert item["inputs"].shape == (3, 1024, 1024)
            assert item["inputs"].dtype == torch.uint8
            assert set(sample.gt_instances.labels.tolist()) <= set(labels)
            assert sample.gt_instances.masks.masks.shape == (len(sample.gt_instances), 1024, 1024)
            assert sample.gt_instances.masks.masks.sum(axis=0).max() == 1, "no pixel is in two"
            assert sample.metainfo["words"] == [] and sample.metainfo["img_shape"] == (1024, 1024)
            assert "gt_sem_seg" not in sample


@pytest.mark.parametrize("shape", [(1, 900), (900, 1)])
def test_extreme_strips(shape: tuple[int, int]) -> None:
    numbers = np.full(shape, 700, np.int32)
    results = dict(img=np.zeros((*shape, 3), np.uint8), gt_seg_map=numbers)
    done = run([dict(type="ResizeKeepRatio", scale=(64, 64))], results, 0)
    assert done["gt_seg_map"].shape == done["img"].shape[:2] and min(done["img"].shape[:2]) == 1
    assert (done["gt_seg_map"] == 700).all()


def test_numbers_of_segments(coco: SmallCoco) -> None:
    dataset = build(coco, LOAD)
    for index, image_id in enumerate((7, 3, 25)):
        item = dataset[index]
        expected = np.where(coco.maps[image_id] > 0, coco.maps[image_id] % 1000, 0)
        if image_id == 25:
            expected[expected == 5] = 0  # a crowd
        assert np.array_equal(item["gt_seg_map"], expected)
        assert item["gt_seg_map"].dtype == np.int32
        assert item["gt_segment_labels"].tolist() == [0, 2, 1, 1, 3][: expected.max()]


def test_an_image_with_only_void(coco: SmallCoco) -> None:
    """A crop in training may be void; the image is kept, without masks."""
    results = dict(gt_seg_map=np.zeros((6, 9), np.int32), gt_segment_labels=np.array([4, 2]))
    done = run([dict(type="PanopticMapToMasks")], results, 0)
    assert done["gt_masks"].masks.shape == (0, 6, 9) and done["gt_bboxes_labels"].shape == (0,)


def test_maps_that_do_not_match_raise(coco: SmallCoco) -> None:
    dataset = build(coco, LOAD)
    first, second, third = (coco.png(image_id) for image_id in (7, 3, 25))
    write_panoptic_png(first, coco.maps[7][:-1])
    with pytest.raises(DatasetError, match=f"{first} has 40 x 23 .* image .*7.jpg has 40 x 24"):
        dataset[0]
    for strange in (1, 77_006, 16_777_215):  # smaller than, between and larger than the known ids
        changed = coco.maps[7].copy()
        changed[0, :3] = strange
        write_panoptic_png(first, changed)
        with pytest.raises(
            DatasetError, match=rf"{first} has a segment with id {strange} .3 pixels"
        ):
            dataset[0]
    changed = np.where(coco.maps[3] == 73_003, 73_001, coco.maps[3])
    write_panoptic_png(second, changed)
    with pytest.raises(DatasetError, match=f"{second} has no pixels of segment 73003"):
        dataset[1]
    Image.new("L", (33, 33)).save(third)
    with pytest.raises(DatasetError, match=f"{third}: a panoptic PNG must be RGB"):
        dataset[2]
    third.write_bytes(b"no png")
    with pytest.raises(DatasetError, match=f"{third}: not a readable panoptic PNG"):
        dataset[2]
    third.unlink()
    with pytest.raises(DatasetError, match=f"{third}: no such panoptic PNG"):
        dataset[2]


def words(captions: list[list[str]] | None, seed: int, num_words: int = 8) -> list[str]:
    results = {} if captions is None else dict(captions_phrases=captions)
    return run([dict(type="DrawWords", num_words=num_words)], results, seed)["words"]


def test_words_are_drawn_from_one_caption_with_replacement() -> None:
    captions = [["a", "b", "c"], ["x"], []]
    drawn = [words(captions, seed) for seed in range(600)]
    kinds = {"abc": 0, "x": 0, "": 0}
    for each in drawn:
        (kind,) = [k for k in kinds if (not each and not k) or (each and set(each) <= set(k))]
        kinds[kind] += 1
    assert all(150 < count < 250 for count in kinds.values()), "one caption of three, at random"
    first = [each for each in drawn if set(each) <= set("abc") and each]
    assert all(len(each) == 8 and max(map(each.count, each)) > 1 for each in first)
    share = sum(each.count("b") for each in first) / (8 * len(first))
    assert share == pytest.approx(1 / 3, abs=0.05)
    assert words(captions, 3) == words(captions, 3)
    assert len(words([["a"]], 0, num_words=5)) == 5
    with pytest.raises(ValueError, match="num_words"):
        TRANSFORMS.build(dict(type="DrawWords", num_words=0))


def test_without_captions_there_are_no_words() -> None:
    assert words(None, 0) == words([], 0) == words([[]], 0) == []


def test_random_states_are_restored() -> None:
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.random(), random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    before = random.random(), np.random.random()
    with random_numbers_of(7):
        inside = random.random(), np.random.random()
    with pytest.raises(ZeroDivisionError), random_numbers_of(8):
        1 / 0  # noqa: B018
    assert (*before, random.random(), np.random.random()) == expected
    with random_numbers_of(7):
        assert (random.random(), np.random.random()) == inside


def test_instances_become_a_map_with_small_ones_on_top() -> None:
    """Overlapping boxes, one hidden, one crowd: the smaller is on top, the crowd at the bottom."""

    def box(x: int, y: int, w: int, h: int, label: int, ignored: bool = False) -> dict:
        ring = [x, y, x + w, y, x + w, y + h, x, y + h]
        return dict(mask=[ring], bbox_label=label, ignore_flag=int(ignored))

    boxes = [box(4, 4, 2, 2, 7), box(2, 2, 8, 8, 5), box(0, 0, 20, 16, 3, ignored=True)]
    hidden = [box(12, 2, 4, 4, 6), box(12, 2, 4, 2, 8), box(12, 4, 4, 2, 9)]
    results = dict(
        img=np.zeros((16, 20, 3), np.uint8),
        img_path="a.jpg",
        height=16,
        width=20,
        instances=boxes + hidden,
    )
    found = TRANSFORMS.build(dict(type="LoadPanopticMap"))(dict(results))
    expected = np.zeros((16, 20), np.int32)
    expected[2:10, 2:10], expected[4:6, 4:6] = 2, 1
    expected[2:4, 12:16], expected[4:6, 12:16] = 3, 4
    assert (found["gt_seg_map"] == expected).all()
    assert found["gt_segment_labels"].tolist() == [7, 5, 8, 9]
    with pytest.raises(DatasetError, match="annotations are for 21 x 16"):
        TRANSFORMS.build(dict(type="LoadPanopticMap"))({**results, "width": 21})
    with pytest.raises(DatasetError, match="no annotations to train on"):
        TRANSFORMS.build(dict(type="LoadPanopticMap"))(dict(img=results["img"]))


def test_classes_of_a_label_map_become_segments(tmp_path: Path) -> None:
    labels = np.full((6, 300), 255, np.uint8)
    labels[:2], labels[4:, :7] = 2, 0
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.fromarray(labels).save(tmp_path / "labels/a.png")
    Image.fromarray(np.stack([labels] * 3, -1)).save(tmp_path / "images/a.jpg")
    (tmp_path / "names.txt").write_text("thing: car\nstuff: road\nstuff: sky\n")
    data = DATASETS.build(
        dict(
            type="SemanticDataset",
            vocabulary="names.txt",
            data_root=str(tmp_path),
            data_prefix=dict(img_path="images", seg_map_path="labels"),
            pipeline=LOAD,
        )
    )
    found = data[0]
    assert found["gt_segment_labels"].tolist() == [0, 2]
    assert (found["gt_seg_map"] == np.select([labels == 0, labels == 2], [1, 2], 0)).all()
