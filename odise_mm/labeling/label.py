"""The function that labels a collection of images."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.dist import barrier, broadcast_object_list, get_rank, get_world_size, is_distributed
from rich.console import Console

from odise_mm.errors import ConfigError, OdiseError, OutputError
from odise_mm.io.conversion import check_formats
from odise_mm.labeling.folder import LabelFolder
from odise_mm.labeling.listing import list_images
from odise_mm.labeling.progress import LabelProgress
from odise_mm.labeling.ray_engine import check_ray, label_with_ray
from odise_mm.labeling.worker import Recipe, Worker
from odise_mm.utils.outputs import owned_folders
from odise_mm.utils.settings import check_choice, check_whole

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from odise_mm.apis.inferencer import Texts
    from odise_mm.structures import ResultSettings

ENGINES = ("process", "ray")
LAUNCHERS = ("none", "pytorch", "slurm", "mpi")
_PATIENCE = 30 * 24 * 3600
"""Seconds that a process waits for the others at the end."""


@dataclass(frozen=True)
class LabelSummary:
    """What a labeling run has in its folder."""

    folder: Path
    labeled: int
    """Number of images with labels, also of earlier runs."""
    failed: int
    """Number of images in ``failed.jsonl``."""
    duplicates: int
    """Number of names in ``duplicates.jsonl``."""
    shards: list[Path]
    """Folders of all shards."""
    notice: str | None = None
    """What users of the labels have to know, such as that the weights are random."""


def label_images(
    sources: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    config: str | os.PathLike,
    weights: str | os.PathLike | None = None,
    *,
    texts: Texts | None = None,
    stuff_texts: str | Sequence[str] | None = None,
    vocabulary: Texts | None = None,
    formats: Sequence[str] = ("jsonl",),
    shard_size: int = 500,
    root: str | os.PathLike | None = None,
    column: str | None = None,
    retry_failed: bool = False,
    batch_size: int = 1,
    window: int | None = None,
    overlap: int | None = None,
    workers: int = 4,
    device: str | None = None,
    precision: str = "fp32",
    model: Mapping[str, Any] | None = None,
    engine: str = "process",
    launcher: str = "none",
    actors: int | None = None,
    progress: bool = True,
    **settings: Unpack[ResultSettings],
) -> LabelSummary:
    """Label a large collection of images, and write the labels in shards.

    The same call continues an interrupted run: finished shards are kept, wherever a process was
    killed, and new images of the sources get new shards. Threads read and write images while the
    model computes. :mod:`odise_mm.labeling.folder` describes the files.

    Args:
        sources: folders, lists, glob patterns, tar files (WebDataset) or parquet files, see
            :func:`odise_mm.labeling.listing.list_images`.
        out: folder for the labels.
        config, weights, device, precision: see :class:`~odise_mm.apis.OpenVocabInferencer`.
        texts, stuff_texts, vocabulary: the class names, see
            :meth:`~odise_mm.apis.OpenVocabInferencer.stream`.
        formats: names in :data:`odise_mm.io.FORMATS`; each has a folder in each shard.
        shard_size: number of images per shard. A killed process loses the shard that it was at.
        root: folder that names of images are relative to, and that no path in a list may leave.
            None: the folder that contains all sources.
        column: column of parquet files with images or paths. None: found by its name.
        retry_failed: whether to try the failed images of earlier runs again.
        batch_size, window, overlap: see :meth:`~odise_mm.apis.OpenVocabInferencer.stream`.
        workers: number of threads that read images.
        model: other arguments of :class:`~odise_mm.apis.OpenVocabInferencer`.
        engine: "process", or "ray" for the actors of a Ray cluster.
        launcher: how the processes of this run were started: "none" (one process), "pytorch"
            (torchrun), "slurm" or "mpi". Each labels its own part of the shards.
        actors: number of Ray actors. None: one per GPU.
        progress: whether to show the progress.
        settings: settings of the results, such as ``score_threshold=0.3``. With
            ``keep_queries=True``, the formats jsonl and parquet have probabilities and embeddings.

    Returns:
        The numbers of images, and the folders of the shards.

    Raises:
        DatasetError: a source cannot be listed.
        OutputError: the folder cannot be used, or has labels with other settings.
        ConfigError, CheckpointError, DeviceError, VocabularyError: see
            :class:`~odise_mm.apis.OpenVocabInferencer`.
    """
    check_choice("engine", engine, ENGINES)
    check_choice("launcher", launcher, LAUNCHERS)
    check_whole("shard_size", shard_size)
    check_whole("workers", workers, 0)
    check_formats(formats)
    if not formats:
        raise ConfigError("formats: name at least one, such as jsonl")
    if engine == "ray":
        check_ray()
        if launcher != "none":
            raise ConfigError("engine 'ray' starts its own processes: leave out the launcher")
    recipe = Recipe(
        config=os.fspath(config),
        weights=None if weights is None else os.fspath(weights),
        device=device,
        precision=precision,
        model=dict(model or {}),
        texts=texts,
        stuff_texts=stuff_texts,
        vocabulary=vocabulary,
        formats=tuple(formats),
        batch_size=batch_size,
        window=window,
        overlap=overlap,
        workers=workers,
        settings=dict(settings),
    )
    given = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    folder = LabelFolder(out)
    duplicates = 0

    def plan() -> None:
        nonlocal duplicates
        listing = list_images(given, root, column)
        duplicates = len(listing.duplicates)
        # Other sources below the same root are new images.
        folder.plan(listing, recipe.described(), shard_size, retry_failed)

    with owned_folders([out], "labeling images"):
        _join(launcher)
        _first_then_all(plan)
        folder.load()
        try:
            _label(recipe, folder, engine, actors, progress)
        except BaseException:
            if get_rank() == 0:
                folder.write_index()
            raise
        barrier()  # until all have finished their shards
        numbers = [folder.write_index() if get_rank() == 0 else (0, 0, 0)]
        broadcast_object_list(numbers)
    ((labeled, failed, missing),) = numbers
    if missing:
        raise OutputError(
            f"{out}: {missing:,} images are not labeled, because another process ended early; run "
            "the same command again"
        )
    shards = [folder.shards / f"{shard:06d}" for shard in sorted(folder.finished())]
    return LabelSummary(folder.path, labeled, failed, duplicates, shards, folder.notice())


def _label(
    recipe: Recipe, folder: LabelFolder, engine: str, actors: int | None, progress: bool
) -> None:
    """Label the shards that this process has to."""
    unfinished = folder.unfinished()
    barrier()  # all must see the same shards
    if engine == "ray":
        if unfinished:
            label_with_ray(recipe, folder, unfinished, actors, progress)
            folder.clean()  # lost nodes leave unfinished shards
        return
    mine = unfinished[get_rank() :: get_world_size()]
    if not mine:
        return
    worker = Worker(recipe, folder)
    show = progress and get_rank() == 0
    with LabelProgress(folder, mine, Console(stderr=True), show) as shown:
        worker.run(mine, shown.add)


def _join(launcher: str) -> None:
    """Meet the other processes of the run. They don't exchange tensors, so gloo suffices."""
    if launcher == "none" or is_distributed():
        return
    if torch.cuda.is_available():
        from mmengine.dist import init_dist

        init_dist(launcher, "gloo", timeout=_PATIENCE)
    else:
        from datetime import timedelta

        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=_PATIENCE))


def _first_then_all(work: Callable[[], None]) -> None:
    """Do something in the first process; an error is raised in all."""
    problem: list[OdiseError | None] = [None]
    if get_rank() == 0:
        try:
            work()
        except OdiseError as error:
            problem = [error]
    broadcast_object_list(problem)
    if problem[0] is not None:
        raise problem[0]
