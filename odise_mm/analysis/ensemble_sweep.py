"""Exponents of the ensemble, tried on saved predictions: no model is built, none is run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from importlib import import_module
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from odise_mm.analysis.predictions import Prediction, PredictionFolder, PredictionsError
from odise_mm.analysis.sweep_results import MAIN, TASKS, Sweep, Value
from odise_mm.checkpoints.training_names import noted
from odise_mm.config.building import build_part, config_errors
from odise_mm.config.untrusted import check_imports, check_types
from odise_mm.config.walking import inner_configs
from odise_mm.datasets.seeding import build_seeded
from odise_mm.engine.loops import tasks_of, vocabulary_of
from odise_mm.errors import ConfigError
from odise_mm.evaluation.base import DatasetMetric
from odise_mm.models import GeometricEnsemble
from odise_mm.models.postprocess import resize_masks
from odise_mm.models.segmentors.results import add_results
from odise_mm.registry import DATASETS, METRICS, MODELS
from odise_mm.vocabulary import Vocabulary


def sweep(
    path: str,
    alphas: list[float],
    betas: list[float],
    tasks: list[str],
    custom_imports: Sequence[str] = (),
) -> Sweep:
    """Try all values on the predictions in a folder.

    Args:
        path: of the folder.
        alphas, betas: to try.
        tasks: to measure.
        custom_imports: modules with parts of the user's own, which may be built.

    Raises:
        PredictionsError: the folder is incomplete, or is of one classifier only.
        ConfigError: the ensemble has no such exponents, none of the tasks is measured, or the
            folder names parts that are neither this package's nor of ``custom_imports``.
        DatasetError: the set's ground truth is missing.
    """
    folder = PredictionFolder(path)
    described = folder.describe()
    cfg = read_config(folder, custom_imports)
    count = described["images"]
    missing = folder.missing(count)
    if missing:
        raise PredictionsError(
            f"{path} has {count - len(missing)} of {count} images (the first missing: number "
            f"{missing[0]}): give the command that saved them again, it goes on from there"
        )
    if len(described["classifiers"]) != 2:
        raise PredictionsError(
            f"{path} holds the predictions of {', '.join(described['classifiers'])}: an "
            "ensemble needs two classifiers; "
            "save with a config that has both, such as ablation/classification/both"
        )
    ensemble_cfg = cfg.model.ensemble
    if ensemble_cfg.get("train_vocabulary") is None:  # then the model's was the checkpoint's
        ensemble_cfg = {**ensemble_cfg, "train_vocabulary": noted(described)}
    with config_errors(cfg):
        default = build_part(ensemble_cfg, MODELS)
        values = plan_values(alphas, betas, _exponents(default, ensemble_cfg["type"]))
        ensembles = [build_part({**ensemble_cfg, "alpha": v.alpha, "beta": v.beta}, MODELS)
                   for v in values]  # fmt: skip
        dataset = build_dataset(cfg)
        evaluators = [build_evaluator(cfg, dataset, tasks) for _ in values]
    needed = tasks_of(evaluators[0])
    test_cfg = {**described["test_cfg"], **{task: task in needed for task in TASKS}}
    walk(folder, count, ensembles, evaluators, vocabulary_of(dataset), test_cfg)
    for value, evaluator in zip(values, evaluators, strict=True):
        found = evaluator.evaluate(count)
        value.numbers = {k: float(v) if math.isfinite(v) else None for k, v in found.items()}
    subsets = tuple(dataset.metainfo.get("subsets", {}))
    result = Sweep(described["set"], values, _notes(described), subsets)
    if not result.columns():
        raise PredictionsError(f"{path}: the set has nothing that {', '.join(MAIN)} could measure")
    return result


def plan_values(alphas: list[float], betas: list[float], own: tuple[float, float]) -> list[Value]:
    """Each classifier alone, the config's own exponents, and the grid; none of them twice."""
    values = {
        (0.0, 0.0): Value(0.0, 0.0, "diffusion only"),
        (1.0, 1.0): Value(1.0, 1.0, "CLIP only"),
    }
    for pair in [own, *((a, b) for a in sorted(set(alphas)) for b in sorted(set(betas)))]:
        values.setdefault(pair, Value(*pair))
    values[own].own = True
    return list(values.values())


def _exponents(ensemble: nn.Module, kind: str) -> tuple[float, float]:
    if not (hasattr(ensemble, "alpha") and hasattr(ensemble, "beta")):
        raise ValueError(f"{kind} has no alpha and beta to sweep")
    return ensemble.alpha, ensemble.beta


def _notes(described: dict[str, Any]) -> list[str]:
    notes = [
        f"{described['images']} images of {described['set']}; model {described['config']}, "
        f"weights {(described['checkpoint'] or {}).get('file', 'random')}, predictions of "
        f"{' and '.join(described['classifiers'])}; mask logits stored as {described['masks']}.",
        "* the config's own exponents.",
    ]
    if described["limit"] is not None:
        notes.append("Limited to the first images of the set: these are no benchmark numbers.")
    if described["random_weights"]:
        notes.append("Random weights: these numbers mean nothing.")
    return notes


def read_config(folder: PredictionFolder, custom_imports: Sequence[str] = ()) -> Config:
    """The test's config, whose parts are those of this package and of ``custom_imports``.

    Raises:
        ConfigError: it names others; or a module of ``custom_imports`` cannot be imported.
    """
    where = str(folder.path / "config.json")
    content = folder.config()
    for module in custom_imports:
        try:
            import_module(module)
        except ImportError as err:
            raise ConfigError(f"--custom-imports {module}: cannot be imported ({err})") from err
    check_imports(content.get("custom_imports"), custom_imports, where)
    try:
        ensemble, dataset = content["model"]["ensemble"], content["test_dataloader"]["dataset"]
        metrics = content["test_evaluator"]
    except (KeyError, TypeError) as err:
        raise ConfigError(f"{where}: not the config of a test ({err!r})") from err
    check_types(ensemble, MODELS, f"{where}: model.ensemble", custom_imports, GeometricEnsemble)
    check_types(without_pipelines(dataset), DATASETS, f"{where}: dataset", custom_imports)
    check_types(metrics, METRICS, f"{where}: test_evaluator", custom_imports, DatasetMetric)
    init_default_scope("odise_mm")
    return Config(content, filename=where)


def without_pipelines(dataset: Any) -> Any:
    """A dataset's config whose images are not to be opened."""
    dataset = deepcopy(dataset)
    for _, each, wraps in inner_configs(dataset, ""):
        if not wraps:
            each["pipeline"] = []
    return dataset


def build_dataset(cfg: Config) -> Any:
    """The test set, for names and number of images: its images are not opened."""
    return build_seeded(without_pipelines(cfg.test_dataloader["dataset"]))


def build_evaluator(cfg: Config, dataset: Any, tasks: list[str]) -> Evaluator:
    """The set's metrics, those of the tasks."""
    metrics = cfg.test_evaluator
    evaluator = Evaluator(metrics if isinstance(metrics, list) else [metrics])
    kept = [metric for metric in evaluator.metrics if getattr(metric, "task", None) in tasks]
    if not kept:
        measured = {str(getattr(metric, "task", None)) for metric in evaluator.metrics}
        raise ValueError(f"the set is measured by {', '.join(measured)}, not by {' '.join(tasks)}")
    evaluator.metrics = kept
    for metric in kept:
        metric.ids_repeat = getattr(dataset, "ids_repeat", False)
    evaluator.dataset_meta = dataset.metainfo
    return evaluator


def walk(
    folder: PredictionFolder,
    count: int,
    ensembles: list[nn.Module],
    evaluators: list[Evaluator],
    vocabulary: Vocabulary,
    test_cfg: dict[str, Any],
) -> None:
    """Show every evaluator what its ensemble makes of every image."""
    console = Console(stderr=True)
    images = track(
        range(count),
        f"{len(ensembles)} values on {count} images",
        console=console,
        disable=not console.is_terminal,
    )
    with torch.no_grad():
        for index in images:
            prediction = folder.read(index)
            masks = resized_masks(prediction)
            made: list[tuple[Tensor, Any]] = []
            for ensemble, evaluator in zip(ensembles, evaluators, strict=True):
                scores = ensemble(prediction.class_predictions, vocabulary)[0]
                # Where no class, or every class, was seen in training many values are the same.
                sample = next((s for known, s in made if torch.equal(known, scores)), None)
                if sample is None:
                    sample = make_results(prediction, masks, scores, vocabulary, test_cfg)
                    made.append((scores, sample))
                evaluator.process(data_samples=[sample], data_batch=None)


def resized_masks(prediction: Prediction) -> Tensor:
    """Mask logits at the size of the results, as the segmentor makes them."""
    sizes = (prediction.metainfo[key][:2] for key in ("pad_shape", "img_shape", "ori_shape"))
    return resize_masks(prediction.masks, *sizes)


def make_results(
    prediction: Prediction,
    masks: Tensor,
    scores: Tensor,
    vocabulary: Vocabulary,
    test_cfg: dict[str, Any],
) -> Any:
    """A sample with the results of one image, as the segmentor makes it."""
    sample = DetDataSample(metainfo=prediction.metainfo)
    add_results(sample, masks, scores, vocabulary, test_cfg)
    return sample
