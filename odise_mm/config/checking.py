"""Checks of the config of a run before anything is built."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import CheckpointHook
from mmengine.registry import (
    PARAM_SCHEDULERS,
    VISBACKENDS,
    Registry,
)
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from odise_mm import registry as ours
from odise_mm.config.walking import (
    MIXER,
    STAGES,
    all_datasets,
    datasets_of,
    kind_of,
    name_of,
    named_weights,
    with_pipeline,
)
from odise_mm.errors import ConfigError, DatasetError, DeviceError
from odise_mm.utils.display import printable

_WORLD = {"pytorch": "WORLD_SIZE", "slurm": "SLURM_NTASKS", "mpi": "OMPI_COMM_WORLD_SIZE"}
_LOCAL_RANK = {
    "pytorch": "LOCAL_RANK",
    "slurm": "SLURM_LOCALID",
    "mpi": "OMPI_COMM_WORLD_LOCAL_RANK",
}
LAUNCHERS = ("none", *_WORLD)


def check_config(cfg: Config) -> None:
    """Raise if a config cannot run, before anything is built.

    Expects a config from :func:`complete_config`. Checks that the files of the training and
    validation datasets exist, or those of the test datasets if the config does not train.

    Raises:
        ConfigError: a setting is misspelled, a part is missing or unknown, settings of the data
            loader or of the best checkpoint contradict each other, a sampler would count images
            twice, or the launcher did not start this process.
        DeviceError: the config needs float16 and there is no GPU, or there are more processes than
            GPUs.
        DatasetError: a file or folder of a dataset is missing.
    """
    where = name_of(cfg)
    _check_work_dir(cfg, where)
    _check_names(cfg, where)
    _check_random_weights(cfg)
    is_complete(cfg)
    if not isinstance(cfg.get("model"), dict):
        raise ConfigError(f"{where}: missing key `model`")
    world = world_size(cfg.get("launcher", "none"))
    for stage, keys in STAGES.items():
        missing = [key for key in keys if cfg.get(key) is None]
        if len(missing) == len(keys):
            continue
        if missing:
            raise ConfigError(
                f"{where}: `{'`, `'.join(keys)}` must be set together; missing: "
                f"{', '.join(missing)}"
            )
        _check_dataloader(cfg[keys[0]], f"{where}: {keys[0]}", world, evaluates=stage != "train")
    for path, part, registry in _parts(cfg):
        _check_part(part, registry, f"{where}: {path}")
    _check_steps(cfg, where)
    _check_best(cfg, where)
    for stage in STAGES:
        loader = cfg.get(f"{stage}_dataloader")
        for path, dataset, mixed in with_pipeline(
            loader.get("dataset") if isinstance(loader, dict) else None,
            f"{stage}_dataloader.dataset",
        ):
            if mixed and "pipeline" not in dataset:
                raise ConfigError(
                    f"{where}: {path}: missing key `pipeline`; a dataset inside {MIXER} needs its "
                    "own pipeline that loads an image and its annotations"
                )
    _check_devices(cfg, world)
    trains = cfg.get("train_dataloader") is not None
    for stage in ("train", "val") if trains else ("test",):
        for path, dataset in datasets_of(cfg, stage):
            _check_files(dataset, f"{where}: {path}")


def _check_work_dir(cfg: Config, where: str) -> None:
    """Raise if logs and checkpoints could not store the path of the work directory."""
    folder = cfg.get("work_dir")
    if not isinstance(folder, str):
        return
    try:
        os.path.abspath(folder).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{where}: work_dir {printable(os.path.abspath(folder))} is not UTF-8 text, which logs "
            "and checkpoints need: choose another --work-dir, or rename the folder"
        ) from error


def runs_on_random_weights(cfg: Config) -> bool:
    """Return whether the config allows random weights for the whole model.

    This is set with ``random_weights = True``; the base of all configs sets it to False.

    Raises:
        ConfigError: ``random_weights`` is neither True nor False, or it is True and parts of the
            model set weights: results of a partly random model might look real.
    """
    _check_random_weights(cfg)
    if not cfg.get("random_weights"):
        return False
    named = named_weights(cfg.get("model"))
    if named:
        raise ConfigError(
            f"{name_of(cfg)}: random_weights = True requires that the whole model is random, but "
            f"a part of it has the weights {named[0]}: pass a checkpoint for the rest of the model"
        )
    return True


def is_complete(cfg: Config) -> bool:
    """Return whether the model is complete without a checkpoint.

    This is set with ``needs_checkpoint = False``, for models without trained parameters, whose
    frozen parts name their weights. With ``random_weights = True``, the model is random instead.

    Raises:
        ConfigError: ``needs_checkpoint`` is neither True nor False.
    """
    value = cfg.get("needs_checkpoint", True)
    if not isinstance(value, bool):
        raise ConfigError(f"{name_of(cfg)}: needs_checkpoint={value!r} must be True or False")
    return not value and not cfg.get("random_weights")


def check_complete(cfg: Config, model: nn.Module) -> None:
    """Check that the model of a config that :func:`is_complete` has no trained parameters.

    Raises:
        ConfigError: it has some, which would be random.
    """
    trained = model.state_dict()
    if trained:
        raise ConfigError(
            f"{name_of(cfg)}: needs_checkpoint = False, but the model has trained parameters, such "
            f"as {next(iter(trained))}; remove the setting and pass a checkpoint"
        )


def _check_random_weights(cfg: Config) -> None:
    value = cfg.get("random_weights", False)
    if not isinstance(value, bool):
        raise ConfigError(f"{name_of(cfg)}: random_weights={value!r} must be True or False")


def world_size(launcher: str) -> int:
    """Return the number of processes that a launcher started.

    Raises:
        ConfigError: the launcher is unknown, or did not start this process.
    """
    if launcher == "none":
        return 1
    if launcher not in _WORLD:
        raise ConfigError(f"unknown launcher {launcher!r}: must be one of {', '.join(LAUNCHERS)}")
    try:
        return int(os.environ[_WORLD[launcher]])
    except KeyError:
        raise ConfigError(
            f"launcher {launcher!r} did not start this process ({_WORLD[launcher]} is not set): "
            "use tools/dist_train.sh, tools/slurm_train.sh or similar, or --launcher none"
        ) from None


def _check_names(cfg: Config, where: str) -> None:
    known = set(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"}
    known |= {"train_pipeline", "test_pipeline", "custom_imports", "model_wrapper_cfg"}
    known |= {"random_weights", "needs_checkpoint"}
    for key in cfg:
        if key in known:
            continue
        # Configs may define variables, but hardly any with a name this close to that of a setting.
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.9)
        if close:
            raise ConfigError(f"{where}: unknown setting `{key}` (did you mean `{close[0]}`?)")


def _check_dataloader(loader: Any, where: str, world: int, evaluates: bool) -> None:
    if not isinstance(loader, dict):
        return  # built already
    missing = [key for key in ("dataset", "sampler") if key not in loader]
    if "batch_size" not in loader and isinstance(loader.get("batch_sampler") or {}, dict):
        missing.append("batch_size")
    if missing:
        raise ConfigError(f"{where}: missing `{'`, `'.join(missing)}`")
    _check_loading(loader, where)
    if evaluates and loader.get("drop_last"):
        raise ConfigError(
            f"{where}.drop_last=True would exclude the last images from evaluation: remove it"
        )
    sampler = loader["sampler"]
    rounds_up = kind_of(sampler.get("type")) == "DefaultSampler" and sampler.get("round_up", True)
    if evaluates and world > 1 and rounds_up:
        raise ConfigError(
            f"{where}.sampler would give some images to two of {world} processes and count them "
            "twice: set round_up=False in the sampler"
        )


# Settings that mmengine removes before it builds the DataLoader, and those of torch's DataLoader.
_LOADER_SETTINGS = {"num_batch_per_epoch", "disable_subprocess_warning"}
_LOADER_SETTINGS |= set(inspect.signature(DataLoader.__init__).parameters) - {"self"}
# Settings that require worker processes. torch checks them only when the loader is built.
_WORKER_SETTINGS = ("persistent_workers", "prefetch_factor", "timeout", "multiprocessing_context")


def _check_loading(loader: dict[str, Any], where: str) -> None:
    for key in loader:
        if key not in _LOADER_SETTINGS:
            close = difflib.get_close_matches(key, _LOADER_SETTINGS, n=1)
            hint = f" (did you mean `{close[0]}`?)" if close else ""
            raise ConfigError(f"{where}.{key}: unknown setting of torch's DataLoader{hint}")
    if loader.get("shuffle") is not None:
        raise ConfigError(
            f"{where}.shuffle={loader['shuffle']!r}: the sampler decides the order: remove "
            f"shuffle and set {where.rpartition(' ')[2]}.sampler"
        )
    if "batch_size" in loader:
        _check_integer(loader["batch_size"], 1, f"{where}.batch_size", "images per process")
    workers = loader.get("num_workers", 0)
    _check_integer(workers, 0, f"{where}.num_workers", "processes that load images")
    if loader.get("prefetch_factor") is not None:
        _check_integer(
            loader["prefetch_factor"], 1, f"{where}.prefetch_factor", "batches per worker"
        )
    timeout = loader.get("timeout", 0)
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise ConfigError(f"{where}.timeout={timeout!r}: must be seconds >= 0 (0 for no limit)")
    used = [key for key in _WORKER_SETTINGS if loader.get(key)]
    if workers == 0 and used:
        off = " (persistent_workers=False)" if "persistent_workers" in used else ""
        raise ConfigError(
            f"{where}.num_workers=0 with {', '.join(f'{k}={loader[k]!r}' for k in used)}: "
            f"remove {' and '.join(used)}{off}, or set num_workers to at least 1"
        )


def _check_integer(value: Any, least: int, where: str, meaning: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{where}={value!r}: must be an integer >= {least} ({meaning})")


def _check_steps(cfg: Config, where: str) -> None:
    """Check the numbers of iterations and epochs in ``train_cfg``."""
    loop = cfg.get("train_cfg")
    for key in ("max_iters", "max_epochs", "val_interval"):
        if isinstance(loop, dict) and loop.get(key) is not None:
            value = loop[key]
            # mmengine also accepts 9e4 for 90000.
            value = int(value) if isinstance(value, float) and value.is_integer() else value
            _check_integer(value, 1, f"{where}: train_cfg.{key}", "training steps or epochs")


def _check_best(cfg: Config, where: str) -> None:
    """Check ``save_best`` and ``rule`` of the checkpoint hook."""
    hook = (cfg.get("default_hooks") or {}).get("checkpoint")
    if not isinstance(hook, dict) or hook.get("save_best") is None:
        return
    best = hook["save_best"]
    where = f"{where}: default_hooks.checkpoint"
    keys = [best] if isinstance(best, str) else best
    if not isinstance(keys, (list, tuple)) or not all(isinstance(key, str) for key in keys):
        raise ConfigError(
            f"{where}.save_best={best!r}: must be the name of a result, such as 'panoptic/PQ', or "
            "a list of names"
        )
    rule = hook.get("rule")
    rules = list(rule) if isinstance(rule, (list, tuple)) else [rule]
    if not set(rules) <= {None, "greater", "less"} or len(rules) not in (1, len(keys)):
        raise ConfigError(
            f"{where}.rule={rule!r}: must be 'greater' or 'less', or a list with one of them for "
            "each entry of save_best"
        )
    if not cfg.get("val_dataloader"):
        raise ConfigError(
            f"{where}.save_best={best!r}: the config has no val_dataloader, so there are no "
            "validation results: remove save_best, or add validation"
        )
    prefixes = _prefixes(cfg.get("val_evaluator"))
    for key, one in zip(keys, rules if len(rules) == len(keys) else rules * len(keys), strict=True):
        if prefixes is not None and key != "auto" and key.partition("/")[0] not in prefixes:
            known = " or ".join(f"{prefix}/..." for prefix in prefixes)
            raise ConfigError(
                f"{where}.save_best={key!r}: not a result of val_evaluator, whose metrics return "
                f"{known}"
            )
        if one is None and key != "auto" and better_when(key, hook) is None:
            raise ConfigError(
                f"{where}.save_best={key!r}: unknown whether greater or less is better: set "
                "default_hooks.checkpoint.rule to 'greater' or 'less'"
            )


def _prefixes(evaluator: Any) -> list[str] | None:
    """Return the prefixes of the names of results; None if one of them is unknown."""
    metrics = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    found = []
    for metric in metrics:
        kind = metric.get("type") if isinstance(metric, dict) else None
        metric_class = ours.METRICS.get(kind) if isinstance(kind, str) else kind
        own = metric.get("prefix") if isinstance(metric, dict) else None
        prefix = own or getattr(metric_class, "default_prefix", None)
        if not prefix:
            return None
        found.append(prefix)
    return list(dict.fromkeys(found))


def _check_devices(cfg: Config, world: int) -> None:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wrapper = cfg.get("optim_wrapper")
    if wrapper is not None and kind_of(wrapper.get("type")).startswith("Amp") and not gpus:
        raise DeviceError(
            f"{kind_of(wrapper.type)} needs a GPU, but PyTorch finds none; to train on the CPU, "
            "use --precision fp32 or bf16"
        )
    launcher = cfg.get("launcher", "none")
    if launcher == "none":
        return
    if not gpus:
        if launcher != "pytorch":
            raise DeviceError(f"launcher {launcher!r}: PyTorch finds no GPU in this process")
        return
    local = int(os.environ.get(_LOCAL_RANK[launcher], 0))
    if local >= gpus:
        raise DeviceError(
            f"process {local} of this machine has no GPU, because there are only {gpus}: start at "
            f"most {gpus} processes per machine"
        )


def _check_part(part: Any, registry: Registry, where: str) -> None:
    name = part.get("type")
    if name is None:
        raise ConfigError(f"{where}: missing key `type`")
    if not isinstance(name, str) or registry.get(name) is not None:
        return
    scope, _, bare = name.rpartition(".")
    if scope not in ("", "odise_mm", "mmdet", "mmengine"):
        return  # the registry imports the package when the part is built
    known: set[str] = set()
    level: Registry | None = registry
    while level is not None:
        known |= set(level.module_dict)
        level = level.parent
    close = difflib.get_close_matches(bare, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "is its module in custom_imports?"
    raise ConfigError(f"{where}: unknown {registry.name} {name!r} ({hint})")


def _check_files(dataset: dict[str, Any], where: str) -> None:
    root = dataset.get("data_root") or ""
    named = [("ann_file", dataset.get("ann_file"))]
    named += [(f"data_prefix.{k}", v) for k, v in (dataset.get("data_prefix") or {}).items()]
    named += [("phrases_file", dataset.get("phrases_file"))]
    for key, name in named:
        path = os.path.join(root, name) if name else None
        if path and not os.path.exists(os.path.expanduser(path)):
            raise DatasetError(
                f"{where}.{key}: {path} not found; prepare the dataset as described in "
                "docs/datasets.md, or give the folder to use instead of data/ with --data-root"
            )


def _parts(cfg: Config) -> Iterator[tuple[str, dict[str, Any], Registry]]:
    """Yield place, config and registry of all parts other than the model that will be built."""

    def listed(path: str, value: Any, registry: Registry) -> Iterator:
        if isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                yield from listed(f"{path}[{index}]", item, registry)
        elif isinstance(value, dict):
            yield path, value, registry

    for stage in STAGES:
        loader = cfg.get(f"{stage}_dataloader")
        if isinstance(loader, dict):
            for key in ("sampler", "batch_sampler"):
                yield from listed(f"{stage}_dataloader.{key}", loader.get(key), ours.DATA_SAMPLERS)
        for path, dataset, _ in all_datasets(cfg, stage):
            yield path, dataset, ours.DATASETS
            yield from listed(f"{path}.pipeline", dataset.get("pipeline"), ours.TRANSFORMS)
        loop = cfg.get(f"{stage}_cfg")
        if loop is not None and "type" in loop:
            yield from listed(f"{stage}_cfg", loop, ours.LOOPS)
        if stage != "train":
            evaluator = cfg.get(f"{stage}_evaluator")
            if not isinstance(evaluator, dict) or "metrics" not in evaluator:
                yield from listed(f"{stage}_evaluator", evaluator, ours.METRICS)
    wrapper = cfg.get("optim_wrapper")
    if isinstance(wrapper, dict):
        full = ConfigDict(wrapper)
        full.setdefault("type", "OptimWrapper")
        yield "optim_wrapper", full, ours.OPTIM_WRAPPERS
        yield from listed("optim_wrapper.optimizer", wrapper.get("optimizer"), ours.OPTIMIZERS)
    yield from listed("param_scheduler", cfg.get("param_scheduler"), PARAM_SCHEDULERS)
    for name, hook in (cfg.get("default_hooks") or {}).items():
        yield from listed(f"default_hooks.{name}", hook, ours.HOOKS)
    yield from listed("custom_hooks", cfg.get("custom_hooks"), ours.HOOKS)
    visualizer = cfg.get("visualizer")
    if isinstance(visualizer, dict):
        yield "visualizer", visualizer, ours.VISUALIZERS
        backends = visualizer.get("vis_backends")
        yield from listed("visualizer.vis_backends", backends, VISBACKENDS)


# Names of results of this package's metrics, without prefix; for all of them, greater is better.
_RESULT = re.compile(r"(PQ|SQ|RQ)(_th|_st)?|mIoU|mAcc|aAcc|AP[a-z0-9]{0,2}|AR@\d+")


def better_when(key: str, settings: Mapping[str, Any]) -> str | None:
    """Return whether ``greater`` or ``less`` values of a result are better; None if unknown.

    Args:
        key: name of the result, such as ``panoptic/PQ``.
        settings: settings of the checkpoint hook, which may have ``greater_keys`` and
            ``less_keys``.
    """
    if _RESULT.fullmatch(key.rpartition("/")[2]):
        return "greater"
    for rule, default in (
        ("greater", CheckpointHook._default_greater_keys),
        ("less", CheckpointHook._default_less_keys),
    ):
        known = settings.get(f"{rule}_keys") or default
        known = [known] if isinstance(known, str) else known
        if any(part.lower() in key.lower() for part in known):
            return rule
    return None
