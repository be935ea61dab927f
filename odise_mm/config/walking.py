"""What stands where in a config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

STAGES = {
    "train": ("train_dataloader", "train_cfg", "optim_wrapper"),
    "val": ("val_dataloader", "val_cfg", "val_evaluator"),
    "test": ("test_dataloader", "test_cfg", "test_evaluator"),
}
PIPELINES = {"train": "train_pipeline", "val": "test_pipeline", "test": "test_pipeline"}
"""The variable that holds the pipeline of a stage's datasets."""

MIXER = "MultiImageMixDataset"


def kind_of(name: Any) -> str:
    """Bare name of a part's ``type``, which may be a class or have a scope before it."""
    return (name if isinstance(name, str) else getattr(name, "__name__", "")).rpartition(".")[2]


def name_of(cfg: Config) -> str:
    return cfg.filename or "config"


def text_of(err: Exception) -> str:
    # str() of a KeyError is the repr of its message.
    return str(err.args[0]) if isinstance(err, KeyError) and err.args else str(err)


def named_weights(node: object) -> list[str]:
    """Weights (files, folders, hub names) that the parts of a model's config name."""
    if isinstance(node, dict):
        own = [str(node["weights"])] if node.get("weights") else []
        return own + [name for value in node.values() for name in named_weights(value)]
    if isinstance(node, (list, tuple)):
        return [name for item in node for name in named_weights(item)]
    return []


def inner_configs(dataset: Any, path: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """A dataset's config and those that it wraps, from the outermost to the innermost.

    Args:
        dataset: the config; what is not a dict, such as a built dataset, is passed over.
        path: its place, for messages.

    Returns:
        Place, config, and whether it wraps others.
    """
    if not isinstance(dataset, dict):
        return
    one, several = dataset.get("dataset"), dataset.get("datasets")
    wrapped = [(f"{path}.dataset", one)] if isinstance(one, dict) else []
    if isinstance(several, (list, tuple)):
        wrapped += [(f"{path}.datasets[{index}]", each) for index, each in enumerate(several)]
    yield path, dataset, bool(wrapped)
    for place, each in wrapped:
        yield from inner_configs(each, place)


def with_pipeline(dataset: Any, path: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Datasets that have pipelines, with their places, and whether they are inside of a mixer."""
    mixers: list[str] = []
    for place, each, wraps in inner_configs(dataset, path):
        mixes = kind_of(each.get("type")) == MIXER
        if mixes or not wraps:
            yield place, each, any(place.startswith(f"{mixer}.") for mixer in mixers)
        if mixes:
            mixers.append(place)


def pipeline_users(cfg: Config, stage: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Datasets of a stage that have the stage's pipeline where they name none, with their places.

    These are all with pipelines but those inside of a mixer, which load single images.
    """
    loader = cfg.get(f"{stage}_dataloader")
    if isinstance(loader, dict):
        for place, dataset, mixed in with_pipeline(
            loader.get("dataset"), f"{stage}_dataloader.dataset"
        ):
            if not mixed:
                yield place, dataset


def all_datasets(cfg: Config, stage: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    loader = cfg.get(f"{stage}_dataloader")
    if isinstance(loader, dict):
        yield from inner_configs(loader.get("dataset"), f"{stage}_dataloader.dataset")


def datasets_of(cfg: Config, stage: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The datasets of a stage with their places, wrapped ones included, wrappers left out."""
    for path, dataset, wraps in all_datasets(cfg, stage):
        if not wraps:
            yield path, dataset
