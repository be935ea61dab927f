"""How long the network waits for images and files while a collection is labeled."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import PixelData
from PIL import Image

from odise_mm.benchmarks.tables import Table
from odise_mm.config.finding import load_config
from odise_mm.labeling.folder import LabelFolder
from odise_mm.labeling.listing import list_images
from odise_mm.labeling.worker import Recipe, Worker
from odise_mm.vocabulary import Vocabulary


class StandIn:
    """Replaces a model's ``test_step``: sleeps, as a CPU may do while a GPU computes.

    Args:
        seconds: how long a call takes.
        ids: segment ids of every result, (H, W) int32; images have this size.
    """

    def __init__(self, seconds: float, ids: np.ndarray) -> None:
        self.seconds = seconds
        self.ids = torch.from_numpy(ids)[None]
        areas = np.bincount(ids.ravel()).tolist()
        self.infos = [
            dict(id=i, category_id=0, isthing=True, score=0.5, area=area)
            for i, area in enumerate(areas)
            if i and area
        ]
        self.calls: list[tuple[float, float]] = []
        """Start and end of every call, in seconds."""

    def __call__(
        self, data: Mapping[str, Any], vocabulary: Vocabulary, settings: Mapping[str, Any]
    ) -> list[DetDataSample]:
        """Return the same segments for every image."""
        start = time.perf_counter()
        time.sleep(self.seconds)
        self.calls.append((start, time.perf_counter()))
        for sample in data["data_samples"]:
            found = PixelData(sem_seg=self.ids, metainfo=dict(segments_info=self.infos))
            sample.pred_panoptic_seg = found
        return data["data_samples"]

    def waited(self) -> float:
        """Return the share of the time from the first to the last call that it did not sleep.

        What a call takes beyond its sleep counts, too: other threads keep Python from going on.
        """
        return 1 - len(self.calls) * self.seconds / (self.calls[-1][1] - self.calls[0][0])


def measure_waiting(
    config: str,
    images: int = 300,
    size: tuple[int, int] = (480, 640),
    segments: int = 20,
    milliseconds: float = 50,
    workers: Sequence[int] = (0, 1, 4),
) -> dict[str, Any]:
    """Label drawn JPEG files with a stand-in for the network, and write them as JSON lines.

    Args:
        config: config whose test pipeline prepares the images.
        images: number of images.
        size: height and width of the images.
        segments: segments per image.
        milliseconds: how long the stand-in takes per image.
        workers: numbers of threads that read images, for one run each; 0 reads an image when the
            network needs it.

    Returns:
        The arguments and ``runs``: ``workers``, ``images_per_second``, ``waited`` (the share of the
        time that the network waited) and ``cpu_ms`` (per image, of all threads).
    """
    cfg = load_config("odise_tiny")
    cfg.test_pipeline = load_config(config).test_pipeline
    recipe = Recipe(cfg, texts="thing")
    inferencer = recipe.build()
    runs = []
    with TemporaryDirectory() as temporary:
        place = Path(temporary)
        ids = _draw(place / "images", images, size, segments)
        for number in workers:
            inferencer.model.test_step = stand_in = StandIn(milliseconds / 1000, ids)
            folder = LabelFolder(place / f"labels{number}")
            folder.plan(list_images([place / "images"]), {}, shard_size=100)
            worker = Worker(replace(recipe, workers=number), folder, inferencer)
            start, cpu = time.perf_counter(), time.process_time()
            worker.run(folder.unfinished(), lambda failed: None)
            rate = images / (time.perf_counter() - start)
            cpu_ms = 1000 * (time.process_time() - cpu) / images
            waited = stand_in.waited()
            runs.append(dict(workers=number, images_per_second=rate, waited=waited, cpu_ms=cpu_ms))
    return dict(
        config=config,
        images=images,
        size=list(size),
        segments=segments,
        milliseconds=milliseconds,
        runs=runs,
    )


def waiting_table(result: Mapping[str, Any]) -> Table:
    """Make a table of the output of :func:`measure_waiting`."""
    height, width = result["size"]
    table = Table(
        f"Labeling {result['images']} JPEG files of {width} x {height} pixels, with a stand-in of "
        f"{result['milliseconds']:g} ms for the network",
        ("threads that read", "images/s", "network waits", "CPU time per image"),
    )
    for run in result["runs"]:
        rate, waited = f"{run['images_per_second']:.1f}", f"{100 * run['waited']:.1f} %"
        table.rows.append((str(run["workers"]), rate, waited, f"{run['cpu_ms']:.1f} ms"))
    table.notes.append(
        f"Test pipeline of {result['config']}; {result['segments']} segments per image, written as "
        "JSON lines."
    )
    return table


def _draw(folder: Path, images: int, size: tuple[int, int], segments: int) -> np.ndarray:
    """Write images of one map with noise, and return the map, (H, W) int32 from 1."""
    rng = np.random.default_rng(0)
    layers = [cv2.GaussianBlur(rng.random(size), (0, 0), size[1] / 40) for _ in range(segments)]
    ids = np.argmax(layers, axis=0).astype(np.int32) + 1
    colors = rng.integers(0, 200, (segments + 1, 3))
    folder.mkdir()
    for index in range(images):
        noise = rng.integers(0, 56, (*size, 3))
        Image.fromarray((colors[ids] + noise).astype(np.uint8)).save(
            folder / f"{index:06d}.jpg", quality=90
        )
    return ids
