"""AP and average recall equal pycocotools', from files and from panoptic ground truth."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from odise_mm.annotations.masks import to_rle
from odise_mm.annotations.panoptic_io import write_panoptic_png
from odise_mm.errors import ConfigError, DatasetError
from odise_mm.evaluation.instance_ap import MaskMetric
from odise_mm.registry import METRICS
from odise_mm.vocabulary import Vocabulary
from tests.support import make

CLASSES = make.vocabulary(5)
KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def metric_of(classes: Vocabulary = CLASSES, **cfg: Any) -> MaskMetric:
    metric = METRICS.build(cfg)
    metric.dataset_meta = dict(vocabulary=classes)
    return metric


def samples(folder: Path, count: int = 8) -> list[dict[str, Any]]:
    """Make images of two sizes with small, medium and large things, and unsorted ids."""
    rng = np.random.default_rng(count)
    shapes = [(160, 200), (40, 50)]
    ids = [31, 4, 159, 2, 65, 35, 89, 79][:count]
    return [
        make.sample(folder, img_id, rng, CLASSES, shapes[i % 2], [14, 14, 3][i % 3])
        for i, img_id in enumerate(ids)
    ]


def stock(path: Path, results: list[dict], classes: int = 1, max_dets: int = 100) -> COCOeval:
    """Evaluate with pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        engine = COCOeval(truth, truth.loadRes(results), "segm")
        engine.params.useCats = classes
        engine.params.maxDets = [1, 2, max_dets]
        engine.evaluate()
        engine.accumulate()
        engine.summarize()
    return engine


@pytest.mark.parametrize("source", ["file", "panoptic"])
def test_ap_equals_pycocotools(tmp_path: Path, source: str, capsys: pytest.CaptureFixture) -> None:
    items = samples(tmp_path)
    path = tmp_path / "instances.json"
    make.instance_file(path, items, CLASSES)
    engine = stock(path, make.coco_results(items, CLASSES))
    capsys.readouterr()
    metric = metric_of(type="InstanceAP", ann_file=str(path) if source == "file" else None)
    metric.process(None, items[:4])
    metric.process(None, items[4:])
    numbers = metric.evaluate(len(items))
    assert capsys.readouterr().out == ""
    for key, value in zip(KEYS, engine.stats, strict=False):
        assert numbers[f"instance/{key}"] == pytest.approx(100 * value, abs=1e-9), key
    assert 5 < numbers["instance/AP"] < 95 and len(numbers) == 6
    for place, category in enumerate(engine.params.catIds):
        precision = engine.eval["precision"][:, :, place, 0, 2]
        ours = metric.per_class[f"c{(900 - category) // 7}"]["AP"]
        assert ours == pytest.approx(100 * precision.mean(), abs=1e-9)
    assert metric.per_class.keys() == {"c0", "c2", "c4"}


@pytest.mark.parametrize("max_dets", [3, 100])
@pytest.mark.parametrize("source", ["file", "panoptic"])
def test_recall_equals_pycocotools(tmp_path: Path, source: str, max_dets: int) -> None:
    items = samples(tmp_path)
    path = tmp_path / "instances.json"
    make.instance_file(path, items, CLASSES)
    results = [one | dict(category_id=900) for one in make.coco_results(items, CLASSES)]
    engine = stock(path, results, classes=0, max_dets=max_dets)
    cfg = dict(type="AverageRecall", max_dets=max_dets)
    metric = metric_of(**cfg, ann_file=str(path) if source == "file" else None)
    metric.process(None, items)
    expected = 100 * engine.eval["recall"][:, 0, 0, 2].mean()
    assert metric.evaluate(8) == {f"proposals/AR@{max_dets}": pytest.approx(expected, abs=1e-9)}
    assert 5 < expected < 95 and metric.per_class == {}


def test_recall_ignores_classes_of_files_and_counts_things_of_maps(
    tmp_path: Path,
) -> None:
    (item,) = samples(tmp_path, 1)
    path = tmp_path / "instances.json"
    content = make.instance_file(path, [item], CLASSES)
    for category in content["categories"]:
        category["name"] += " of another dataset"
    path.write_text(json.dumps(content))
    ids = make.read_ids(item)
    perfect = np.array([ids == info["id"] for info in item["segments_info"] if info["is_thing"]])
    n = len(perfect)
    found = dict(
        masks=torch.from_numpy(perfect), labels=torch.zeros(n, dtype=int), scores=torch.ones(n)
    )
    item["pred_instances"] = found
    one = Vocabulary((("object",),), (True,))
    for cfg in (dict(ann_file=str(path)), {}):
        everything = [info | dict(label=0) for info in item["segments_info"]]
        metric = metric_of(one, type="AverageRecall", **cfg)
        metric.process(None, [item | dict(segments_info=everything)])
        assert metric.evaluate(1) == {"proposals/AR@100": 100}
    everything = [info | dict(label=0, is_thing=True) for info in item["segments_info"]]
    metric.process(None, [item | dict(segments_info=everything)])
    counted = sum(not info["is_crowd"] for info in everything)
    things = sum(info["is_thing"] and not info["is_crowd"] for info in item["segments_info"])
    assert metric.evaluate(1)["proposals/AR@100"] == pytest.approx(100 * things / counted)


def test_all_mask_formats_are_equivalent() -> None:
    mask = np.zeros((6, 9), np.uint8)
    mask[1:4, 2:7] = 1
    code = mask_utils.encode(np.asfortranarray(mask))
    flat = mask.T.reshape(-1)
    counts = [len(list(run)) for run in np.split(flat, np.flatnonzero(np.diff(flat)) + 1)]
    forms = [
        [[2, 1, 7, 1, 7, 4, 2, 4]],
        [[2, 1, 5, 1, 5, 4, 2, 4], [4, 1, 7, 1, 7, 4, 4, 4]],
        dict(size=[6, 9], counts=counts),
        dict(size=[6, 9], counts=code["counts"].decode()),
        code,
    ]
    for form in forms:
        assert np.array_equal(mask_utils.decode(to_rle(form, (6, 9))), mask), form


def test_no_results_and_no_objects(tmp_path: Path) -> None:
    items = samples(tmp_path, 2)
    for item in items:
        empty = {key: value[:0] for key, value in item["pred_instances"].items()}
        item["pred_instances"] = empty
    metric = metric_of(type="InstanceAP")
    metric.process(None, items)
    numbers = metric.evaluate(2)
    assert numbers["instance/AP"] == 0 and metric.per_class["c0"]["AP"] == 0
    for item in items:
        write_panoptic_png(item["seg_map_path"], np.full(empty["masks"].shape[1:], 9))
        if item is items[1]:
            write_panoptic_png(item["seg_map_path"], np.zeros((40, 50), int))
        item["segments_info"] = []
    write_panoptic_png(items[0]["seg_map_path"], np.zeros((160, 200), int))
    for cfg in ("InstanceAP", "AverageRecall"):
        metric = metric_of(type=cfg)
        metric.process(None, items)
        assert all(np.isnan(value) for value in metric.evaluate(2).values())
        assert metric.per_class == {}


def test_only_run_length_codes_are_kept(tmp_path: Path) -> None:
    (item,) = samples(tmp_path, 1)
    metric = metric_of(type="InstanceAP")
    metric.process(None, [item])
    masks = len(metric.results[0].results) + len(metric.results[0].truths)
    assert masks > 10
    assert len(pickle.dumps(metric.results)) < 400 * masks < 160 * 200 * masks / 8
    metric.evaluate(1)
    assert metric.results == []


@pytest.mark.parametrize("kind", ["InstanceAP", "AverageRecall"])
def test_bad_input_is_named(tmp_path: Path, kind: str) -> None:
    items = samples(tmp_path, 2)
    path = tmp_path / "instances.json"

    def run(given: list[dict], **changes: Any) -> None:
        path.write_text(json.dumps(make.instance_file(path, items, CLASSES) | changes))
        metric = metric_of(type=kind, ann_file=str(path))
        metric.process(None, given)
        metric.evaluate(len(given))

    content = make.instance_file(path, items, CLASSES)
    with pytest.raises(DatasetError, match=r"instances\.json: image id 77 was evaluated, but"):
        run([items[0] | dict(img_id=77)])
    with pytest.raises(DatasetError, match=r"2\.jpg: .* needs its img_id"):
        run([items[0] | dict(img_id=None, img_path="2.jpg")])
    with pytest.raises(DatasetError, match="image id 31 was evaluated more than once"):
        run([items[0], items[0]])
    with pytest.raises(
        DatasetError, match="image id 31: the ground truth has 7 x 200 .* 160 x 200"
    ):
        small = [content["images"][0] | dict(height=7), content["images"][1]]
        run(items, images=small, annotations=[])
    with pytest.raises(DatasetError, match=r"size \[160, 200\], but its image has \[7, 200\]"):
        run(items, images=[content["images"][0] | dict(height=7), content["images"][1]])
    with pytest.raises(DatasetError, match=r"instances\.json: annotation 1 has no `area`"):
        run(
            items, annotations=[{k: v for k, v in content["annotations"][0].items() if k != "area"}]
        )
    for mask, message in (
        ([], ".*annotation 1 of image 31, have no usable mask"),
        (None, ".*annotation 1 of image 31, have no usable mask"),
        ([[1, 2]], ".*annotation 1 of image 31, have no usable mask: .* fewer than 3 points"),
        ("text", 'annotation 1 of image 31: its mask is "text"'),
    ):
        with pytest.raises(DatasetError, match=rf"instances\.json: {message}"):
            run(items, annotations=[content["annotations"][0] | dict(segmentation=mask)])
    with pytest.raises(DatasetError, match=r"instances\.json: image id 31 appears more than once"):
        run(items, images=[content["images"][0]] * 2)
    if kind == "InstanceAP":
        unknown = [c | dict(name="gnu") if c["id"] == 900 else c for c in content["categories"]]
        with pytest.raises(DatasetError, match=r"instances\.json: unknown .* 900 \(gnu\)"):
            run(items, categories=unknown)
    wrong = items[0]["pred_instances"] | dict(
        labels=torch.full_like(items[0]["pred_instances"]["labels"], 5)
    )
    with pytest.raises(ConfigError, match="class index 5, .* 5 classes"):
        run([items[0] | dict(pred_instances=wrong)])
    wrong = items[0]["pred_instances"] | dict(scores=items[0]["pred_instances"]["scores"] * np.nan)
    with pytest.raises(ValueError, match=r"31\.jpg: a score of the result is not a finite"):
        run([items[0] | dict(pred_instances=wrong)])
    with pytest.raises(ConfigError, match="needs pred_instances, which .*instance=True"):
        run([items[0] | dict(pred_instances=None)])
    path.unlink()
    with pytest.raises(DatasetError, match=r"instances\.json: no such annotation file"):
        metric_of(type=kind, ann_file=str(path)).process(None, items)
    write_panoptic_png(items[0]["seg_map_path"], np.zeros((4, 4), int))
    with pytest.raises(DatasetError, match=r"31\.png: the ground truth has 4 x 4"):
        metric_of(type=kind).process(None, [items[0] | dict(segments_info=[])])
