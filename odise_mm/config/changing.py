"""Changes to the config of a run: command-line options, and defaults for omitted settings."""

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
    """Return a copy of a config with defaults for the settings that it omits.

    * A dataset without ``pipeline`` gets ``train_pipeline`` or ``test_pipeline``; this includes
      wrapped datasets. For ``MultiImageMixDataset`` the wrapper gets the pipeline, because the
      wrapped dataset needs its own one to load single images. As in mmdet, existing pipelines are
      not changed; see :func:`unused_pipelines`.
    * ``optim_wrapper.constructor`` is set to the one that omits frozen parameters.
    * Step schedules get no ``end``. By default, mmengine sets it to the end of the run and saves
      it, so a run that is resumed with more iterations would miss its milestones.
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
    """Return warnings for a ``train_pipeline`` or ``test_pipeline`` that no dataset uses.

    A derived config that replaces only ``train_pipeline`` changes a variable, but not the pipeline
    of the dataset in the base config. As in mmdet, both must be set.
    """
    found = []
    for stage, key in PIPELINES.items():
        users = list(pipeline_users(cfg, stage))
        if cfg.get(key) is None or not users:
            continue
        if all(dataset.get("pipeline", cfg[key]) != cfg[key] for _, dataset in users):
            loader = f"{stage}_dataloader"
            found.append(
                f"`{key}` is not used by {loader}: {users[0][0]} has another pipeline. To use "
                f"`{key}`, set {loader} = dict(dataset=dict(pipeline={key})) in the config; to use "
                f"the dataset's pipeline, set {key} = None"
            )
    return found


def change_config(cfg: Config, changes: dict[str, Any]) -> None:
    """Change settings by dotted keys, in place, as mmengine's ``--cfg-options`` does.

    A change of ``train_pipeline`` or ``test_pipeline`` also applies to the datasets that have the
    same pipeline.

    Args:
        cfg: the config to change.
        changes: new values by dotted keys.

    Raises:
        ConfigError: a key goes through a value without keys, or past the end of a list.
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
    """Set the weights of a frozen part of the model, ``model.<part>.weights``.

    Raises:
        ConfigError: the model has no such part, or the part has no setting ``weights``.
    """
    config = cfg.model.get(part)
    if not isinstance(config, dict) or "weights" not in config:
        raise ConfigError(f"{name_of(cfg)}: cannot set `model.{part}.weights`: no such setting")
    config["weights"] = weights


def set_precision(cfg: Config, precision: str) -> None:
    """Set the precision of training: ``fp32``, ``bf16`` or ``fp16`` (with loss scaling).

    Raises:
        ConfigError: the precision is unknown, or the config has no ``optim_wrapper``.
    """
    wrapper = cfg.get("optim_wrapper")
    if not isinstance(wrapper, dict):
        raise ConfigError(f"{name_of(cfg)}: cannot set the precision: missing key `optim_wrapper`")
    for key in ("dtype", "loss_scale"):
        wrapper.pop(key, None)
    kinds: dict[str, dict[str, Any]] = {
        "fp32": dict(type="OptimWrapper"),
        "bf16": dict(type="BFloat16OptimWrapper"),
        "fp16": dict(type="AmpOptimWrapper", dtype="float16", loss_scale="dynamic"),
    }
    if precision not in kinds:
        raise ConfigError(f"unknown precision {precision!r}: must be one of {', '.join(kinds)}")
    wrapper.update(kinds[precision])


def precision_of(cfg: Config) -> str:
    """Return a description of the precision that a config trains with."""
    wrapper = cfg.optim_wrapper
    kind = kind_of(wrapper.get("type"))
    if kind == "BFloat16OptimWrapper":
        return "automatic mixed, bfloat16"
    return (
        f"automatic mixed, {wrapper.get('dtype') or 'float16'}" if kind[:3] == "Amp" else "float32"
    )


def set_data_root(cfg: Config, root: str | os.PathLike[str]) -> None:
    """Replace ``data/`` at the beginning of all data paths of a config with another folder."""
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


def set_max_iters(cfg: Config, number: int) -> None:
    """Change the number of training iterations, and scale the schedule with it.

    ``begin``, ``end`` and ``milestones`` of the schedules and the validation and checkpoint
    intervals are multiplied by the same factor; intervals are at least 1. The losses are logged at
    least four times.

    Args:
        cfg: the config to change.
        number: number of iterations.

    Raises:
        ConfigError: the config has no ``train_cfg.max_iters``.
    """
    train = cfg.get("train_cfg") or {}
    before = train.get("max_iters")
    if not before:
        raise ConfigError(f"{name_of(cfg)}: the config has no `train_cfg.max_iters` to change")
    train["max_iters"] = number

    def scaled(value: int) -> int:
        return round(value * number / before) if value != INF else value

    schedules = cfg.get("param_scheduler") or []
    for schedule in [schedules] if isinstance(schedules, dict) else schedules:
        for key in ("begin", "T_max", "end"):
            if schedule.get(key) is not None:
                # a schedule must not be empty
                least = dict(begin=0, T_max=1, end=schedule.get("begin", 0) + 1)[key]
                schedule[key] = max(least, scaled(schedule[key]))
        if schedule.get("milestones"):
            schedule["milestones"] = [scaled(value) for value in schedule["milestones"]]
    checkpoint = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    for part, key in ((train, "val_interval"), (checkpoint, "interval")):
        if part.get(key):
            part[key] = max(1, scaled(part[key]))
    logger = (cfg.get("default_hooks") or {}).get("logger") or {}
    if logger.get("interval"):
        logger["interval"] = min(logger["interval"], max(1, number // 4))
