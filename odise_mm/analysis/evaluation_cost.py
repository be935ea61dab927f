"""Cost of the metrics, beside the implementations that they equal."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mmdet.evaluation.functional import panoptic_utils
from mmseg.evaluation.metrics import IoUMetric
from PIL import Image

from odise_mm.annotations.panoptic_io import read_panoptic_png, write_panoptic_png
from odise_mm.benchmarks.tables import Table
from odise_mm.evaluation import PanopticQuality, SemanticIoU
from odise_mm.utils.image import open_image
from odise_mm.vocabulary import Vocabulary

CLASSES = 133
PQ, FROM_FILES = "PQ, results in memory", "PQ, results in files"
_SEEDS = 24


class _Stat(defaultdict):
    """Counts of the classes, for mmdet's version of panopticapi's evaluation."""

    def __init__(self) -> None:
        super().__init__(lambda: SimpleNamespace(tp=0, fp=0, fn=0, iou=0.0))


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


def measure_evaluation(images: int, size: tuple[int, int], segments: int) -> dict[str, Any]:
    """Evaluate the same results alternately: with this package, and with the other implementation.

    The panoptic one is mmdet's version of panopticapi's function, which also needs the results as
    PNG files. Writing these is not counted. This package reads only the ground truth from files, as
    a test run has the results in memory; a row with the results in files is measured as well.

    Args:
        images: number of images; some of them repeat.
        size: height and width.
        segments: segments drawn in each image.

    Returns:
        CPU seconds of each metric, ours and theirs, and the values that must agree.
    """
    names = tuple((f"class {i}",) for i in range(CLASSES))
    meta = {"vocabulary": Vocabulary(names, (True,) * CLASSES)}
    panoptic, semantic = PanopticQuality(), SemanticIoU()
    panoptic.dataset_meta = semantic.dataset_meta = meta
    categories = {i: {"isthing": 1} for i in range(CLASSES)}
    seconds: dict[str, dict[str, float]] = {
        PQ: {"ours": 0.0, "theirs": 0.0},
        FROM_FILES: {"ours": 0.0, "theirs": 0.0},
        "mIoU": {"ours": 0.0, "theirs": 0.0},
    }
    stat = _Stat()
    areas = []
    with (
        TemporaryDirectory() as name,
        patch.multiple(panoptic_utils, PQStat=lambda: stat, rgb2id=_rgb_to_ids),
    ):
        folder = Path(name)
        samples = [_sample(folder, i, size, segments) for i in range(min(images, _SEEDS))]
        for number in range(images):
            sample = samples[number % len(samples)]
            begin = time.process_time()
            read = _as_read(sample, folder)
            middle = time.process_time()
            panoptic.process(None, [read])
            seconds[PQ]["ours"] += time.process_time() - middle
            seconds[FROM_FILES]["ours"] += time.process_time() - begin
            begin = time.process_time()
            panoptic_utils.pq_compute_single_core(
                0, [sample["theirs"]], name, name, categories, print_log=False
            )
            spent = time.process_time() - begin
            for row in (PQ, FROM_FILES):  # it can only read files
                seconds[row]["theirs"] += spent
            begin = time.process_time()
            semantic.process(None, [sample])
            seconds["mIoU"]["ours"] += time.process_time() - begin
            begin = time.process_time()
            with open_image(sample["sem_seg_path"]) as image:
                label = torch.from_numpy(np.asarray(image).astype(int))
            found = torch.from_numpy(sample["pred_sem_seg"]["sem_seg"][0])
            areas.append(IoUMetric.intersect_and_union(found, label, CLASSES, 255))
            seconds["mIoU"]["theirs"] += time.process_time() - begin
        ours = panoptic.results[0].counts
    union = sum(part[1] for part in areas)
    both = sum(part[0] for part in areas)
    values = {
        "matches": [int(ours.tp.sum()), sum(s.tp for s in stat.values())],
        "IoU of matches": [float(ours.iou.sum()), float(sum(s.iou for s in stat.values()))],
        "mIoU": [
            semantic.evaluate(images)["semantic/mIoU"],
            float(100 * (both / union)[union > 0].mean()),
        ],
    }
    sizes = dict(images=images, size=list(size), segments=segments)
    return {**sizes, "cpu_seconds": seconds, "values": values}


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
    return table
