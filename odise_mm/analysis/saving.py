"""Saving of a model's predictions on test sets, image by image and resumable."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch.utils.data import Subset

from odise_mm.analysis.predictions import (
    Prediction,
    PredictionFolder,
    PredictionsError,
    predict_each_classifier,
)
from odise_mm.benchmarks.planning import NO_CHECKPOINT
from odise_mm.benchmarks.report import describe_vocabulary
from odise_mm.benchmarks.running import describe_run
from odise_mm.benchmarks.sets import BenchmarkSet
from odise_mm.checkpoints.training_names import note_of, train_vocabulary
from odise_mm.config.changing import complete_config
from odise_mm.config.checking import check_config, is_complete
from odise_mm.engine.loops import bound_to, plain_worker_errors, unwrapped, vocabulary_of
from odise_mm.engine.runner import OpenVocabRunner
from odise_mm.utils.memory import memory_guard


@dataclass(frozen=True)
class SavingJob:
    """Settings of a run that saves predictions.

    Attributes:
        out: Parent folder; every test set gets a folder in it.
        checkpoint: Name or file of the checkpoint, as given by the user.
        precision: Precision of the model, "fp32", "fp16" or "bf16".
        masks: Precision of the saved mask logits, "fp16" or "fp32".
        limit: Number of images that each test set was limited to; None for all.
        changes: Changes of the config, as given by the user.
    """

    out: str
    checkpoint: str
    precision: str = "fp32"
    masks: str = "fp16"
    limit: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)


def save_set(runner: OpenVocabRunner, test_set: BenchmarkSet, job: SavingJob, bar: Progress) -> str:
    """Save the missing predictions on one test set.

    Args:
        runner: Runner with a model from :func:`odise_mm.benchmarks.running.make_runner`.
        test_set: The test set.
        job: Settings.
        bar: Progress bar to update.

    Returns:
        A message with the folder, the number of images and the size.

    Raises:
        PredictionsError: The folder holds predictions of another run, or the disk is too small.
    """
    cfg = complete_config(test_set.cfg)
    check_config(cfg)
    loader = dict(cfg.test_dataloader)
    dataset = runner.build_dataloader(loader).dataset
    folder = PredictionFolder(Path(job.out) / test_set.name)
    folder.begin(describe(runner, test_set, job, dataset), cfg.to_dict())
    missing = folder.missing(len(dataset))
    task = bar.add_task(test_set.name, total=len(dataset), completed=len(dataset) - len(missing))
    if missing:
        rest = runner.build_dataloader({**loader, "dataset": Subset(dataset, missing)})
        model = runner.model.eval()
        places = iter(missing)
        sizes: list[int] = []
        with plain_worker_errors(), bound_to(model, dataset):
            for batch in rest:
                for prediction in _predict(model, batch):
                    sizes.append(folder.write(next(places), prediction, job.masks))
                    if len(sizes) == 1:
                        total = sizes[0] * len(missing)
                        check_space(folder.path, total)
                        text = f"{test_set.name} (about {total / 1e9:.2f} GB)"
                        bar.update(task, description=text)
                    bar.advance(task)
    used = sum(folder.file(index).stat().st_size for index in range(len(dataset)))
    return (
        f"{folder.path}: {len(dataset)} images, {used / 1e6:.1f} MB; {len(missing)} of them are new"
    )


def _predict(model: Any, batch: Any) -> list[Prediction]:
    seen = [sample.metainfo["img_shape"][:2] for sample in batch["data_samples"]]
    device = next(model.parameters()).device
    with torch.no_grad(), memory_guard(device, model.precision, seen):
        return predict_each_classifier(model, batch)


def describe(
    runner: OpenVocabRunner, test_set: BenchmarkSet, job: SavingJob, dataset: Any
) -> dict[str, Any]:
    """Describe everything that the predictions depend on, for ``set.json``.

    Args:
        runner: Runner with the model.
        test_set: The test set.
        job: Settings.
        dataset: The built dataset of the test set.
    """
    run = describe_run(runner, job.checkpoint, job.precision, job.changes)
    model = unwrapped(runner.model)
    vocabulary, trained = vocabulary_of(dataset), train_vocabulary(model)
    return dict(
        set=test_set.name,
        images=len(dataset),
        limit=job.limit,
        config=run["config"]["file"],
        options=run["config"]["options"],
        model={
            k: v for k, v in run["config"]["model"].items() if k not in ("ensemble", "test_cfg")
        },
        pipeline=run["config"]["test_pipeline"],
        dataset=_settings(test_set.dataset),
        checkpoint=run["checkpoint"],
        random_weights=job.checkpoint == NO_CHECKPOINT and not is_complete(runner.cfg),
        precision=job.precision,
        masks=job.masks,
        test_cfg=model.test_cfg,
        classifiers=[type(classifier).__name__ for classifier in model.classifiers],
        vocabulary=describe_vocabulary(vocabulary, vocabulary.name),
        train_vocabulary=None if trained is None else note_of(trained),
        started=run["started"],
        versions=run["versions"],
    )


def _settings(dataset: Any) -> Any:
    """Return a dataset's config without the settings that do not affect predictions."""
    if isinstance(dataset, (list, tuple)):
        return [_settings(each) for each in dataset]
    if not isinstance(dataset, dict):
        return dataset
    if dataset.get("type") == "FirstImages":
        return _settings(dataset["dataset"])
    left_out = ("indices", "subsets")
    return {k: _settings(value) for k, value in dataset.items() if k not in left_out}


def check_space(folder: Path, wanted: int) -> None:
    """Check that a disk has enough space.

    Args:
        folder: A folder on the disk.
        wanted: Number of bytes needed.

    Raises:
        PredictionsError: The disk has less space left.
    """
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise PredictionsError(
            f"{folder} would take about {wanted / 1e9:.1f} GB, but its disk has only "
            f"{free / 1e9:.1f} GB left; free some space, use another --out, or fewer images "
            "(--limit)"
        )
