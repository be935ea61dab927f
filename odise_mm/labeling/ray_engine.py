"""Labeling with Ray Data: a cluster of any size, with one actor per GPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from odise_mm.errors import ConfigError, OdiseError
from odise_mm.labeling.folder import LabelFolder
from odise_mm.labeling.progress import LabelProgress
from odise_mm.labeling.worker import Recipe, Worker


def check_ray() -> None:
    """Check that Ray Data is installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"engine 'ray': Ray Data cannot be imported ({error}): pip install 'odise_mm[ray]'"
        ) from error


class _Actor:
    """Labels one shard after the other with one model."""

    def __init__(self, recipe: Recipe, folder: str) -> None:
        self.folder = LabelFolder(folder)
        self.folder.load()
        self.problem = ""
        try:
            self.worker = Worker(recipe, self.folder)
        except OdiseError as error:  # would be raised again and again by restarted actors
            self.problem = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        counts = []
        for shard in batch["shard"].tolist():
            failed: list[bool] = []
            finished = shard in self.folder.finished()  # Ray repeats tasks of lost nodes
            if not finished and not self.problem:
                self.worker.run([shard], failed.append)
            counts.append(sum(failed))
        return dict(
            shard=batch["shard"].tolist(), failed=counts, problem=[self.problem] * len(counts)
        )


def label_with_ray(
    recipe: Recipe, folder: LabelFolder, shards: Sequence[int], actors: int | None, show: bool
) -> None:
    """Label shards with actors of a Ray cluster.

    This connects to the cluster of ``RAY_ADDRESS``, or starts one on this machine.

    Args:
        recipe: how shards are made.
        folder: the output folder, which all nodes must see under the same path, like the images.
        shards: the shards.
        actors: number of actors. None: one per GPU of the cluster, or one without GPUs.
        show: whether to show the progress.

    Raises:
        ConfigError: Ray Data is not installed, or an actor cannot build the model.
    """
    check_ray()
    import ray
    import ray.data
    from rich.console import Console

    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        done = (
            ray.data.from_items(
                [dict(shard=shard) for shard in shards], override_num_blocks=len(shards)
            )
            .map_batches(
                _Actor,
                fn_constructor_args=(recipe, os.path.abspath(folder.path)),
                batch_size=1,
                num_gpus=1 if gpus else 0,
                compute=ray.data.ActorPoolStrategy(size=actors or max(gpus, 1)),
            )
            .iter_rows()
        )
        with LabelProgress(folder, shards, Console(stderr=True), show) as progress:
            for row in done:
                if row["problem"]:
                    raise ConfigError(row["problem"])
                count = folder.counts[row["shard"]]
                for number in range(count):
                    progress.add(failed=number < row["failed"])
    finally:
        if ours:
            ray.shutdown()
