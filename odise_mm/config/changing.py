"""Configs of a run: what is changed in them from outside, and what short ones leave out."""

from __future__ import annotations

import copy
import os
from typing import Any

from mmengine.config import Config
from mmengine.optim.scheduler.param_scheduler import INF

from odise_mm.config.walking import (
    PIPELINES,
    STAGES,
    kind_of,
    name_of,
    pipeline_users,
    text_of,
)
from odise_mm.errors import ConfigError
from odise_mm.utils.old_keys import rename_model_keys


def complete_config(cfg: Config) -> Config:
    """A copy in which everything is said that a run needs and a short config leaves out.

    * A dataset without ``pipeline`` gets ``train_pipeline`` or ``test_pipeline``, wrapped ones
      included. Of ``MultiImageMixDataset`` it is the wrapper that gets it: the dataset inside says
      itself how a single image is loaded. A pipeline that is there stays, as in mmdet; see
      :func:`unused_pipelines`.
    * ``optim_wrapper.constructor`` is the one that leaves frozen parameters out.
    * Schedules in steps have no ``end``. mmengine ends them with the training and saves that: a
      training that is resumed to go on for longer would miss its milestones.
    """
    cfg = copy.deepcopy(cfg) if isinstance(cfg, Config) else Config(copy.deepcopy(cfg))
    for stage in STAGES:
        steps = cfg.get(PIPELINES[stage])
        if steps is not None:
            for _, dataset in pipeline_users(cfg, stage):
                dataset.setdefault("pipeline", steps)
    if isinstance(cfg.get("optim_wrapper"), dict):
        cfg.optim_wrapper.setdefault("constructor", "TrainedParametersConstructor")
    schedules = cfg.get("param_scheduler") or []
    for schedule in [schedules] if isinstance(schedules, dict) else schedules:
        if kind_of(schedule.get("type")).startswith(("MultiStep", "Step")):
            schedule.setdefault("end", INF)
    return cfg


def unused_pipelines(cfg: Config) -> list[str]:
    """What to warn of: ``train_pipeline`` or ``test_pipeline`` that no dataset of a stage uses.

    A config that inherits and replaces ``train_pipeline`` alone changes a variable: the dataset
    of its base keeps the pipeline that it was given there. To change it in both places is mmdet's
    way.
    """
    found = []
    for stage, key in PIPELINES.items():
        users = list(pipeline_users(cfg, stage))
        if cfg.get(key) is None or not users:
            continue
        if all(dataset.get("pipeline", cfg[key]) != cfg[key] for _, dataset in users):
            loader = f"{stage}_dataloader"
            found.append(
                f"`{key}` is not used by {loader}: {users[0][0]} has another pipeline. If "
                f"`{key}` is meant, say so in the config: {loader} = dict(dataset=dict(pipeline="
                f"{key})); if the dataset's own is, {key} = None"
            )
    return found


def change_config(cfg: Config, changes: dict[str, Any]) -> None:
    """Change settings by dotted keys, as mmengine's ``--cfg-options`` does.

    A change of ``train_pipeline`` or ``test_pipeline`` reaches the datasets whose pipeline is the
    same one.

    Raises:
        ConfigError: a key that leads through something without keys, or past a list's end.
    """
    before = {stage: copy.deepcopy(cfg.get(key)) for stage, key in PIPELINES.items()}
    same = {
        place
        for stage, steps in before.items()
        for place, dataset in pipeline_users(cfg, stage)
        if steps is not None and dataset.get("pipeline") == steps
    }
    try:
        cfg.merge_from_dict(dict(changes))
    except (KeyError, TypeError, AssertionError, AttributeError) as err:
        raise ConfigError(
            f"{name_of(cfg)}: cannot set {', '.join(changes)}: {text_of(err)}"
        ) from err
    rename_model_keys(cfg.get("model"))
    for stage, steps in before.items():
        for place, dataset in pipeline_users(cfg, stage):
            if place in same and dataset.get("pipeline") == steps:
                dataset["pipeline"] = copy.deepcopy(cfg[PIPELINES[stage]])


def set_frozen_weights(cfg: Config, part: str, weights: str) -> None:
    """Tell a config where the weights of a frozen part are: ``model.<part>.weights``.

    Raises:
        ConfigError: the model has no such part, or one that takes no weights.
    """
    config = cfg.model.get(part)
    if not isinstance(config, dict) or "weights" not in config:
        raise ConfigError(f"{name_of(cfg)}: has no `model.{part}.weights` to set")
    config["weights"] = weights


def set_precision(cfg: Config, precision: str) -> None:
    """Choose the arithmetic of training: ``fp32``, ``bf16`` or ``fp16`` (with loss scaling).

    Raises:
        ConfigError: an unknown name, or a config that does not train.
    """
    wrapper = cfg.get("optim_wrapper")
    if not isinstance(wrapper, dict):
        raise ConfigError(f"{name_of(cfg)}: has no `optim_wrapper`, so no precision of training")
    for key in ("dtype", "loss_scale"):
        wrapper.pop(key, None)
    kinds: dict[str, dict[str, Any]] = {
        "fp32": dict(type="OptimWrapper"),
        "bf16": dict(type="BFloat16OptimWrapper"),
        "fp16": dict(type="AmpOptimWrapper", dtype="float16", loss_scale="dynamic"),
    }
    if precision not in kinds:
        raise ConfigError(f"precision {precision!r} is not one of {', '.join(kinds)}")
    wrapper.update(kinds[precision])


def precision_of(cfg: Config) -> str:
    """The arithmetic that a config trains with, for people."""
    wrapper = cfg.optim_wrapper
    kind = kind_of(wrapper.get("type"))
    if kind == "BFloat16OptimWrapper":
        return "automatic mixed, bfloat16"
    return (
        f"automatic mixed, {wrapper.get('dtype') or 'float16'}" if kind[:3] == "Amp" else "float32"
    )


def set_data_root(cfg: Config, root: str | os.PathLike[str]) -> None:
    """Let another folder stand for ``data/`` at the beginning of all paths of a config."""
    for stage in STAGES:
        for key in STAGES[stage]:
            if key in cfg:
                cfg[key] = _rebased(cfg[key], os.fspath(root))


def _rebased(node: Any, root: str) -> Any:
    if isinstance(node, dict):
        for key in node:
            node[key] = _rebased(node[key], root)
        return node
    if isinstance(node, (list, tuple)):
        return type(node)(_rebased(item, root) for item in node)
    if isinstance(node, str) and (node == "data" or node.startswith("data/")):
        return os.path.join(root, node[len("data/") :])
    return node
