"""Configs of a run: completed, and refused with one sentence before anything is built."""

from __future__ import annotations

import copy
import difflib
import inspect
import os
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim.scheduler.param_scheduler import INF
from mmengine.registry import (
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    VISBACKENDS,
    Registry,
)
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from odise_mm import registry as ours
from odise_mm.datasets.wrappers import inner_configs
from odise_mm.engine.hooks import better_when
from odise_mm.errors import ConfigError, DatasetError, DeviceError

_PARTS = {
    "train": ("train_dataloader", "train_cfg", "optim_wrapper"),
    "val": ("val_dataloader", "val_cfg", "val_evaluator"),
    "test": ("test_dataloader", "test_cfg", "test_evaluator"),
}
_WORLD = {"pytorch": "WORLD_SIZE", "slurm": "SLURM_NTASKS", "mpi": "OMPI_COMM_WORLD_SIZE"}
_LOCAL_RANK = {
    "pytorch": "LOCAL_RANK",
    "slurm": "SLURM_LOCALID",
    "mpi": "OMPI_COMM_WORLD_LOCAL_RANK",
}
_MIXER = "MultiImageMixDataset"
LAUNCHERS = ("none", *_WORLD)


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
    for stage in _PARTS:
        steps = cfg.get("train_pipeline" if stage == "train" else "test_pipeline")
        loader = cfg.get(f"{stage}_dataloader")
        if steps is None or not isinstance(loader, dict):
            continue
        for _, dataset, mixed in _with_pipeline(loader.get("dataset"), ""):
            if not mixed:
                dataset.setdefault("pipeline", steps)
    if isinstance(cfg.get("optim_wrapper"), dict):
        cfg.optim_wrapper.setdefault("constructor", "TrainedParametersConstructor")
    schedules = cfg.get("param_scheduler") or []
    for schedule in [schedules] if isinstance(schedules, dict) else schedules:
        if _kind(schedule.get("type")).startswith(("MultiStep", "Step")):
            schedule.setdefault("end", INF)
    return cfg


def set_precision(cfg: Config, precision: str) -> None:
    """Choose the arithmetic of training: ``fp32``, ``bf16`` or ``fp16`` (with loss scaling).

    Raises:
        ConfigError: an unknown name, or a config that does not train.
    """
    wrapper = cfg.get("optim_wrapper")
    if not isinstance(wrapper, dict):
        raise ConfigError(f"{_name(cfg)}: has no `optim_wrapper`, so no precision of training")
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
    kind = _kind(wrapper.get("type"))
    if kind == "BFloat16OptimWrapper":
        return "automatic mixed, bfloat16"
    return (
        f"automatic mixed, {wrapper.get('dtype') or 'float16'}" if kind[:3] == "Amp" else "float32"
    )


def set_data_root(cfg: Config, root: str | os.PathLike[str]) -> None:
    """Let another folder stand for ``data/`` at the beginning of all paths of a config."""
    for stage in _PARTS:
        for key in _PARTS[stage]:
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


def check_config(cfg: Config) -> None:
    """Refuse what cannot run, before anything is built. Meant for :func:`complete_config`'s result.

    Files of data sets are looked for where training and validation need them; those for testing
    only where there is no training.

    Raises:
        ConfigError: a misspelt setting, parts that are missing or unknown, settings of loading or
            of the best checkpoint that contradict each other, a sampler that would count images
            twice, or a launcher that did not start this process.
        DeviceError: float16 without a GPU, or more processes than GPUs.
        DatasetError: a file or folder of a data set is missing.
    """
    where = _name(cfg)
    _check_names(cfg, where)
    if not isinstance(cfg.get("model"), dict):
        raise ConfigError(f"{where}: has no `model`")
    world = world_size(cfg.get("launcher", "none"))
    for stage, keys in _PARTS.items():
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
    for stage in _PARTS:
        loader = cfg.get(f"{stage}_dataloader")
        for path, dataset, mixed in _with_pipeline(
            loader.get("dataset") if isinstance(loader, dict) else None,
            f"{stage}_dataloader.dataset",
        ):
            if mixed and "pipeline" not in dataset:
                raise ConfigError(
                    f"{where}: {path}: has no `pipeline`; inside of {_MIXER} a dataset needs one "
                    "of its own, which loads an image and its annotations"
                )
    _check_devices(cfg, world)
    trains = cfg.get("train_dataloader") is not None
    for stage in ("train", "val") if trains else ("test",):
        for path, dataset in _datasets(cfg, stage):
            _check_files(dataset, f"{where}: {path}")


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
    sampler = loader.sampler
    rounds_up = _kind(sampler.get("type")) == "DefaultSampler" and sampler.get("round_up", True)
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
    best = hook.get("save_best") if isinstance(hook, dict) else None
    if best is None:
        return
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
        unknown = prefixes is not None and key.partition("/")[0] not in prefixes
        if unknown and key != "auto":
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
    if wrapper is not None and _kind(wrapper.get("type")).startswith("Amp") and not gpus:
        raise DeviceError(
            f"{_kind(wrapper.type)} needs a GPU and PyTorch finds none; to train on the CPU, take "
            "--precision fp32 or bf16"
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
                f"{where}.{key}: there is no {path}; prepare the data set as docs/datasets.md "
                "says, or name the folder that stands for data/ with --data-root"
            )


def _datasets(cfg: Config, stage: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The data sets of a stage with their places, wrapped ones included, wrappers left out."""
    for path, dataset, wraps in _all_datasets(cfg, stage):
        if not wraps:
            yield path, dataset


def _all_datasets(cfg: Config, stage: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    loader = cfg.get(f"{stage}_dataloader")
    if isinstance(loader, dict):
        yield from inner_configs(loader.get("dataset"), f"{stage}_dataloader.dataset")


def _with_pipeline(dataset: Any, path: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Datasets that have pipelines, with their places, and whether they are inside of a mixer."""
    mixers: list[str] = []
    for place, each, wraps in inner_configs(dataset, path):
        mixes = _kind(each.get("type")) == _MIXER
        if mixes or not wraps:
            yield place, each, any(place.startswith(f"{mixer}.") for mixer in mixers)
        if mixes:
            mixers.append(place)


def _parts(cfg: Config) -> Iterator[tuple[str, dict[str, Any], Registry]]:
    """What will be built from a registry, beside the model: place, config, registry."""

    def listed(path: str, value: Any, registry: Registry) -> Iterator:
        if isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                yield from listed(f"{path}[{index}]", item, registry)
        elif isinstance(value, dict):
            yield path, value, registry

    for stage in _PARTS:
        loader = cfg.get(f"{stage}_dataloader")
        if isinstance(loader, dict):
            for key in ("sampler", "batch_sampler"):
                yield from listed(f"{stage}_dataloader.{key}", loader.get(key), ours.DATA_SAMPLERS)
        for path, dataset, _ in _all_datasets(cfg, stage):
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


def _kind(name: Any) -> str:
    """Bare name of a part's ``type``, which may be a class or have a scope before it."""
    return (name if isinstance(name, str) else getattr(name, "__name__", "")).rpartition(".")[2]


def _name(cfg: Config) -> str:
    return cfg.filename or "config"
