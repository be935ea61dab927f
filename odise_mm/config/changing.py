"""Configs of a run: what is changed in them from outside, and what short ones leave out."""

from __future__ import annotations

import copy
import os
from typing import Any

from mmengine.config import Config
from mmengine.optim.scheduler.param_scheduler import INF

from odise_mm.config.walking import STAGES, kind_of, name_of, text_of, with_pipeline
from odise_mm.errors import ConfigError


def complete_config(cfg: Config) -> Config:
    """A copy in which everything is said that a run needs and a short config leaves out.

    * A data set without ``pipeline`` gets ``train_pipeline`` or ``test_pipeline``, wrapped ones
      included. Of ``MultiImageMixDataset`` it is the wrapper that gets it: the dataset inside says
      itself how a single image is loaded.
    * ``optim_wrapper.constructor`` is the one that leaves frozen parameters out.
    * Schedules in steps have no ``end``. mmengine ends them with the training and saves that: a
      training that is resumed to go on for longer would miss its milestones.
    """
    cfg = copy.deepcopy(cfg) if isinstance(cfg, Config) else Config(copy.deepcopy(cfg))
    for stage in STAGES:
        steps = cfg.get("train_pipeline" if stage == "train" else "test_pipeline")
        loader = cfg.get(f"{stage}_dataloader")
        if steps is None or not isinstance(loader, dict):
            continue
        for _, dataset, mixed in with_pipeline(loader.get("dataset"), ""):
            if not mixed:
                dataset.setdefault("pipeline", steps)
    if isinstance(cfg.get("optim_wrapper"), dict):
        cfg.optim_wrapper.setdefault("constructor", "TrainedParametersConstructor")
    schedules = cfg.get("param_scheduler") or []
    for schedule in [schedules] if isinstance(schedules, dict) else schedules:
        if kind_of(schedule.get("type")).startswith(("MultiStep", "Step")):
            schedule.setdefault("end", INF)
    return cfg


def change_config(cfg: Config, changes: dict[str, Any]) -> None:
    """Change settings by dotted keys, as mmengine's ``--cfg-options`` does.

    Raises:
        ConfigError: a key that leads through something without keys, or past a list's end.
    """
    try:
        cfg.merge_from_dict(dict(changes))
    except (KeyError, TypeError, AssertionError, AttributeError) as err:
        raise ConfigError(
            f"{name_of(cfg)}: cannot set {', '.join(changes)}: {text_of(err)}"
        ) from err


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
