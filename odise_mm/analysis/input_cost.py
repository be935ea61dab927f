"""Cost of the training input for an image, with the transfer between processes."""

from __future__ import annotations

import io
import time
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from typing import Any

import cv2
from mmdet.structures.mask import BitmapMasks

from odise_mm.benchmarks.tables import Table
from odise_mm.config.finding import load_config
from odise_mm.datasets.seeding import random_numbers_of
from odise_mm.registry import DATASETS

SEND = "sending to the training process"


def measure_input(config: str, changes: dict[str, str | None], count: int) -> dict[str, Any]:
    """Run a config's training pipeline, and send its results as a worker process does.

    Args:
        config: config with a ``train_dataloader``.
        changes: settings of the dataset instead of the config's: ``data_root``, ``ann_file``,
            ``images`` and ``maps`` (folders); None keeps one.
        count: number of images after a warm-up of 2; the dataset is repeated as necessary.

    Returns:
        Mean CPU seconds of each step for an image, and the mean number of bytes sent: as they are,
        and with one full-size mask for each segment.
    """
    cv2.setNumThreads(1)
    cfg = load_config(config).train_dataloader.dataset
    cfg.update({k: changes[k] for k in ("data_root", "ann_file") if changes.get(k) is not None})
    folders = {"img": changes.get("images"), "seg": changes.get("maps")}
    cfg.data_prefix.update({key: value for key, value in folders.items() if value is not None})
    dataset = DATASETS.build(cfg)
    dataset.full_init()
    seconds: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    segments = 0
    for number in range(-2, count):
        with random_numbers_of(number + 2):
            results = dataset.get_data_info(number % len(dataset))
            for step in dataset.pipeline.transforms:
                begin = time.process_time()
                results = step(results)
                if number >= 0:
                    seconds[type(step).__name__] += time.process_time() - begin
        begin = time.process_time()
        size = _send(results)
        if number >= 0:
            seconds[SEND] += time.process_time() - begin
            instances = results["data_samples"].gt_instances
            segments += len(instances.labels)
            sent["now"] += size
            masks = instances.pop("masks")
            stack = BitmapMasks(masks.masks, masks.height, masks.width)
            begin = time.process_time()
            instances.masks = stack
            sent["with one mask per segment"] += _send(results)
            seconds["sending masks"] += time.process_time() - begin
    return {
        "images": count,
        "segments": segments / count,
        "cpu_seconds": {name: value / count for name, value in seconds.items()},
        "bytes": {name: value / count for name, value in sent.items()},
    }


def _send(results: dict) -> int:
    """Pickle as ``torch.utils.data`` does: tensors go to shared memory, all else to a pipe."""
    stream = io.BytesIO()
    ForkingPickler(stream).dump(results)
    ForkingPickler.loads(stream.getbuffer())
    return stream.tell()


def input_table(result: dict[str, Any]) -> Table:
    """Make the table of a result of :func:`measure_input`."""
    seconds = dict(result["cpu_seconds"])
    masks = seconds.pop("sending masks")
    title = f"Training input: {result['images']} images, {result['segments']:.1f} segments each"
    table = Table(title, ("step", "CPU ms per image"))
    table.rows = [(name, f"{1e3 * value:.1f}") for name, value in seconds.items()]
    total = sum(seconds.values())
    table.rows.append(("total", f"{1e3 * total:.1f}"))
    table.notes = [
        f"{1 / total:.0f} images per second and core. {result['bytes']['now'] / 1e3:.0f} KB of an "
        f"image pass through the pipe; {result['bytes']['with one mask per segment'] / 1e6:.1f} MB "
        f"and {1e3 * masks:.1f} ms with one mask per segment.",
    ]
    return table
