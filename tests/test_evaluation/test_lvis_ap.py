"""LVIS AP equals an independent implementation on pixels, and recorded values of lvis-api 0.5.3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from odise_mm.errors import DatasetError
from odise_mm.evaluation import LVISInstanceAP
from odise_mm.registry import METRICS
from odise_mm.vocabulary import Vocabulary
from tests.support import make

SHAPE = (130, 140)
NUM_CLASSES = 9
AREAS = dict(AP=(0, 1e10), APs=(0, 1024), APm=(1024, 9216), APl=(9216, 1e10))
# From lvis-api 0.5.3 (LVISEval, "segm") on the data of `federated(0)`, with np.float replaced by
# float, because numpy 1.24 removed it.
RECORDED = dict(
    AP=14.982644208891656,
    AP50=26.16733434697584,
    AP75=15.817726853794747,
    APs=15.027399103481054,
    APm=26.716171617161717,
    APl=27.578382838283833,
    APr=21.76345519167301,
    APc=8.799747839265553,
    APf=18.70596537987223,
)


def federated(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make LVIS annotations and results; the values are the same with every version of numpy.

    Returns:
        The JSON file's content; per image labels, scores and boxes (y0, y1, x0, x1).
    """
    # NumPy guarantees that RandomState's numbers never change.
    rng = np.random.RandomState(seed)
    images, annotations, found = [], [], []
    for number in range(14):
        img_id = 1000 - 13 * number
        classes = rng.permutation(NUM_CLASSES)
        positive, negative = classes[:3], classes[3:6]
        images.append(
            dict(
                id=img_id,
                height=SHAPE[0],
                width=SHAPE[1],
                neg_category_ids=[int(c) + 1 for c in negative],
                not_exhaustive_category_ids=[int(c) + 1 for c in classes[2:4]],
            )
        )
        labels, scores, boxes = [], [], []
        for label in positive:
            for _ in range(rng.randint(1, 4)):
                size = int(rng.choice([12, 50, 110]))
                y, x = rng.randint(0, SHAPE[0] - size), rng.randint(0, SHAPE[1] - size)
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=img_id,
                        category_id=int(label) + 1,
                        area=size * size,
                        bbox=[x, y, size, size],
                        segmentation=[[x, y, x + size, y, x + size, y + size, x, y + size]],
                    )
                )
                for _ in range(rng.randint(0, 3)):
                    off = rng.randint(-size // 8, size // 8 + 1, 4)
                    y0, y1, x0, x1 = np.array([y, y + size, x, x + size]) + off
                    boxes.append([max(y0, 0), min(y1, SHAPE[0]), max(x0, 0), min(x1, SHAPE[1])])
                    labels.append(label if rng.rand() < 0.8 else rng.randint(NUM_CLASSES))
        for _ in range(330 if number == 5 else 4):  # more than 300 in one image
            y, x = rng.randint(0, SHAPE[0] - 12), rng.randint(0, SHAPE[1] - 12)
            boxes.append([y, y + 12, x, x + 12])
            labels.append(rng.randint(NUM_CLASSES))
        scores = rng.permutation(len(labels)) / 400 + number / 1e5  # no ties
        if number == 5:
            scores[:6] = 0.0  # outside the first 300
        found.append(
            dict(
                img_id=img_id,
                labels=np.array(labels),
                scores=scores.astype(np.float32),
                boxes=np.array(boxes),
            )
        )
    categories = [
        dict(id=i + 1, name=f"c{i}", frequency="rrccccfff"[i]) for i in range(NUM_CLASSES)
    ]
    return dict(images=images, annotations=annotations, categories=categories), found


def draw(box: np.ndarray) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[box[0] : box[1], box[2] : box[3]] = True
    return mask


def samples(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        dict(
            img_id=one["img_id"],
            pred_instances=dict(
                masks=torch.from_numpy(np.array([draw(box) for box in one["boxes"]])),
                labels=torch.from_numpy(one["labels"]),
                scores=torch.from_numpy(one["scores"]),
            ),
        )
        for one in found
    ]


def metric_of(path: Path, classes: Vocabulary | None = None) -> LVISInstanceAP:
    metric = METRICS.build(dict(type="LVISInstanceAP", ann_file=str(path)))
    metric.dataset_meta = dict(vocabulary=classes or make.vocabulary(NUM_CLASSES))
    return metric


def class_ap(
    content: dict[str, Any], found: list[dict], label: int, threshold: float, area: tuple
) -> float | None:
    """Compute AP of one class at one IoU from its definition, on pixel masks."""
    outcomes, objects = [], 0
    for image in content["images"]:
        truths = [
            (draw(np.array([b[1], b[1] + b[3], b[0], b[0] + b[2]])), a["area"])
            for a in content["annotations"]
            if a["image_id"] == image["id"] and a["category_id"] == label + 1
            for b in [a["bbox"]]
        ]
        counts = [area[0] <= size <= area[1] for _, size in truths]
        objects += sum(counts)
        if not truths and label + 1 not in image["neg_category_ids"]:
            continue
        (one,) = (f for f in found if f["img_id"] == image["id"])
        best = np.argsort(-one["scores"])[:300]
        free = set(range(len(truths)))
        for i in best:
            if one["labels"][i] != label:
                continue
            mask = draw(one["boxes"][i])
            iou = {
                j: (mask & truths[j][0]).sum() / (mask | truths[j][0]).sum() for j in sorted(free)
            }
            good = [j for j in iou if iou[j] >= threshold]
            # Objects of the wanted size come before those of another size.
            good = [j for j in good if counts[j]] or good
            if good:
                match = max(good, key=lambda j: (iou[j], j))
                free.discard(match)
                if counts[match]:
                    outcomes.append((one["scores"][i], True))
            elif (
                area[0] <= mask.sum() <= area[1]
                and label + 1 not in image["not_exhaustive_category_ids"]
            ):
                outcomes.append((one["scores"][i], False))
    if not objects:
        return None
    hits = np.array([hit for _, hit in sorted(outcomes, key=lambda o: -o[0])], bool)
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    recall = np.cumsum(hits) / objects
    return float(
        np.mean([precision[recall >= r - 1e-12].max(initial=0) for r in np.arange(101) / 100])
    )


def expected_numbers(content: dict[str, Any], found: list[dict]) -> dict[str, float]:
    thresholds = np.arange(50, 100, 5) / 100
    table = {}  # name -> class -> mean over IoU
    for name, area in AREAS.items():
        rows = [
            [class_ap(content, found, label, t, area) for t in thresholds]
            for label in range(NUM_CLASSES)
        ]
        if name == "AP":
            table["AP50"] = [row[0] for row in rows]
            table["AP75"] = [row[5] for row in rows]
        table[name] = [None if row[0] is None else np.mean(row) for row in rows]
    for group in "rcf":
        members = [c["frequency"] == group for c in content["categories"]]
        table[f"AP{group}"] = [v for v, m in zip(table["AP"], members, strict=True) if m]
    return {
        f"lvis/{name}": 100 * np.mean([v for v in values if v is not None])
        for name, values in table.items()
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_ap_equals_the_definition(tmp_path: Path, seed: int) -> None:
    content, found = federated(seed)
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(content))
    metric = metric_of(path)
    metric.process(None, samples(found))
    numbers = metric.evaluate(len(found))
    assert numbers == pytest.approx(expected_numbers(content, found), abs=1e-9)
    assert len(metric.per_class) == NUM_CLASSES and 10 < numbers["lvis/AP"] < 90
    if seed == 0:
        assert numbers == pytest.approx({f"lvis/{k}": v for k, v in RECORDED.items()}, abs=1e-9)


def test_federated_rules_matter(tmp_path: Path) -> None:
    """Each rule changes the results, so the test above covers all of them."""
    content, found = federated(0)
    path = tmp_path / "lvis.json"

    def ap(data: dict[str, Any]) -> float:
        path.write_text(json.dumps(data))
        metric = metric_of(path)
        metric.process(None, samples(found))
        return metric.evaluate(len(found))["lvis/AP"]

    everything = list(range(1, NUM_CLASSES + 1))
    known = [image | dict(neg_category_ids=everything) for image in content["images"]]
    complete = [image | dict(not_exhaustive_category_ids=[]) for image in content["images"]]
    base = ap(content)
    assert ap(content | dict(images=known)) < base - 0.1
    assert ap(content | dict(images=complete)) < base - 0.1


def test_vocabulary_may_lack_classes_without_objects(tmp_path: Path) -> None:
    content, found = federated(0)
    extra = dict(id=77, name="gnu", frequency="r")
    content["categories"].append(extra)
    content["images"][0]["neg_category_ids"].append(77)
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(content))
    metric = metric_of(path)
    metric.process(None, samples(found))
    assert metric.evaluate(14)["lvis/APr"] == pytest.approx(RECORDED["APr"])


def test_files_of_other_datasets_raise(tmp_path: Path) -> None:
    content, found = federated(0)
    path = tmp_path / "lvis.json"

    def run(data: dict[str, Any]) -> None:
        path.write_text(json.dumps(data))
        metric_of(path).process(None, samples(found[:1]))

    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        images = [{k: v for k, v in i.items() if k != key} for i in content["images"]]
        with pytest.raises(DatasetError, match=rf"lvis\.json: image 1000 has no `{key}`.*LVIS v1"):
            run(content | dict(images=images))
    categories = [c | dict(frequency=None) for c in content["categories"]]
    with pytest.raises(DatasetError, match=r"lvis\.json: category 1 has no frequency"):
        run(content | dict(categories=categories))
