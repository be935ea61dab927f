"""Cost of the metrics, beside the implementations that they equal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mmdet.evaluation.functional import panoptic_utils
from mmdet.structures.mask import encode_mask_results
from mmseg.evaluation.metrics import IoUMetric
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from odise_mm.annotations.panoptic_io import read_panoptic_png, write_panoptic_png
from odise_mm.benchmarks.tables import Table
from odise_mm.evaluation import InstanceAP, PanopticQuality, SemanticIoU
from odise_mm.evaluation.base import DatasetMetric
from odise_mm.evaluation.panoptic_quality import PanopticCounts
from odise_mm.structures.geometry import encode_mask
from odise_mm.utils.image import open_image
from odise_mm.vocabulary import Vocabulary

CLASSES = 133
METRICS = ("PQ", "mIoU", "AP")
PQ, FROM_FILES = "PQ, results in memory", "PQ, results in files"
COPIES = 5
"""Instance results per object, so that 20 objects have 100 results as in COCO's protocol."""
_SEEDS = 24
_CATEGORIES = {i: {"isthing": 1} for i in range(CLASSES)}


class Stat(defaultdict):
    """Counts of the classes, for mmdet's version of panopticapi's evaluation."""

    def __init__(self, *parts: Any) -> None:  # pickling passes the factory
        super().__init__(_zeros)

    def __iadd__(self, other: Stat) -> Stat:  # type: ignore[misc, override]
        for label, counts in other.items():
            for name, value in vars(counts).items():
                setattr(self[label], name, getattr(self[label], name) + value)
        return self


def _zeros() -> SimpleNamespace:
    return SimpleNamespace(tp=0, fp=0, fn=0, iou=0.0)


def random_map(rng: np.random.Generator, size: tuple[int, int], segments: int) -> np.ndarray:
    """Draw ellipses over each other: (height, width) int32, 0 for void and numbers from 1."""
    height, width = size
    ys, xs = np.mgrid[:height, :width]
    ids = np.zeros(size, np.int32)
    for number in range(1, segments + 1):
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        tall, wide = rng.uniform(0.1, 0.5, 2) * size
        ids[((ys - y) / tall) ** 2 + ((xs - x) / wide) ** 2 < 1] = number
    return ids


def _sample(folder: Path, number: int, size: tuple[int, int], segments: int) -> dict[str, Any]:
    """Write a ground truth, and make a result that is like it, moved by a few pixels."""
    rng = np.random.default_rng(number)
    truth = random_map(rng, size, segments)
    found = np.roll(truth, rng.integers(-9, 10, 2), (0, 1))
    labels = np.concatenate([[0], rng.integers(CLASSES, size=segments)])
    path, other = folder / f"truth_{number}.png", folder / f"result_{number}.png"
    write_panoptic_png(path, truth * 257)  # ids of more than one byte
    write_panoptic_png(other, found * 257)
    semantic = folder / f"semantic_{number}.png"
    Image.fromarray(np.where(truth > 0, labels[truth], 255).astype(np.uint8)).save(semantic)
    infos = [
        [
            dict(id=int(n) * 257, category_id=int(labels[n]), area=int((ids == n).sum()), iscrowd=0)
            for n in np.unique(ids)
            if n
        ]
        for ids in (truth, found)
    ]
    return dict(
        img_id=number,
        seg_map_path=str(path),
        sem_seg_path=str(semantic),
        segments_info=[
            dict(id=s["id"], label=s["category_id"], is_thing=True, is_crowd=False, area=s["area"])
            for s in infos[0]
        ],
        pred_panoptic_seg=dict(sem_seg=(found * 257)[None], segments_info=infos[1]),
        pred_sem_seg=dict(sem_seg=labels[found][None]),
        theirs=(
            dict(image_id=number, file_name=path.name, segments_info=infos[0]),
            dict(image_id=number, file_name=other.name, segments_info=infos[1]),
        ),
    )


def measure_evaluation(
    images: int,
    size: tuple[int, int],
    segments: int,
    metrics: Sequence[str] = METRICS,
    processes: int = 1,
) -> dict[str, Any]:
    """Evaluate the same results with this package and with the other implementation.

    The panoptic one is mmdet's version of panopticapi's function, which also needs the results as
    PNG files. Writing these is not counted. This package reads only the ground truth from files, as
    a test run has the results in memory; a row with the results in files is measured as well.
    AP starts with masks in memory and objects in a JSON file, as in mmdet's ``CocoMetric``.

    Args:
        images: number of images; some of them repeat.
        size: height and width.
        segments: segments drawn in each image.
        metrics: names of :data:`METRICS`.
        processes: number of processes among which PQ's images are divided as well.

    Returns:
        CPU seconds of each metric, ours and theirs, and the values that must agree.
    """
    seconds: dict[str, dict[str, float]] = defaultdict(lambda: {"ours": 0.0, "theirs": 0.0})
    values: dict[str, list[float]] = {}
    sizes = dict(images=images, size=list(size), segments=segments, processes=processes)
    measured: dict[str, Callable[..., dict[str, list[float]]]] = {
        "PQ": _measure_pq, "mIoU": _measure_miou, "AP": _measure_ap
    }  # fmt: skip
    with (
        TemporaryDirectory() as name,
        patch.multiple(panoptic_utils, PQStat=Stat, rgb2id=_rgb_to_ids),
    ):
        folder = Path(name)
        samples = [_sample(folder, i, size, segments) for i in range(min(images, _SEEDS))]
        repeated = [samples[number % len(samples)] for number in range(images)]
        for metric in metrics:
            values |= measured[metric](repeated, folder, seconds)
        result = {**sizes, "cpu_seconds": dict(seconds), "values": values}
        if processes > 1 and "PQ" in metrics:
            result["parallel"] = _measure_processes(repeated, folder, processes)
    return result


def _metric(cls: type[DatasetMetric], **settings: Any) -> Any:
    metric = cls(**settings)
    names = tuple((f"class {i}",) for i in range(CLASSES))
    metric.dataset_meta = {"vocabulary": Vocabulary(names, (True,) * CLASSES)}
    return metric


def _measure_pq(samples: list[dict], folder: Path, seconds: dict) -> dict[str, list[float]]:
    panoptic, stat = _metric(PanopticQuality), Stat()
    for sample in samples:
        begin = time.process_time()
        read = _as_read(sample, folder)
        middle = time.process_time()
        panoptic.process(None, [read])
        seconds[PQ]["ours"] += time.process_time() - middle
        seconds[FROM_FILES]["ours"] += time.process_time() - begin
        begin = time.process_time()
        stat += _theirs([sample], folder)
        spent = time.process_time() - begin
        for row in (PQ, FROM_FILES):  # it can only read files
            seconds[row]["theirs"] += spent
    return _both_counts(panoptic.results[0].counts, stat)


def _both_counts(ours: PanopticCounts, theirs: Stat) -> dict[str, list[float]]:
    return {
        "matches": [int(ours.tp.sum()), sum(s.tp for s in theirs.values())],
        "IoU of matches": [float(ours.iou.sum()), float(sum(s.iou for s in theirs.values()))],
    }


def _theirs(samples: list[dict], folder: Path) -> Stat:
    pairs = [sample["theirs"] for sample in samples]
    return panoptic_utils.pq_compute_single_core(0, pairs, folder, folder, _CATEGORIES)


def _count_part(part: tuple[list[dict], Path]) -> PanopticCounts:
    panoptic = _metric(PanopticQuality)
    for sample in part[0]:
        panoptic.process(None, [_as_read(sample, part[1])])
    return panoptic.results[0].counts


def _measure_processes(samples: list[dict], folder: Path, processes: int) -> dict[str, Any]:
    """Divide the images among processes: ours, and mmdet's function for many processes."""
    total = PanopticCounts.zeros(CLASSES)
    keys = ("img_id", "seg_map_path", "segments_info", "theirs", "pred_panoptic_seg")
    samples = [{key: sample[key] for key in keys} for sample in samples]
    for sample in samples:  # maps are read in the processes
        infos = sample["pred_panoptic_seg"]["segments_info"]
        sample["pred_panoptic_seg"] = dict(segments_info=infos)

    def ours() -> PanopticCounts:
        with get_context("fork").Pool(processes) as pool:
            parts = [(samples[start::processes], folder) for start in range(processes)]
            for counts in pool.imap(_count_part, parts):
                total.add(counts)
            pool.close()
            pool.join()
        return total

    def theirs() -> Stat:
        # The samples differ in their number of segments, so numpy needs an array of objects.
        pairs = np.empty((len(samples), 2), object)
        pairs[:] = [sample["theirs"] for sample in samples]
        with contextlib.redirect_stdout(io.StringIO()):
            return panoptic_utils.pq_compute_multi_core(
                pairs, folder, folder, _CATEGORIES, nproc=processes
            )

    cost: dict[str, Any] = {}
    found = {}
    for way, run in (("ours", ours), ("theirs", theirs)):
        before, begin = os.times(), time.perf_counter()
        found[way] = run()
        wall, after = time.perf_counter() - begin, os.times()
        cpu = sum(after[:4]) - sum(before[:4])  # of this process and its children
        cost[way] = dict(cpu_seconds=cpu, seconds=wall)
    return {**cost, "values": _both_counts(found["ours"], found["theirs"])}


def _measure_miou(samples: list[dict], folder: Path, seconds: dict) -> dict[str, list[float]]:
    semantic = _metric(SemanticIoU)
    areas = []
    for sample in samples:
        begin = time.process_time()
        semantic.process(None, [sample])
        seconds["mIoU"]["ours"] += time.process_time() - begin
        begin = time.process_time()
        with open_image(sample["sem_seg_path"]) as image:
            label = torch.from_numpy(np.asarray(image).astype(int))
        found = torch.from_numpy(sample["pred_sem_seg"]["sem_seg"][0])
        areas.append(IoUMetric.intersect_and_union(found, label, CLASSES, 255))
        seconds["mIoU"]["theirs"] += time.process_time() - begin
    union, both = (sum(part[i] for part in areas) for i in (1, 0))
    wanted = float(100 * (both / union)[union > 0].mean())
    return {"mIoU": [semantic.evaluate(len(samples))["semantic/mIoU"], wanted]}


def _measure_ap(samples: list[dict], folder: Path, seconds: dict) -> dict[str, list[float]]:
    file = folder / "instances.json"
    file.write_text(json.dumps(_instance_file(samples)))
    ours, theirs = _metric(InstanceAP, ann_file=str(file)), []
    rng = np.random.default_rng(0)
    for number, sample in enumerate(samples):
        masks, labels, scores = _instances(rng, sample)
        begin = time.process_time()
        found = dict(masks=torch.from_numpy(masks), labels=labels, scores=scores)
        ours.process(None, [dict(img_id=number, pred_instances=found)])
        middle = time.process_time()
        theirs += [
            dict(image_id=number, category_id=label + 1, score=score, segmentation=code)
            for label, score, code in zip(
                labels.tolist(), scores.tolist(), encode_mask_results(masks), strict=True
            )
        ]
        seconds["AP, encoding"]["ours"] += middle - begin
        seconds["AP, encoding"]["theirs"] += time.process_time() - middle
    begin = time.process_time()
    ap = ours.evaluate(len(samples))["instance/AP"]
    seconds["AP, matching"]["ours"] += time.process_time() - begin
    begin = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(file)
        engine = COCOeval(truth, truth.loadRes(theirs), "segm")
        engine.evaluate()
        engine.accumulate()
        engine.summarize()
    seconds["AP, matching"]["theirs"] += time.process_time() - begin
    return {"AP": [ap, 100 * float(engine.stats[0])]}


def _instances(
    rng: np.random.Generator, sample: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make masks (N, H, W) bool, labels and scores like the objects, moved; half are named well."""
    ids = sample["pred_panoptic_seg"]["sem_seg"][0]
    objects = sample["pred_panoptic_seg"]["segments_info"]
    moved = [np.roll(ids, rng.integers(-9, 10, 2), (0, 1)) for _ in range(COPIES)]
    masks = np.stack([each == one["id"] for each in moved for one in objects])
    labels = np.array([one["category_id"] for one in objects] * COPIES)
    wrong = rng.random(len(labels)) < 0.5
    labels[wrong] = rng.integers(CLASSES, size=wrong.sum())
    return masks, labels, rng.random(len(labels))


def _instance_file(samples: list[dict]) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    codes: dict[int, dict] = {}
    for number, sample in enumerate(samples):
        for one in sample["segments_info"]:
            key = id(one)  # samples repeat
            if key not in codes:
                ids = read_panoptic_png(sample["seg_map_path"])
                code = encode_mask(ids == one["id"])
                codes[key] = dict(size=code["size"], counts=code["counts"].decode())
            row = dict(image_id=number, category_id=one["label"] + 1, segmentation=codes[key])
            row |= dict(id=len(annotations) + 1, area=one["area"], iscrowd=0, bbox=[0, 0, 1, 1])
            annotations.append(row)
    height, width = samples[0]["pred_panoptic_seg"]["sem_seg"][0].shape
    return dict(
        images=[dict(id=i, height=height, width=width) for i in range(len(samples))],
        annotations=annotations,
        categories=[dict(id=i + 1, name=f"class {i}") for i in range(CLASSES)],
    )


def _as_read(sample: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Read the result from its file, as mmdet's function does."""
    name = sample["theirs"][1]["file_name"]
    infos = sample["pred_panoptic_seg"]["segments_info"]
    ids = read_panoptic_png(folder / name)[None]
    return {**sample, "pred_panoptic_seg": dict(sem_seg=ids, segments_info=infos)}


def _rgb_to_ids(color: np.ndarray) -> np.ndarray:
    color = color.astype(np.int32)
    return color[..., 0] + 256 * color[..., 1] + 65536 * color[..., 2]


def evaluation_table(result: dict[str, Any]) -> Table:
    """Make the table of a result of :func:`measure_evaluation`."""
    height, width = result["size"]
    table = Table(
        f"Metrics: {result['images']} images of {width} x {height} pixels, {result['segments']} "
        "segments drawn in each",
        ("metric", "ours, CPU ms per image", "theirs", "ratio"),
    )
    for name, cost in result["cpu_seconds"].items():
        ours, theirs = (1e3 * cost[way] / result["images"] for way in ("ours", "theirs"))
        table.rows.append((name, f"{ours:.1f}", f"{theirs:.1f}", f"{theirs / ours:.1f}"))
    table.notes = [
        f"{name}: {ours:.6g} and {theirs:.6g}." for name, (ours, theirs) in result["values"].items()
    ]
    if "parallel" in result:
        ours, theirs = (result["parallel"][way] for way in ("ours", "theirs"))
        table.notes.append(
            f"PQ, results in files, {result['processes']} processes: {ours['cpu_seconds']:.1f} and "
            f"{theirs['cpu_seconds']:.1f} s of CPU time (ratio "
            f"{theirs['cpu_seconds'] / ours['cpu_seconds']:.1f}), {ours['seconds']:.1f} and "
            f"{theirs['seconds']:.1f} s in all. Matches: "
            + " and ".join(map(str, result["parallel"]["values"]["matches"]))
            + "."
        )
    return table
