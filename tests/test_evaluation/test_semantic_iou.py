"""mIoU equals mmseg's, from all kinds of label files and from panoptic ground truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmseg.evaluation.metrics import IoUMetric
from PIL import Image

from odise_mm.annotations.ground_truth import read_semantic_truth
from odise_mm.annotations.label_maps import IGNORED
from odise_mm.errors import ConfigError, DatasetError
from odise_mm.evaluation import SemanticIoU
from odise_mm.evaluation.semantic_iou import count_areas
from odise_mm.registry import METRICS
from tests.support import make


def metric_of(num_classes: int) -> SemanticIoU:
    metric = METRICS.build(dict(type="SemanticIoU"))
    metric.dataset_meta = dict(vocabulary=make.vocabulary(num_classes))
    return metric


@pytest.mark.parametrize(("num_classes", "bits"), [(2, 8), (150, 8), (847, 16), (1500, 16)])
def test_results_equal_mmseg(tmp_path: Path, num_classes: int, bits: int) -> None:
    rng = np.random.default_rng(num_classes)
    ignored = 255 if bits == 8 else 65535
    metric = metric_of(num_classes)
    theirs = IoUMetric(ignore_index=ignored, prefix="semantic")
    theirs.dataset_meta = dict(classes=metric.vocabulary.source_names)
    for img_id in range(4):
        # Some classes occur nowhere, one only in the ground truth and one only in the result.
        truth = rng.integers(max(1, num_classes // 2), size=(40, 50))
        result = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(num_classes // 2))
        truth[0, 0], result[1, 1] = num_classes - 1, num_classes - 2
        truth[rng.random(truth.shape) < 0.1] = ignored
        path = tmp_path / f"{img_id}.png"
        Image.fromarray(truth.astype(np.uint8 if bits == 8 else np.uint16)).save(path)
        result = torch.from_numpy(result.astype(np.int32))[None]
        metric.process(None, [dict(sem_seg_path=str(path), pred_sem_seg=dict(sem_seg=result))])
        gt = torch.from_numpy(truth.astype(np.int32))[None]
        theirs.process(
            None, [dict(pred_sem_seg=dict(data=result), gt_sem_seg=dict(data=gt))]
        )  # fmt: skip
    results = [sum(parts) for parts in zip(*theirs.results, strict=True)]
    classes = IoUMetric.total_area_to_metrics(*results)
    numbers, expected = metric.evaluate(4), theirs.evaluate(4)
    assert numbers.keys() == expected.keys() == {f"semantic/{n}" for n in ("mIoU", "mAcc", "aAcc")}
    for name, value in expected.items():  # rounded by mmseg
        assert numbers[name] == pytest.approx(value, abs=0.005001)
    assert numbers["semantic/mIoU"] == pytest.approx(100 * np.nanmean(classes["IoU"]), rel=1e-5)
    for index, (iou, acc) in enumerate(zip(classes["IoU"], classes["Acc"], strict=True)):
        if np.isnan(iou):
            assert f"c{index}" not in metric.per_class
        else:
            ours = metric.per_class[f"c{index}"]
            assert ours == pytest.approx(dict(IoU=100 * iou, Acc=100 * acc), nan_ok=True)
    assert num_classes < 3 or len(metric.per_class) < num_classes


@pytest.mark.parametrize("mode", ["L", "P", "16"])
@pytest.mark.parametrize("reduce", [False, True])
def test_label_files(tmp_path: Path, mode: str, reduce: bool) -> None:
    ignored = 65535 if mode == "16" else 255
    raw = np.array([[0, 1, 2], [7, 8, ignored]], np.uint16 if mode == "16" else np.uint8)
    image = Image.fromarray(raw)
    if mode == "P":
        image.putpalette(list(range(255, -1, -1)) * 3)
    path = tmp_path / "a.png"
    image.save(path)
    with Image.open(path) as saved:
        assert saved.mode.startswith({"16": "I"}.get(mode, mode))
    labels, name = read_semantic_truth(dict(sem_seg_path=path, reduce_zero_label=reduce), 9)
    expected = [[IGNORED, 0, 1], [6, 7, IGNORED]] if reduce else [[0, 1, 2], [7, 8, IGNORED]]
    assert labels.tolist() == expected and name == str(path) and labels.dtype == np.int32


Lines = Callable[[], list[str]]


def truth_of(path: Path, numbers: np.ndarray, num_classes: int, reduce: bool = False) -> list:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(numbers).save(path)
    sample = dict(sem_seg_path=str(path), reduce_zero_label=reduce)
    return read_semantic_truth(sample, num_classes)[0].tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_black_and_white_maps_are_logged(dtype: type, tmp_path: Path, warnings: Lines) -> None:
    white = int(np.iinfo(dtype).max)
    numbers = np.array([[0, white], [white, white]], dtype)
    assert truth_of(tmp_path / "a" / "1.png", numbers, 2) == [[0, IGNORED], [IGNORED] * 2]
    (line,) = warnings()
    assert str(tmp_path / "a" / "1.png") in line and f"{white} means 'ignored'" in line
    assert "use 1 instead" in line
    # Only the first file of each folder is logged.
    truth_of(tmp_path / "a" / "2.png", numbers, 2)
    truth_of(tmp_path / "b" / "1.png", numbers, 5)
    assert len(warnings()) == 2 and str(tmp_path / "b" / "1.png") in warnings()[1]


@pytest.mark.parametrize("numbers", [[0, 1], [1, 255], [0, 1, 255], [0], [0, 0, 1, 2]])
def test_other_maps_are_not_logged(numbers: list[int], tmp_path: Path, warnings: Lines) -> None:
    truth_of(tmp_path / "a" / "1.png", np.array([numbers], np.uint8), 3)
    assert not warnings()


def test_maps_of_one_bit_have_two_classes(tmp_path: Path, warnings: Lines) -> None:
    bits = np.array([[False, True], [True, False]])
    assert truth_of(tmp_path / "a" / "1.png", bits, 2) == [[0, 1], [1, 0]]
    assert truth_of(tmp_path / "a" / "2.png", bits, 1, reduce=True) == [
        [IGNORED, 0], [0, IGNORED]
    ]  # fmt: skip
    assert not warnings()


@pytest.mark.parametrize(
    ("number", "reduce"), [(255, False), (255, True), (0, True)], ids=["255", "255 of 1", "0 of 1"]
)
def test_maps_with_only_ignored_pixels(
    number: int, reduce: bool, tmp_path: Path, warnings: Lines
) -> None:
    numbers = np.full((2, 2), number, np.uint8)
    truth_of(tmp_path / "a" / "1.png", numbers, 3, reduce)
    (line,) = warnings()
    assert f"1.png: every pixel is ignored (values: {number})" in line
    metric = metric_of(3)
    item = dict(sem_seg_path=str(tmp_path / "a" / "1.png"), reduce_zero_label=reduce)
    found = dict(sem_seg=torch.zeros(1, 2, 2, dtype=torch.int32))
    metric.process(None, [item | dict(pred_sem_seg=found)])
    assert np.isnan(metric.evaluate(1)["semantic/mIoU"])
    assert "all ground truth pixels are ignored" in warnings()[-1]


def test_class_255_of_256_is_not_ignored(tmp_path: Path) -> None:
    numbers = np.array([[0, 254, 255]])
    wide, narrow = tmp_path / "wide.png", tmp_path / "narrow.png"
    assert truth_of(wide, numbers.astype(np.uint16), 256) == numbers.tolist()
    with pytest.raises(DatasetError, match=r"narrow\.png: 255 is both a class .* needs 16 bits"):
        truth_of(narrow, numbers.astype(np.uint8), 256)
    metric = metric_of(256)
    found = dict(sem_seg=torch.tensor([[[0, 254, 0]]]))
    metric.process(None, [dict(sem_seg_path=wide, pred_sem_seg=found)])
    assert metric.evaluate(1)["semantic/aAcc"] == pytest.approx(200 / 3)
    assert metric.per_class["c255"] == dict(IoU=0, Acc=0)


def test_panoptic_ground_truth_includes_crowds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    classes = make.vocabulary(7)
    for img_id in range(5):
        item = make.sample(tmp_path, img_id, rng, classes)
        labels, path = read_semantic_truth(item, 7)
        ids = make.read_ids(item)
        expected = np.full(ids.shape, IGNORED)
        for info in item["segments_info"]:
            expected[ids == info["id"]] = info["label"]
        assert np.array_equal(labels, expected) and path == item["seg_map_path"]
        assert (expected == IGNORED).any()


def test_counts_beyond_float32_precision() -> None:
    large = np.zeros((4097, 4097), np.int32)
    assert count_areas(large, large, 2).tolist() == [[4097**2, 0]] * 3
    # This is why mmseg's histograms are not used.
    histogram = torch.histc(torch.zeros(4097**2), bins=2, min=0, max=1)
    assert int(histogram[0]) != 4097**2


def test_accuracy_of_classes_without_ground_truth_is_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 0]], np.uint8)).save(path)
    metric = metric_of(3)
    result = torch.tensor([[[0, 1]]])
    metric.process(None, [dict(sem_seg_path=path, pred_sem_seg=dict(sem_seg=result))])
    assert metric.evaluate(1) == {
        "semantic/mIoU": 25.0, "semantic/mAcc": 50.0, "semantic/aAcc": 50.0
    }  # fmt: skip
    assert metric.per_class["c0"] == dict(IoU=50, Acc=50)
    assert metric.per_class["c1"] == pytest.approx(dict(IoU=0, Acc=np.nan), nan_ok=True)
    assert "c2" not in metric.per_class


def test_bad_input_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    result = torch.zeros(1, 2, 2, dtype=torch.int32)

    def run(raw: np.ndarray, **changes: object) -> None:
        Image.fromarray(raw.astype(np.uint8)).save(path)
        item = dict(img_path="a.jpg", sem_seg_path=path, pred_sem_seg=dict(sem_seg=result))
        metric_of(3).process(None, [item | changes])

    with pytest.raises(DatasetError, match=r"a\.png: class index 3, .* 3 classes .*reduce_zero"):
        run(np.full((2, 2), 3))
    with pytest.raises(DatasetError, match=r"a\.png: .*one channel .* has mode RGB"):
        run(np.zeros((2, 2, 3)))
    with pytest.raises(DatasetError, match=r"a\.png: the ground truth has 2 x 3 .* has 2 x 2"):
        run(np.zeros((2, 3)))
    with pytest.raises(DatasetError, match=r"b\.png: no such label map"):
        run(np.zeros((2, 2)), sem_seg_path=tmp_path / "b.png")
    noise = np.random.default_rng(0).integers(256, size=(400, 400))
    Image.fromarray(noise.astype(np.uint8)).save(tmp_path / "b.png")
    start, _, end = (tmp_path / "b.png").read_bytes().rpartition(b"IDAT")
    (tmp_path / "b.png").write_bytes(start + b"\xf5\xcfp," + end)
    with pytest.raises(DatasetError, match=r"b\.png: not a readable label map"):
        run(np.zeros((2, 2)), sem_seg_path=tmp_path / "b.png")
    with pytest.raises(ConfigError, match=r"a\.jpg: .*class index 3, .* 3 classes"):
        run(np.zeros((2, 2)), pred_sem_seg=dict(sem_seg=result + 3))
    with pytest.raises(ConfigError, match="needs pred_sem_seg, which .*semantic=True"):
        run(np.zeros((2, 2)), pred_sem_seg=None)
    with pytest.raises(DatasetError, match="no panoptic ground truth"):
        run(np.zeros((2, 2)), sem_seg_path=None)
