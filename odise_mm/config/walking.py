"""Access to the parts of a config: datasets, pipelines, weights."""

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
"""Name of the variable with the pipeline of the datasets, by stage."""

MIXER = "MultiImageMixDataset"


def kind_of(name: Any) -> str:
    """Return the name of a part's ``type`` without scope; the type may be a string or a class."""
    return (name if isinstance(name, str) else getattr(name, "__name__", "")).rpartition(".")[2]


def name_of(cfg: Config) -> str:
    """Return the name of a config for messages: its file name, or "config"."""
    return cfg.filename or "config"


def text_of(err: Exception) -> str:
    """Return the message of an exception."""
    # str() of a KeyError is the repr of its message.
    return str(err.args[0]) if isinstance(err, KeyError) and err.args else str(err)


def named_weights(node: object) -> list[str]:
    """Return all weights (files, folders, hub names) in a model's config."""
    if isinstance(node, dict):
        own = [str(node["weights"])] if node.get("weights") else []
        return own + [name for value in node.values() for name in named_weights(value)]
    if isinstance(node, (list, tuple)):
        return [name for item in node for name in named_weights(item)]
    return []


def inner_configs(dataset: Any, path: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield a dataset's config and those of the datasets that it wraps, the outermost first.

    Args:
        dataset: the config; values other than dicts, such as built datasets, are skipped.
        path: its place in the config, for messages.

    Yields:
        Place, config, and whether the dataset wraps others.
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
    """Yield the datasets that use a pipeline: place, config, and whether a mixer contains them."""
    mixers: list[str] = []
    for place, each, wraps in inner_configs(dataset, path):
        mixes = kind_of(each.get("type")) == MIXER
        if mixes or not wraps:
            yield place, each, any(place.startswith(f"{mixer}.") for mixer in mixers)
        if mixes:
            mixers.append(place)


def pipeline_users(cfg: Config, stage: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place and config of the datasets whose default pipeline is that of the stage.

    These are all datasets with a pipeline except those inside a mixer, which load single images.
    """
    loader = cfg.get(f"{stage}_dataloader")
    if isinstance(loader, dict):
        for place, dataset, mixed in with_pipeline(
            loader.get("dataset"), f"{stage}_dataloader.dataset"
        ):
            if not mixed:
                yield place, dataset


def all_datasets(cfg: Config, stage: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield place, config, and whether it wraps others, for all datasets of a stage."""
    loader = cfg.get(f"{stage}_dataloader")
    if isinstance(loader, dict):
        yield from inner_configs(loader.get("dataset"), f"{stage}_dataloader.dataset")


def datasets_of(cfg: Config, stage: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place and config of the datasets of a stage, without wrappers."""
    for path, dataset, wraps in all_datasets(cfg, stage):
        if not wraps:
            yield path, dataset
