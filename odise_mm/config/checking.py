"""Configs of a run: refused with one sentence before anything is built."""

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
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    VISBACKENDS,
    Registry,
)
from mmengine.runner import Runner
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

_WORLD = {"pytorch": "WORLD_SIZE", "slurm": "SLURM_NTASKS", "mpi": "OMPI_COMM_WORLD_SIZE"}
_LOCAL_RANK = {
    "pytorch": "LOCAL_RANK",
    "slurm": "SLURM_LOCALID",
    "mpi": "OMPI_COMM_WORLD_LOCAL_RANK",
}
LAUNCHERS = ("none", *_WORLD)


def check_config(cfg: Config) -> None:
    """Refuse what cannot run, before anything is built. Meant for :func:`complete_config`'s result.

    Files of datasets are looked for where training and validation need them; those for testing
    only where there is no training.

    Raises:
        ConfigError: a misspelled setting, parts that are missing or unknown, settings of loading or
            of the best checkpoint that contradict each other, a sampler that would count images
            twice, or a launcher that did not start this process.
        DeviceError: float16 without a GPU, or more processes than GPUs.
        DatasetError: a file or folder of a dataset is missing.
    """
    where = name_of(cfg)
    _check_names(cfg, where)
    _check_random_weights(cfg)
    if not isinstance(cfg.get("model"), dict):
        raise ConfigError(f"{where}: has no `model`")
    world = world_size(cfg.get("launcher", "none"))
    for stage, keys in STAGES.items():
        missing = [key for key in keys if cfg.get(key) is None]
        if len(missing) == len(keys):
            continue
        if missing:
            raise ConfigError(
                f"{where}: `{'`, `'.join(keys)}` belong together; missing: {', '.join(missing)}"
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
                    f"{where}: {path}: has no `pipeline`; inside of {MIXER} a dataset needs one "
                    "of its own, which loads an image and its annotations"
                )
    _check_devices(cfg, world)
    trains = cfg.get("train_dataloader") is not None
    for stage in ("train", "val") if trains else ("test",):
        for path, dataset in datasets_of(cfg, stage):
            _check_files(dataset, f"{where}: {path}")


def runs_on_random_weights(cfg: Config) -> bool:
    """Whether a config says that without weights its model runs on random numbers.

    ``random_weights = True`` says so; the base of all configs sets it to False.

    Raises:
        ConfigError: it is neither True nor False, or parts of the model name weights: with a half
            random model, results would look real.
    """
    _check_random_weights(cfg)
    if not cfg.get("random_weights"):
        return False
    named = named_weights(cfg.get("model"))
    if named:
        raise ConfigError(
            f"{name_of(cfg)}: random_weights = True is for models that are random as a whole, but "
            f"a part of this one has the weights {named[0]}: give it a checkpoint, too"
        )
    return True


def _check_random_weights(cfg: Config) -> None:
    value = cfg.get("random_weights", False)
    if not isinstance(value, bool):
        raise ConfigError(f"{name_of(cfg)}: random_weights={value!r} must be True or False")


def world_size(launcher: str) -> int:
    """Number of processes that a launcher started.

    Raises:
        ConfigError: an unknown launcher, or one that did not start this process.
    """
    if launcher == "none":
        return 1
    if launcher not in _WORLD:
        raise ConfigError(f"launcher {launcher!r} is not one of {', '.join(LAUNCHERS)}")
    try:
        return int(os.environ[_WORLD[launcher]])
    except KeyError:
        raise ConfigError(
            f"launcher {launcher!r} did not start this process ({_WORLD[launcher]} is not set): "
            "use tools/dist_train.sh, tools/slurm_train.sh and the like, or --launcher none"
        ) from None


def _check_names(cfg: Config, where: str) -> None:
    known = set(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"}
    known |= {"train_pipeline", "test_pipeline", "custom_imports", "model_wrapper_cfg"}
    known |= {"random_weights"}
    for key in cfg:
        if key in known:
            continue
        # Configs may have variables of their own, but hardly any that is called almost like this.
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.9)
        if close:
            raise ConfigError(f"{where}: `{key}` is no setting; did you mean `{close[0]}`?")


def _check_dataloader(loader: Any, where: str, world: int, evaluates: bool) -> None:
    if not isinstance(loader, dict):
        return  # built already
    missing = [key for key in ("dataset", "sampler") if key not in loader]
    if "batch_size" not in loader and isinstance(loader.get("batch_sampler") or {}, dict):
        missing.append("batch_size")
    if missing:
        raise ConfigError(f"{where} has no `{'`, `'.join(missing)}`")
    _check_loading(loader, where)
    if evaluates and loader.get("drop_last"):
        raise ConfigError(
            f"{where}.drop_last=True would leave the last images out of the numbers: remove it"
        )
    sampler = loader["sampler"]
    rounds_up = kind_of(sampler.get("type")) == "DefaultSampler" and sampler.get("round_up", True)
    if evaluates and world > 1 and rounds_up:
        raise ConfigError(
            f"{where}.sampler would give some images to two of {world} processes, and they would "
            "count twice: set round_up=False there"
        )


# Beside torch's own: what mmengine takes out before it makes the DataLoader.
_LOADER_SETTINGS = {"num_batch_per_epoch", "disable_subprocess_warning"}
_LOADER_SETTINGS |= set(inspect.signature(DataLoader.__init__).parameters) - {"self"}
# What only worker processes have a use for; torch notices when everything else is built.
_OF_WORKERS = ("persistent_workers", "prefetch_factor", "timeout", "multiprocessing_context")


def _check_loading(loader: dict[str, Any], where: str) -> None:
    for key in loader:
        if key not in _LOADER_SETTINGS:
            close = difflib.get_close_matches(key, _LOADER_SETTINGS, n=1)
            hint = f"; did you mean `{close[0]}`?" if close else ""
            raise ConfigError(f"{where}.{key}: torch's DataLoader has no such setting{hint}")
    if loader.get("shuffle") is not None:
        raise ConfigError(
            f"{where}.shuffle={loader['shuffle']!r}: the order is the sampler's: remove it, and "
            f"set {where.rpartition(' ')[2]}.sampler"
        )
    if "batch_size" in loader:
        _whole(loader["batch_size"], 1, f"{where}.batch_size", "it counts images per process")
    workers = loader.get("num_workers", 0)
    _whole(workers, 0, f"{where}.num_workers", "it counts processes that load images")
    if loader.get("prefetch_factor") is not None:
        _whole(loader["prefetch_factor"], 1, f"{where}.prefetch_factor", "batches per worker")
    timeout = loader.get("timeout", 0)
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise ConfigError(f"{where}.timeout={timeout!r}: seconds, 0 for no limit")
    beside = [key for key in _OF_WORKERS if loader.get(key)]
    if workers == 0 and beside:
        off = " (persistent_workers=False)" if "persistent_workers" in beside else ""
        raise ConfigError(
            f"{where}.num_workers=0 beside {', '.join(f'{k}={loader[k]!r}' for k in beside)}: "
            f"without worker processes remove {' and '.join(beside)}{off}, or set num_workers to "
            "at least 1"
        )


def _whole(value: Any, least: int, where: str, meaning: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{where}={value!r}: {meaning}, a whole number, at least {least}")


def _check_steps(cfg: Config, where: str) -> None:
    """Numbers of iterations, which loops divide by or compare with."""
    loop = cfg.get("train_cfg")
    for key in ("max_iters", "max_epochs", "val_interval"):
        if isinstance(loop, dict) and loop.get(key) is not None:
            value = loop[key]
            # mmengine takes 9e4 for 90000, too.
            value = int(value) if isinstance(value, float) and value.is_integer() else value
            _whole(value, 1, f"{where}: train_cfg.{key}", "it counts steps of the training")


def _check_best(cfg: Config, where: str) -> None:
    """``save_best`` of the checkpoint hook: numbers that validation has, and which is better."""
    hook = (cfg.get("default_hooks") or {}).get("checkpoint")
    if not isinstance(hook, dict) or hook.get("save_best") is None:
        return
    best = hook["save_best"]
    where = f"{where}: default_hooks.checkpoint"
    keys = [best] if isinstance(best, str) else best
    if not isinstance(keys, (list, tuple)) or not all(isinstance(key, str) for key in keys):
        raise ConfigError(
            f"{where}.save_best={best!r}: the name of a number, such as 'panoptic/PQ', or a list "
            "of names"
        )
    rule = hook.get("rule")
    rules = list(rule) if isinstance(rule, (list, tuple)) else [rule]
    if not set(rules) <= {None, "greater", "less"} or len(rules) not in (1, len(keys)):
        raise ConfigError(
            f"{where}.rule={rule!r}: 'greater' or 'less', or one of them for each of save_best"
        )
    if not cfg.get("val_dataloader"):
        raise ConfigError(
            f"{where}.save_best={best!r}: the config has no val_dataloader, so no number is ever "
            "measured: remove save_best, or add validation"
        )
    prefixes = _prefixes(cfg.get("val_evaluator"))
    for key, one in zip(keys, rules if len(rules) == len(keys) else rules * len(keys), strict=True):
        if prefixes is not None and key != "auto" and key.partition("/")[0] not in prefixes:
            known = " or ".join(f"{prefix}/..." for prefix in prefixes)
            raise ConfigError(
                f"{where}.save_best={key!r}: the metrics of val_evaluator give {known}, not this"
            )
        if one is None and key != "auto" and better_when(key, hook) is None:
            raise ConfigError(
                f"{where}.save_best={key!r}: whether more or less of it is better is not known "
                "here: set default_hooks.checkpoint.rule to 'greater' or 'less'"
            )


def _prefixes(evaluator: Any) -> list[str] | None:
    """What the names of the metrics' numbers begin with; None where that is not known."""
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
            f"{kind_of(wrapper.type)} needs a GPU and PyTorch finds none; to train on the CPU, "
            "take --precision fp32 or bf16"
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
            f"process {local} of this machine has no GPU, there are only {gpus}: start at most "
            f"{gpus} processes per machine"
        )


def _check_part(part: Any, registry: Registry, where: str) -> None:
    name = part.get("type")
    if name is None:
        raise ConfigError(f"{where} has no `type`")
    if not isinstance(name, str) or registry.get(name) is not None:
        return
    scope, _, bare = name.rpartition(".")
    if scope not in ("", "odise_mm", "mmdet", "mmengine"):
        return  # of a package that is imported when the part is built
    known: set[str] = set()
    level: Registry | None = registry
    while level is not None:
        known |= set(level.module_dict)
        level = level.parent
    close = difflib.get_close_matches(bare, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "is its module in custom_imports?"
    raise ConfigError(f"{where}: there is no {registry.name} called {name!r}; {hint}")


def _check_files(dataset: dict[str, Any], where: str) -> None:
    root = dataset.get("data_root") or ""
    named = [("ann_file", dataset.get("ann_file"))]
    named += [(f"data_prefix.{k}", v) for k, v in (dataset.get("data_prefix") or {}).items()]
    named += [("phrases_file", dataset.get("phrases_file"))]
    for key, name in named:
        path = os.path.join(root, name) if name else None
        if path and not os.path.exists(os.path.expanduser(path)):
            raise DatasetError(
                f"{where}.{key}: there is no {path}; prepare the dataset as docs/datasets.md "
                "says, or name the folder that stands for data/ with --data-root"
            )


def _parts(cfg: Config) -> Iterator[tuple[str, dict[str, Any], Registry]]:
    """What will be built from a registry, beside the model: place, config, registry."""

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
        yield from listed("optim_wrapper.optimizer", wrapper.get("optimizer"), OPTIMIZERS)
    yield from listed("param_scheduler", cfg.get("param_scheduler"), PARAM_SCHEDULERS)
    for name, hook in (cfg.get("default_hooks") or {}).items():
        yield from listed(f"default_hooks.{name}", hook, ours.HOOKS)
    yield from listed("custom_hooks", cfg.get("custom_hooks"), ours.HOOKS)
    visualizer = cfg.get("visualizer")
    if isinstance(visualizer, dict):
        yield "visualizer", visualizer, ours.VISUALIZERS
        backends = visualizer.get("vis_backends")
        yield from listed("visualizer.vis_backends", backends, VISBACKENDS)


# Numbers of this package's metrics, without what stands before them; more is better in all.
_NUMBER = re.compile(r"(PQ|SQ|RQ)(_th|_st)?|mIoU|mAcc|aAcc|AP[a-z0-9]{0,2}|AR@\d+")


def better_when(key: str, settings: Mapping[str, Any]) -> str | None:
    """Whether ``greater`` or ``less`` of a number is better; None if that is not known.

    Args:
        key: the number's name, such as ``panoptic/PQ``.
        settings: of the checkpoint hook, which may have ``greater_keys`` and ``less_keys``.
    """
    if _NUMBER.fullmatch(key.rpartition("/")[2]):
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
