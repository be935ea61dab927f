"""Metrics of subsets equal those of the original tools, restricted to the classes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from odise_mm.evaluation.base import DatasetMetric
from odise_mm.registry import METRICS
from odise_mm.vocabulary import Vocabulary
from tests.support import make
from tests.test_evaluation.test_instance_ap import CLASSES, KEYS, samples, stock
from tests.test_evaluation.test_panoptic_quality import DATA, coco_samples


def metric_of(
    classes: Vocabulary, subsets: dict[str, tuple[int, ...]] | None, **cfg: str
) -> DatasetMetric:
    metric = METRICS.build(cfg)
    metric.dataset_meta = dict(vocabulary=classes, subsets=subsets)
    return metric


def check_all(metric: DatasetMetric, numbers: dict[str, float], names: tuple[str, ...]) -> None:
    """Check that the subset "all" has the results of the dataset."""
    for name in names:
        whole = numbers[f"{metric.prefix}/{name}"]
        assert numbers[f"{metric.prefix}/all/{name}"] == pytest.approx(whole, abs=1e-9, nan_ok=True)
    assert 1 < numbers[f"{metric.prefix}/{names[0]}"] < 99


@pytest.mark.parametrize("which", ["pred_a", "pred_b"])
def test_panoptic_quality_of_subsets_equals_panopticapi(which: str) -> None:
    """Compare with panopticapi's per-class results."""
    expected = json.loads((DATA / f"{which}_expected.json").read_text())
    classes, items, ids = coco_samples(which)
    seen = {info["label"] for item in items for info in item["segments_info"]}
    seen |= {s["category_id"] for i in items for s in i["pred_panoptic_seg"]["segments_info"]}
    absent = next(label for label in range(len(classes)) if label not in seen)
    subsets = dict(
        all=tuple(range(len(classes))),
        things=tuple(i for i, thing in enumerate(classes.is_thing) if thing),
        stuff=tuple(i for i, thing in enumerate(classes.is_thing) if not thing),
        novel=(absent, ids.index(8), ids.index(187)),
        absent=(absent,),
    )
    metric = metric_of(classes, subsets, type="PanopticQuality")
    metric.process(None, items)
    numbers = metric.evaluate(len(items))
    check_all(metric, numbers, ("PQ", "SQ", "RQ"))
    assert len(numbers) == 9 + 3 * len(subsets)
    for name in ("PQ", "SQ", "RQ"):
        for subset, group in (("all", "All"), ("things", "Things"), ("stuff", "Stuff")):
            value = 100 * expected[group][name.lower()]
            assert numbers[f"panoptic/{subset}/{name}"] == pytest.approx(value, abs=1e-9)
        one, two = (100 * expected["per_class"][c][name.lower()] for c in ("8", "187"))
        assert numbers[f"panoptic/novel/{name}"] == pytest.approx((one + two) / 2, abs=1e-9)
        assert math.isnan(numbers[f"panoptic/absent/{name}"])


@pytest.mark.parametrize("source", ["file", "panoptic"])
def test_ap_of_subsets_equals_pycocotools(tmp_path: Path, source: str) -> None:
    items = samples(tmp_path)
    path = tmp_path / "instances.json"
    make.instance_file(path, items, CLASSES)
    engine = stock(path, make.coco_results(items, CLASSES))
    # class 3 is stuff and has no objects
    subsets = dict(all=(0, 1, 2, 3, 4), novel=(0, 3, 4), base=(2,), stuff=(1, 3))
    cfg = dict(ann_file=str(path)) if source == "file" else {}
    metric = metric_of(CLASSES, subsets, type="InstanceAP", **cfg)
    metric.process(None, items)
    numbers = metric.evaluate(len(items))
    check_all(metric, numbers, KEYS)
    for subset, labels in (("novel", (0, 4)), ("base", (2,))):
        engine.params.catIds = [900 - 7 * label for label in labels]  # as make.instance_file
        engine.evaluate()
        engine.accumulate()
        engine.summarize()
        for key, value in zip(KEYS, engine.stats, strict=False):
            assert numbers[f"instance/{subset}/{key}"] == pytest.approx(100 * value, abs=1e-9), key
    assert numbers["instance/novel/AP"] != pytest.approx(numbers["instance/base/AP"], abs=0.1)
    assert all(math.isnan(numbers[f"instance/stuff/{key}"]) for key in KEYS)


def test_iou_of_subsets(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    classes = make.vocabulary(6)
    truth = rng.integers(4, size=(40, 50))  # class 4 occurs only in the result, class 5 nowhere
    found = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(5, size=truth.shape))
    truth[rng.random(truth.shape) < 0.1] = 255
    Image.fromarray(truth.astype(np.uint8)).save(tmp_path / "a.png")
    subsets = dict(all=tuple(range(6)), novel=(1, 4, 5), base=(0, 2, 3), absent=(5,))
    metric = metric_of(classes, subsets, type="SemanticIoU")
    result = dict(sem_seg=torch.from_numpy(found)[None])
    metric.process(None, [dict(sem_seg_path=str(tmp_path / "a.png"), pred_sem_seg=result)])
    numbers = metric.evaluate(1)
    check_all(metric, numbers, ("mIoU", "mAcc"))
    found = np.where(truth == 255, 255, found)
    both = [((truth == k) & (found == k)).sum() for k in range(5)]
    iou = [100 * both[k] / ((truth == k) | (found == k)).sum() for k in range(5)]
    acc = [100 * both[k] / (truth == k).sum() for k in range(4)]
    assert iou[4] == 0  # only in the result
    expected = {
        "semantic/novel/mIoU": (iou[1] + iou[4]) / 2,
        "semantic/novel/mAcc": acc[1],
        "semantic/base/mIoU": (iou[0] + iou[2] + iou[3]) / 3,
        "semantic/base/mAcc": (acc[0] + acc[2] + acc[3]) / 3,
    }
    assert {key: numbers[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert math.isnan(numbers["semantic/absent/mIoU"])
    assert math.isnan(numbers["semantic/absent/mAcc"])
    assert {key.rsplit("/", 1)[0] for key in numbers} == {
        "semantic", *(f"semantic/{subset}" for subset in subsets)
    }  # fmt: skip


def test_no_subsets_without_per_class_values(tmp_path: Path) -> None:
    items = samples(tmp_path, 2)
    metric = metric_of(CLASSES, dict(novel=(0, 2)), type="AverageRecall")
    metric.process(None, items)
    assert set(metric.evaluate(2)) == {"proposals/AR@100"}


def test_metric_names_do_not_depend_on_the_results(tmp_path: Path) -> None:
    """Logs and the selection of checkpoints rely on the names."""
    (item,) = samples(tmp_path, 1)
    shape = make.read_ids(item).shape
    empty = dict(masks=torch.zeros(0, *shape).bool(), labels=torch.zeros(0).long())
    item.update(segments_info=[], pred_instances=dict(empty, scores=torch.zeros(0)))
    Image.new("RGB", shape[::-1]).save(item["seg_map_path"])
    metric = metric_of(CLASSES, dict(novel=(0, 2)), type="InstanceAP")
    metric.process(None, [item])
    numbers = metric.evaluate(1)
    assert {key for key in numbers if "novel" in key} == {f"instance/novel/{key}" for key in KEYS}
    assert all(math.isnan(value) for value in numbers.values())


@pytest.mark.parametrize("subsets", [None, {}])
def test_without_subsets_results_are_unchanged(subsets: dict | None, tmp_path: Path) -> None:
    metric = metric_of(CLASSES, subsets, type="SemanticIoU")
    metric.process(None, samples(tmp_path, 1))
    assert set(metric.evaluate(1)) == {"semantic/mIoU", "semantic/mAcc", "semantic/aAcc"}
