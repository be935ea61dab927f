"""Predictions of a model on a test set, saved image by image; what is there is not run again."""

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
from odise_mm.config.checking import check_config
from odise_mm.engine.loops import bound_to, plain_worker_errors, unwrapped, vocabulary_of
from odise_mm.engine.runner import OpenVocabRunner
from odise_mm.utils.memory import memory_guard


@dataclass(frozen=True)
class SavingJob:
    """What predictions are made with, and how they are saved.

    Attributes:
        out: every test set gets a folder in it.
        checkpoint: as the user named it.
        precision: of the arithmetic.
        masks: "fp16" or "fp32", how mask logits are stored.
        limit: what each set was limited to.
        changes: of the config, as the user gave them.
    """

    out: str
    checkpoint: str
    precision: str = "fp32"
    masks: str = "fp16"
    limit: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)


def save_set(runner: OpenVocabRunner, test_set: BenchmarkSet, job: SavingJob, bar: Progress) -> str:
    """Save those predictions of one set that are missing.

    Args:
        runner: with a model that is ready, see :func:`odise_mm.benchmarks.running.prepare_model`.
        test_set: the set.
        job: how.
        bar: shows how far it is.

    Returns:
        What there is now, in a sentence.

    Raises:
        PredictionsError: the folder holds predictions of another run, or the disk is too small.
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
        f"{folder.path}: {len(dataset)} images, {used / 1e6:.1f} MB; "
        f"{len(missing)} of them were run now"
    )


def _predict(model: Any, batch: Any) -> list[Prediction]:
    seen = [sample.metainfo["img_shape"][:2] for sample in batch["data_samples"]]
    device = next(model.parameters()).device
    with torch.no_grad(), memory_guard(device, model.precision, seen):
        return predict_each_classifier(model, batch)


def describe(
    runner: OpenVocabRunner, test_set: BenchmarkSet, job: SavingJob, dataset: Any
) -> dict[str, Any]:
    """What the predictions come from and depend on."""
    told = describe_run(runner, job.checkpoint, job.precision, job.changes)
    model = unwrapped(runner.model)
    vocabulary, trained = vocabulary_of(dataset), train_vocabulary(model)
    return dict(
        set=test_set.name,
        images=len(dataset),
        limit=job.limit,
        config=told["config"]["file"],
        options=told["config"]["options"],
        model={
            k: v for k, v in told["config"]["model"].items() if k not in ("ensemble", "test_cfg")
        },
        pipeline=told["config"]["test_pipeline"],
        dataset=_settings(test_set.dataset),
        checkpoint=told["checkpoint"],
        random_weights=job.checkpoint == NO_CHECKPOINT,
        precision=job.precision,
        masks=job.masks,
        test_cfg=model.test_cfg,
        classifiers=[type(classifier).__name__ for classifier in model.classifiers],
        vocabulary=describe_vocabulary(vocabulary, vocabulary.name),
        train_vocabulary=None if trained is None else note_of(trained),
        started=told["started"],
        versions=told["versions"],
    )


def _settings(dataset: Any) -> Any:
    """A dataset's config, without what does not change what is predicted for an image."""
    if isinstance(dataset, (list, tuple)):
        return [_settings(each) for each in dataset]
    if not isinstance(dataset, dict):
        return dataset
    if dataset.get("type") == "FirstImages":
        return _settings(dataset["dataset"])
    left_out = ("indices", "subsets")
    return {k: _settings(value) for k, value in dataset.items() if k not in left_out}


def check_space(folder: Path, wanted: int) -> None:
    """Refuse to begin what cannot be finished.

    Raises:
        PredictionsError: the disk has less room than that.
    """
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise PredictionsError(
            f"{folder} would take about {wanted / 1e9:.1f} GB and its disk has {free / 1e9:.1f} "
            "GB left: make room, take another --out, or fewer images (--limit)"
        )
