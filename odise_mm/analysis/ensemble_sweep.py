"""Sweep over the exponents of the ensemble, on saved predictions and without a model."""

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
from odise_mm.models.heads.mask2former_head import Frame
from odise_mm.models.postprocess import TEST_CFG
from odise_mm.models.segmentors.results import add_results, resize_for_results
from odise_mm.registry import DATASETS, METRICS, MODELS
from odise_mm.vocabulary import Vocabulary


def sweep(
    path: str,
    alphas: list[float],
    betas: list[float],
    tasks: list[str],
    custom_imports: Sequence[str] = (),
) -> Sweep:
    """Evaluate all pairs of exponents on the predictions in a folder.

    Args:
        path: Folder with the saved predictions of one test set.
        alphas: Values of alpha to try.
        betas: Values of beta to try; every pair of alpha and beta is tried.
        tasks: Tasks to measure, out of ``TASKS``.
        custom_imports: Modules outside this package whose classes the config may use.

    Returns:
        The numbers of every pair.

    Raises:
        PredictionsError: The folder is incomplete, or holds predictions of one classifier only.
        ConfigError: The ensemble has no exponents, the dataset measures none of the tasks, or the
            config uses classes that belong neither to this package nor to ``custom_imports``.
        DatasetError: The ground truth of the dataset is missing.
    """
    folder = PredictionFolder(path)
    described = folder.describe()
    cfg = read_config(folder, custom_imports)
    count = described["images"]
    missing = folder.missing(count)
    if missing:
        raise PredictionsError(
            f"{path} has only {count - len(missing)} of {count} images (first missing: number "
            f"{missing[0]}); run the command that saved them again, it continues from there"
        )
    if len(described["classifiers"]) != 2:
        raise PredictionsError(
            f"{path} holds predictions of {', '.join(described['classifiers'])} only, but an "
            "ensemble needs two classifiers; "
            "save predictions with a config that has two, such as ablation/classification/both"
        )
    ensemble_cfg = cfg.model.ensemble
    # Without a training vocabulary in the config, the model used the checkpoint's.
    if ensemble_cfg.get("train_vocabulary") is None:
        ensemble_cfg = {**ensemble_cfg, "train_vocabulary": noted(described)}
    with config_errors(cfg):
        default = build_part(ensemble_cfg, MODELS)
        values = plan_values(alphas, betas, _exponents(default, ensemble_cfg["type"]))
        ensembles = [build_part({**ensemble_cfg, "alpha": v.alpha, "beta": v.beta}, MODELS)
                   for v in values]  # fmt: skip
        dataset = build_dataset(cfg)
        evaluators = [build_evaluator(cfg, dataset, tasks) for _ in values]
    needed = tasks_of(evaluators[0])
    test_cfg = {**TEST_CFG, **described["test_cfg"], **{task: task in needed for task in TASKS}}
    walk(folder, count, ensembles, evaluators, vocabulary_of(dataset), test_cfg)
    for value, evaluator in zip(values, evaluators, strict=True):
        found = evaluator.evaluate(count)
        value.numbers = {k: float(v) if math.isfinite(v) else None for k, v in found.items()}
    subsets = tuple(dataset.metainfo.get("subsets", {}))
    result = Sweep(described["set"], values, _notes(described), subsets)
    if not result.columns():
        raise PredictionsError(f"{path}: the dataset has no ground truth for {', '.join(MAIN)}")
    return result


def plan_values(alphas: list[float], betas: list[float], own: tuple[float, float]) -> list[Value]:
    """List the pairs to try: each classifier alone, the config's pair, and the grid.

    Args:
        alphas: Values of alpha of the grid.
        betas: Values of beta of the grid.
        own: Alpha and beta of the config.

    Returns:
        The pairs without repetitions.
    """
    values = {
        (0.0, 0.0): Value(0.0, 0.0, "without CLIP"),
        (1.0, 1.0): Value(1.0, 1.0, "CLIP only"),
    }
    for pair in [own, *((a, b) for a in sorted(set(alphas)) for b in sorted(set(betas)))]:
        values.setdefault(pair, Value(*pair))
    values[own].own = True
    return list(values.values())


def _exponents(ensemble: nn.Module, kind: str) -> tuple[float, float]:
    if not (hasattr(ensemble, "alpha") and hasattr(ensemble, "beta")):
        raise ValueError(f"{kind} has no exponents alpha and beta to sweep")
    return ensemble.alpha, ensemble.beta


def _notes(described: dict[str, Any]) -> list[str]:
    notes = [
        f"{described['images']} images of {described['set']}; model {described['config']}, "
        f"weights {(described['checkpoint'] or {}).get('file', 'random')}, predictions of "
        f"{' and '.join(described['classifiers'])}; mask logits stored as {described['masks']}.",
        "* exponents of the config.",
    ]
    if described["limit"] is not None:
        notes.append("Limited to the first images of the dataset: not benchmark numbers.")
    if described["random_weights"]:
        notes.append("Random weights: these numbers are meaningless.")
    return notes


def read_config(folder: PredictionFolder, custom_imports: Sequence[str] = ()) -> Config:
    """Read and check the config that the predictions were made with.

    Args:
        folder: Folder with the saved predictions.
        custom_imports: Modules outside this package whose classes the config may use.

    Raises:
        ConfigError: The config uses classes that belong neither to this package nor to
            ``custom_imports``, or a module of ``custom_imports`` cannot be imported.
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
        raise ConfigError(f"{where}: not a test config ({err!r})") from err
    check_types(ensemble, MODELS, f"{where}: model.ensemble", custom_imports, GeometricEnsemble)
    check_types(without_pipelines(dataset), DATASETS, f"{where}: dataset", custom_imports)
    check_types(metrics, METRICS, f"{where}: test_evaluator", custom_imports, DatasetMetric)
    init_default_scope("odise_mm")
    return Config(content, filename=where)


def without_pipelines(dataset: Any) -> Any:
    """Return a copy of a dataset's config with empty pipelines."""
    dataset = deepcopy(dataset)
    for _, each, wraps in inner_configs(dataset, ""):
        if not wraps:
            each["pipeline"] = []
    return dataset


def build_dataset(cfg: Config) -> Any:
    """Build the test dataset without pipelines, for its class names and number of images."""
    return build_seeded(without_pipelines(cfg.test_dataloader["dataset"]))


def build_evaluator(cfg: Config, dataset: Any, tasks: list[str]) -> Evaluator:
    """Build an evaluator with the dataset's metrics for some tasks.

    Args:
        cfg: The test config.
        dataset: The test dataset.
        tasks: Tasks to measure, out of ``TASKS``.

    Raises:
        ValueError: The config has no metric for any of the tasks.
    """
    metrics = cfg.test_evaluator
    evaluator = Evaluator(metrics if isinstance(metrics, list) else [metrics])
    kept = [metric for metric in evaluator.metrics if getattr(metric, "task", None) in tasks]
    if not kept:
        measured = {str(getattr(metric, "task", None)) for metric in evaluator.metrics}
        raise ValueError(
            f"no metric for {' '.join(tasks)}; the dataset is measured by {', '.join(measured)}"
        )
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
    """Pass the results of every ensemble on every image to its evaluator.

    Args:
        folder: Folder with the saved predictions.
        count: Number of images.
        ensembles: Ensembles to evaluate.
        evaluators: One evaluator for each ensemble.
        vocabulary: Classes of the dataset.
        test_cfg: The segmentor's settings for results, ``model.test_cfg``.
    """
    console = Console(stderr=True)
    images = track(
        range(count),
        f"{len(ensembles)} pairs on {count} images",
        console=console,
        disable=not console.is_terminal,
    )
    with torch.no_grad():
        for index in images:
            prediction = folder.read(index)
            masks = resized_masks(prediction, test_cfg)
            done: list[tuple[Tensor, Any]] = []
            for ensemble, evaluator in zip(ensembles, evaluators, strict=True):
                scores = ensemble(prediction.class_predictions, vocabulary)[0]
                # If no class, or every class, is a base class, many pairs give equal scores.
                sample = next((s for known, s in done if torch.equal(known, scores)), None)
                if sample is None:
                    sample = make_results(prediction, masks, scores, vocabulary, test_cfg)
                    done.append((scores, sample))
                evaluator.process(data_samples=[sample], data_batch=None)


def resized_masks(prediction: Prediction, test_cfg: dict[str, Any]) -> Tensor:
    """Resize masks to the original image size, as the segmentor does; (Q, H, W).

    Args:
        prediction: The saved prediction.
        test_cfg: The segmentor's settings for results, ``model.test_cfg``.
    """
    padded, image, size = (
        prediction.metainfo[key][:2] for key in ("pad_shape", "img_shape", "ori_shape")
    )
    return resize_for_results(prediction.masks, Frame(padded, image), size, test_cfg)


def make_results(
    prediction: Prediction,
    masks: Tensor,
    scores: Tensor,
    vocabulary: Vocabulary,
    test_cfg: dict[str, Any],
) -> Any:
    """Make the data sample of one image, as the segmentor does.

    Args:
        prediction: The saved prediction.
        masks: Output of :func:`resized_masks`.
        scores: Class probabilities from the ensemble, (Q, classes + 1).
        vocabulary: Classes of the dataset.
        test_cfg: The segmentor's settings for results, ``model.test_cfg``.

    Returns:
        A ``DetDataSample`` with the results.
    """
    sample = DetDataSample(metainfo=prediction.metainfo)
    add_results(sample, masks, scores, vocabulary, test_cfg)
    return sample
