"""Panoptic quality equals panopticapi's, and an independent implementation on random maps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from odise_mm.annotations.ground_truth import TruthSegment, count_pairs, count_values
from odise_mm.annotations.panoptic_io import read_panoptic_png, write_panoptic_png
from odise_mm.errors import ConfigError, DatasetError
from odise_mm.evaluation import PanopticQuality
from odise_mm.evaluation.panoptic_quality import PanopticCounts, match_segments
from odise_mm.registry import METRICS
from odise_mm.vocabulary import Vocabulary
from tests.support import make

DATA = Path(__file__).parent.parent / "data/panoptic_quality"


def metric_of(classes: Vocabulary) -> PanopticQuality:
    metric = METRICS.build(dict(type="PanopticQuality"))
    metric.dataset_meta = dict(vocabulary=classes)
    return metric


def coco_samples(which: str) -> tuple[Vocabulary, list[dict[str, Any]], list[int]]:
    truth = json.loads((DATA / "truth.json").read_text())
    categories = truth["categories"]
    index = {c["id"]: i for i, c in enumerate(categories)}
    classes = Vocabulary(
        tuple((c["name"],) for c in categories), tuple(bool(c["isthing"]) for c in categories)
    )
    predicted = {
        a["image_id"]: a for a in json.loads((DATA / f"{which}.json").read_text())["annotations"]
    }
    samples = []
    for annotation in truth["annotations"]:
        result = predicted[annotation["image_id"]]
        samples.append(
            dict(
                img_id=annotation["image_id"],
                seg_map_path=str(DATA / "truth" / annotation["file_name"]),
                segments_info=[
                    dict(
                        id=s["id"],
                        label=index[s["category_id"]],
                        is_thing=classes.is_thing[index[s["category_id"]]],
                        is_crowd=bool(s["iscrowd"]),
                    )
                    for s in annotation["segments_info"]
                ],
                pred_panoptic_seg=dict(
                    sem_seg=torch.from_numpy(read_panoptic_png(DATA / which / result["file_name"]))[
                        None
                    ],
                    segments_info=[
                        dict(id=s["id"], category_id=index[s["category_id"]])
                        for s in result["segments_info"]
                    ],
                ),
            )
        )
    return classes, samples, [c["id"] for c in categories]


@pytest.mark.parametrize("which", ["pred_a", "pred_b"])
def test_results_equal_panopticapi(which: str) -> None:
    expected = json.loads((DATA / f"{which}_expected.json").read_text())
    classes, samples, ids = coco_samples(which)
    metric = metric_of(classes)
    for item in samples:
        metric.process(None, [item])
    numbers = metric.evaluate(2)
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for name in ("PQ", "SQ", "RQ"):
            value = numbers[f"panoptic/{name}{suffix}"] / 100
            assert value == pytest.approx(expected[group][name.lower()], abs=1e-9), (group, name)
    assert len(numbers) == 9
    assert len(metric.per_class) == expected["All"]["n"]
    name_of = dict(zip(ids, classes.source_names, strict=True))
    for category, values in expected["per_class"].items():
        ours = metric.per_class[name_of[int(category)]]
        for key, value in values.items():
            assert ours[key.upper()] / 100 == pytest.approx(value, abs=1e-9)
    absent = set(metric.per_class) - {name_of[int(c)] for c in expected["per_class"]}
    assert all(metric.per_class[name]["PQ"] == 0 for name in absent)


def enlarged(item: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make a sample with maps twice as high and wide, but with the original areas."""
    ids = read_panoptic_png(item["seg_map_path"]).repeat(2, 0).repeat(2, 1)
    path = folder / Path(item["seg_map_path"]).name
    write_panoptic_png(path, ids)
    found = item["pred_panoptic_seg"]
    larger = found["sem_seg"].repeat_interleave(2, 1).repeat_interleave(2, 2)
    return {
        **item,
        "seg_map_path": str(path),
        "pred_panoptic_seg": found | dict(sem_seg=larger),
    }


def test_areas_are_counted_in_maps(tmp_path: Path, warnings: Callable[[], list[str]]) -> None:
    """Enlarging maps without their JSON file changes no result, but logs a warning."""
    numbers = []
    for large in (False, True):
        classes, samples, _ = coco_samples("pred_a")
        metric = metric_of(classes)
        for item in samples:
            sizes = dict(zip(*count_values(read_panoptic_png(item["seg_map_path"])), strict=True))
            for info in item["segments_info"]:
                info["area"] = int(sizes[info["id"]])
            metric.process(None, [enlarged(item, tmp_path) if large else item])
        numbers.append(metric.evaluate(2))
        assert len(warnings()) == large
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-12)
    segments = [s for item in samples for s in item["segments_info"] if not s["is_crowd"]]
    first, (line,) = segments[0], warnings()
    assert f"{len(segments)} of {len(segments)} annotated segments" in line
    assert f"{tmp_path}" in line and f"segment {first['id']}: {first['area']} in the JSON" in line
    assert f"{4 * first['area']} pixels" in line and "panopticapi uses the JSON file" in line


def test_missing_areas_are_not_compared(tmp_path: Path, warnings: Callable[[], list[str]]) -> None:
    classes = make.vocabulary(3)
    item = make.sample(tmp_path, 1, np.random.default_rng(0), classes)
    metric = metric_of(classes)
    metric.process(None, [item])
    for info in item["segments_info"]:
        info["area"] = None
    crowd = [info for info in item["segments_info"] if info["is_crowd"]]
    for info in crowd:  # which do not change any result
        info["area"] = 1
    metric.process(None, [item])
    metric.evaluate(2)
    assert crowd and not warnings()


def by_pixels(
    truth: np.ndarray, segments: list[dict], result: np.ndarray, labels: dict[int, int], k: int
) -> np.ndarray:
    """Compute the definition on pairs of masks: (4, K) tp, fp, fn, IoU."""
    out = np.zeros((4, k))
    free, matched = set(labels), set()
    for segment in segments:
        if segment["is_crowd"]:
            continue
        mask = truth == segment["id"]
        for id_, label in labels.items():
            other = result == id_
            union = (mask | (other & (truth != 0))).sum()
            iou = (mask & other).sum() / union
            if label == segment["label"] and iou > 0.5:
                out[0, label] += 1
                out[3, label] += iou
                matched.add(segment["id"])
                free.discard(id_)
    for segment in segments:
        if not segment["is_crowd"] and segment["id"] not in matched:
            out[2, segment["label"]] += 1
    for id_ in free:
        mask, excused = result == id_, truth == 0
        crowd = [s["id"] for s in segments if s["is_crowd"] and s["label"] == labels[id_]]
        if crowd:
            excused = excused | (truth == crowd[-1])
        if (mask & excused).sum() * 2 <= mask.sum():
            out[1, labels[id_]] += 1
    return out


@pytest.mark.parametrize("num_classes", [1, 5, 1500])
def test_random_maps_equal_the_definition(num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    classes = make.vocabulary(num_classes)
    total, crowds, hits = np.zeros((4, num_classes)), 0, 0
    ours = PanopticCounts.zeros(num_classes)
    for _ in range(40):
        truth, segments = make.panoptic(rng, (24, 31), classes, int(rng.integers(1, 12)), 0.5)
        result = make.disturbed(rng, truth, segments, classes)
        ids = result["sem_seg"][0].numpy()
        labels = {s["id"]: s["category_id"] for s in result["segments_info"]}
        crowds += sum(s["is_crowd"] for s in segments)
        part = match_segments(
            truth,
            [TruthSegment(s["id"], s["label"], s["is_thing"], s["is_crowd"]) for s in segments],
            ids,
            labels,
            num_classes,
        )
        expected = by_pixels(truth, segments, ids, labels, num_classes)
        np.testing.assert_allclose(np.stack(part), expected, atol=1e-12)
        ours.add(part)
        total += expected
        hits += int(expected[0].sum())
    assert crowds > 10 and hits > 30 and total[1].sum() > 10 and total[2].sum() > 10
    np.testing.assert_allclose(np.stack(ours), total, atol=1e-9)


def test_void_crowd_and_iou_of_one_half() -> None:
    def counts(truth: list[int], segments: list[TruthSegment], result: list[int], **labels: int):
        ids = {int(k[1:]): v for k, v in labels.items()}
        return match_segments(np.array([truth]), segments, np.array([result]), ids, 2)

    thing = TruthSegment(7, 0, True, False)
    crowd = TruthSegment(8, 1, True, True)
    # An IoU of exactly 0.5 is not a match; void is excluded from the union; mostly void results are
    # not counted.
    half = counts([7, 7, 0, 0], [thing], [1, 0, 0, 0], s1=0)
    assert (half.tp[0], half.fp[0], half.fn[0]) == (0, 1, 1)
    whole = counts([7, 7, 0, 0], [thing], [1, 1, 1, 1], s1=0)
    assert (whole.tp[0], whole.fp[0], whole.iou[0]) == (1, 0, 1)
    assert counts([0, 0, 7, 7], [thing], [1, 1, 1, 0], s1=0).fp.sum() == 0
    assert counts([0, 7, 7, 7], [thing], [1, 1, 0, 0], s1=1).fp.tolist() == [0, 1]
    in_crowd = dict(truth=[8, 8, 8, 8], segments=[crowd], result=[1, 1, 0, 0])
    assert counts(**in_crowd, s1=1).fp.sum() == 0 and counts(**in_crowd, s1=0).fp[0] == 1
    assert counts(**in_crowd, s1=1).fn.sum() == 0


@pytest.mark.parametrize("high", [2, 2**40])
def test_counts_of_values(high: int) -> None:
    values = np.random.default_rng(0).integers(high, size=(30, 20))
    for array in (values, np.repeat(values, 3, axis=1), values[:0]):
        for ours, expected in zip(
            count_values(array), np.unique(array, return_counts=True), strict=True
        ):
            assert np.array_equal(ours, expected)


def test_counts_of_pairs() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(2**24, size=(2, 4))[:, rng.integers(4, size=(30, 20))]
    second = np.roll(second, 3, 1)
    for one, other in ((first, second), (first.astype(np.int32), second), (first[:0], second[:0])):
        keys = one.astype(np.int64) << 32 | other.astype(np.int64)
        wanted = np.unique(keys, return_counts=True)
        for found, expected in zip(count_pairs(one, other), wanted, strict=True):
            assert np.array_equal(found, expected)


def test_classes_that_never_occur_do_not_count(tmp_path: Path) -> None:
    classes = make.vocabulary(4)
    item = make.sample(tmp_path, 1, np.random.default_rng(0), classes)
    write_panoptic_png(item["seg_map_path"], np.full((4, 4), 5))
    item["segments_info"] = [dict(id=5, label=2, is_thing=True, is_crowd=False)]
    item["pred_panoptic_seg"] = dict(
        sem_seg=torch.ones(1, 4, 4, dtype=torch.int32), segments_info=[dict(id=1, category_id=2)]
    )
    metric = metric_of(classes)
    metric.process(None, [item])
    numbers = metric.evaluate(1)
    assert metric.per_class == {"c2": dict(PQ=100, SQ=100, RQ=100)}
    assert numbers["panoptic/PQ"] == numbers["panoptic/PQ_th"] == 100
    assert np.isnan(numbers["panoptic/PQ_st"])


def test_memory_does_not_grow(tmp_path: Path) -> None:
    classes = make.vocabulary(3)
    item = make.sample(tmp_path, 1, np.random.default_rng(0), classes)
    metric = metric_of(classes)
    sizes = set()
    for _ in range(5):
        metric.process(None, [item])
        sizes.add((len(metric.results), sum(a.nbytes for a in metric.results[0].counts)))
    assert len(sizes) == 1
    numbers = metric.evaluate(5)
    metric.process(None, [item])
    assert metric.evaluate(1) == pytest.approx(numbers, nan_ok=True)  # and it is reset


def broken(item: dict[str, Any], how: str) -> None:
    """Break a sample."""
    path = Path(item["seg_map_path"])
    if how == "missing":
        path.unlink()
    elif how == "size":
        write_panoptic_png(path, read_panoptic_png(path)[:-1])
    elif how == "not in json":
        item["segments_info"] = item["segments_info"][1:]
    elif how == "not in png":
        item["segments_info"] = [
            *item["segments_info"],
            dict(id=77, label=0, is_thing=True, is_crowd=False),
        ]
    elif how == "label":
        item["segments_info"][0]["label"] = 3
    elif how == "twice":
        item["segments_info"].append(item["segments_info"][0])
    elif how == "none":
        del item["seg_map_path"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"1\.png: no such panoptic PNG"),
        ("size", r"1\.png: the ground truth has 39 x 50 .* result has 40 x 50"),
        ("not in json", r"1\.png: segment \d+ is not in the JSON"),
        ("not in png", r"1\.png: segment 77 of the JSON file has no pixels"),
        ("label", r"1\.png: class index 3, but the vocabulary has 3 classes"),
        ("twice", r"1\.png: .*two segments with the same id"),
        ("none", r"1\.jpg: no panoptic ground truth"),
    ],
)
def test_broken_ground_truth_raises(tmp_path: Path, how: str, message: str) -> None:
    classes = make.vocabulary(3)
    item = make.sample(tmp_path, 1, np.random.default_rng(0), classes)
    broken(item, how)
    with pytest.raises(DatasetError, match=message):
        metric_of(classes).process(None, [item])


def test_inconsistent_results_raise(tmp_path: Path) -> None:
    classes = make.vocabulary(3)
    item = make.sample(tmp_path, 1, np.random.default_rng(0), classes)
    info = item["pred_panoptic_seg"]["segments_info"]

    def run(**changes: Any) -> None:
        metric_of(classes).process(None, [item | changes])

    def result(segments: list[dict]) -> dict:
        return item["pred_panoptic_seg"] | dict(segments_info=segments)

    with pytest.raises(ValueError, match=r"segment \d+ of the result is not in segments_info"):
        run(pred_panoptic_seg=result(info[1:]))
    with pytest.raises(ValueError, match="segment 3 of the result is not in the map"):
        run(pred_panoptic_seg=result([*info, dict(id=3, category_id=0)]))
    with pytest.raises(ValueError, match="two segments of the result"):
        run(pred_panoptic_seg=result([*info, info[0]]))
    with pytest.raises(ConfigError, match="class index 3, .* vocabulary has 3 classes"):
        run(pred_panoptic_seg=result([info[0] | dict(category_id=3), *info[1:]]))
    with pytest.raises(
        ConfigError, match=r"1\.jpg: PanopticQuality needs pred_panoptic_seg, which"
    ):
        run(pred_panoptic_seg=None)
