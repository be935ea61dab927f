"""Checks before resuming a run: types in the checkpoint, and differences from the config."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from torch import Tensor

from odise_mm.errors import CheckpointError
from odise_mm.utils.display import printable

ADVICE = (
    "resume with the config that it was trained with (a copy is in the same folder), or start from "
    "its weights with load_from"
)
RECORD = "training"
"""Key in a checkpoint's ``meta`` for the result of :func:`describe_training`."""

# Keys of an optimizer's parameter groups that identify the type of the optimizer.
_OPTIMIZER_KEYS = {"momentum", "betas", "alpha", "rho", "nesterov", "lambd", "etas"}
# Entries of an optimizer's state that have the shape of their parameter.
_MOMENT_KEYS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}
# Entries of a schedule's state that change while it runs.
_PROGRESS_KEYS = {"last_step", "_global_step", "_last_value", "verbose", "base_values", "by_epoch"}


def check_types(state: Any, path: str) -> None:
    """Raise if an entry of a training state has another type than its reader expects.

    Removes ``config`` from ``meta``: our checkpoints have none, and mmengine would run it.

    Args:
        state: content of a checkpoint.
        path: path of the checkpoint, for messages.

    Raises:
        CheckpointError: an entry has the wrong type; the message names it.
    """

    def check(entry: str, value: Any, fits: bool, expected: str) -> None:
        if not fits:
            raise CheckpointError(
                f"{printable(path)} cannot be resumed from: its {printable(entry)} must be "
                f"{expected}, not {printable(repr(value), 60)}"
            )

    for key in ("state_dict", "optimizer", "meta", "message_hub"):
        check(key, state[key], isinstance(state[key], dict), "a dictionary")
    for key, value in state["state_dict"].items():
        check("state_dict", key, isinstance(key, str), "a dictionary of tensors by name")
        check(f"state_dict[{key!r}]", value, isinstance(value, Tensor), "a tensor")
    meta, hub = state["meta"], state["message_hub"]
    meta.pop("config", None)  # mmengine's runner would run it as a program
    for key in ("iter", "epoch"):
        check(f"meta[{key!r}]", meta.get(key), _is_whole(meta.get(key)), "an integer >= 0")
    seed = meta.get("seed")
    check("meta['seed']", seed, seed is None or _is_whole(seed), "an integer >= 0")
    record = meta.get(RECORD)
    check(f"meta[{RECORD!r}]", record, isinstance(record, dict | None), "a dictionary")
    for key in ("log_scalars", "runtime_info", "resumed_keys"):
        value = hub.get(key)
        fits = isinstance(value, dict) and all(isinstance(name, str) for name in value)
        check(f"message_hub[{key!r}]", value, fits, "a dictionary with strings as keys")
    for name, resumed in hub["resumed_keys"].items():
        check(
            f"message_hub['resumed_keys'][{name!r}]",
            resumed,
            resumed is True or resumed is False,
            "True or False",
        )
    for name, buffer in hub["log_scalars"].items():
        fits = isinstance(buffer, HistoryBuffer) and _is_history(buffer)
        check(f"message_hub: curve {name!r}", buffer, fits, "a curve of numbers")
    optimizer = state["optimizer"]
    groups = optimizer.get("param_groups")
    fits = isinstance(groups, list) and all(isinstance(group, dict) for group in groups)
    check("optimizer['param_groups']", groups, fits, "a list of dictionaries")
    moments = optimizer.get("state")
    check("optimizer['state']", moments, isinstance(moments, dict), "a dictionary")
    for key, moment in moments.items():
        check(f"optimizer['state'][{key!r}]", moment, isinstance(moment, dict), "a dictionary")
    schedules = state.get("param_schedulers", [])
    fits = isinstance(schedules, list) and all(isinstance(one, dict) for one in schedules)
    check("param_schedulers", schedules, fits, "a list of dictionaries")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_history(buffer: HistoryBuffer) -> bool:
    arrays = getattr(buffer, "_log_history", None), getattr(buffer, "_count_history", None)
    return all(isinstance(array, np.ndarray) and array.dtype.kind in "fiu" for array in arrays)


def describe_training(runner: Any) -> dict[str, Any]:
    """Return the settings that decide which images an iteration uses, for a checkpoint's ``meta``.

    Args:
        runner: mmengine's ``Runner``.
    """
    loop = runner.train_loop
    loader = loop.dataloader
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    return dict(
        images_per_iteration=getattr(loop, "total_batch", None),
        processes=runner.world_size,
        iterations_per_update=getattr(runner.optim_wrapper, "_accumulative_counts", 1),
        images=len(loader.dataset),
        sampler=type(sampler).__name__,
        shuffled=getattr(sampler, "shuffle", None),
        sampler_seed=getattr(sampler, "seed", None),
    )


_LABELS = {
    "images_per_iteration": "images per iteration",
    "iterations_per_update": "iterations per update",
    "images": "images in the training data",
    "sampler": "sampler",
    "shuffled": "shuffle of the sampler",
    "sampler_seed": "seed of the sampler",
}


def differences_of_training(state: Mapping[str, Any], runner: Any) -> tuple[list[str], list[str]]:
    """Compare a config with the run that it is to resume.

    Args:
        state: training state of the run, from a checkpoint.
        runner: mmengine's ``Runner``, built from the config.

    Returns:
        The differences that forbid resuming, as the result would match neither config. And the
        differences that do not: the checkpoint's value is used, or only the last digits change.
    """
    forbidding: list[str] = []
    ignored: list[str] = []
    there, here = state["meta"].get(RECORD), describe_training(runner)
    if there is None:
        ignored.append(
            "the checkpoint does not contain its number of images per iteration, which must be "
            "the same"
        )
    else:
        forbidding += [
            _differ(label, there[key], here[key])
            for key, label in _LABELS.items()
            if key in there and there[key] != here[key]
        ]
        if there.get("processes", here["processes"]) != here["processes"]:
            text = _differ("processes", there["processes"], here["processes"])
            ignored.append(f"{text}: the run uses the same images, but different random points")
    optimizer = getattr(runner.optim_wrapper, "optimizer", None)
    if optimizer is not None:
        groups = state["optimizer"]["param_groups"], optimizer.param_groups
        for text, forbids in _differences_of_optimizers(*groups):
            (forbidding if forbids else ignored).append(text)
        forbidding += _misshapen(state["optimizer"], optimizer.param_groups)
    _compare_schedules(state.get("param_schedulers", []), runner, forbidding, ignored)
    return list(dict.fromkeys(forbidding)), list(dict.fromkeys(ignored))


def _differences_of_optimizers(
    there: Sequence[Mapping[str, Any]], here: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, bool]]:
    if len(there) != len(here):
        return  # the optimizer raises for this when it loads its state
    for old, new in zip(there, here, strict=True):
        if (old.keys() ^ new.keys()) & _OPTIMIZER_KEYS:
            yield "different optimizer", True
            return
        rates = [group.get("initial_lr", group.get("lr")) for group in (old, new)]
        if not _equal(*rates):
            yield _differ("learning rate", *rates), True
        for key in sorted((old.keys() & new.keys()) - {"params"}):
            if not _same_kind(old[key], new[key]):
                yield _differ(key, old[key], new[key]), True
            elif key not in ("lr", "initial_lr") and not _equal(old[key], new[key]):
                yield f"{_differ(key, old[key], new[key])}: the checkpoint's value is used", False


def _misshapen(there: Mapping[str, Any], here: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each running mean that has another shape than its parameter."""
    keys = [key for group in there["param_groups"] for key in _ids(group)]
    parameters = [parameter for group in here for parameter in group["params"]]
    for key, parameter in zip(keys, parameters, strict=False):  # torch checks the numbers of both
        for name, value in there["state"].get(key, {}).items():
            if name in _MOMENT_KEYS and value is not None:
                shape = tuple(value.shape) if isinstance(value, Tensor) else value
                if shape != tuple(parameter.shape):
                    yield _differ(f"{name} of parameter {key}", shape, tuple(parameter.shape))


def _ids(group: Mapping[str, Any]) -> list[int]:
    ids = group.get("params")
    return [key for key in ids if isinstance(key, int)] if isinstance(ids, list) else []


def _compare_schedules(
    there: Sequence[Mapping[str, Any]], runner: Any, forbidding: list[str], ignored: list[str]
) -> None:
    built = runner.param_schedulers
    if not isinstance(built, (list, tuple)) or not all(hasattr(s, "state_dict") for s in built):
        return
    if len(there) != len(built):
        forbidding.append(_differ("schedules (param_scheduler)", len(there), len(built)))
        return
    for old, schedule in zip(there, built, strict=True):
        new, kind = schedule.state_dict(), type(schedule).__name__
        for key in sorted(old.keys() & new.keys()):
            if key != "verbose" and not _same_kind(old[key], new[key]):
                forbidding.append(_differ(f"{kind}.{key}", old[key], new[key]))
            elif key not in _PROGRESS_KEYS and not _equal(old[key], new[key]):
                text = _differ(f"{kind}.{key}", old[key], new[key])
                ignored.append(f"{text}: the checkpoint's value is used")


def _equal(first: Any, second: Any) -> bool:
    numbers = (int, float)
    if isinstance(first, numbers) and isinstance(second, numbers):
        return first == second or math.isclose(first, second, rel_tol=1e-9)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_equal, first, second))
    return type(first) is type(second) and bool(first == second)


def _same_kind(first: Any, second: Any) -> bool:
    """Return whether code that expects one of the values can work with the other."""
    numbers = (int, float)
    if isinstance(first, numbers) and isinstance(second, numbers):
        return True
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_same_kind, first, second))
    if first is None or second is None:  # None: the library chooses True or False
        return all(value is None or isinstance(value, bool) for value in (first, second))
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return True
    return type(first) is type(second)


def _differ(what: str, there: Any, here: Any) -> str:
    """Describe a difference between the checkpoint (``there``) and this run (``here``)."""
    shown = (
        f"{value:g}"
        if isinstance(value, float)
        else printable(dict(value))
        if isinstance(value, dict)
        else printable(value, 60)
        for value in (there, here)
    )
    return "{}: {} in the checkpoint, {} now".format(what, *shown)


def name_pattern(template: str, best: bool = False) -> re.Pattern[str]:
    """Return a regular expression for names of checkpoints.

    Args:
        template: ``filename_tmpl`` of the checkpoint hook, such as ``iter_{}.pth``.
        best: match the names of the best checkpoints (``save_best``) instead of numbered ones.
    """
    parts = re.split(r"\{[^{}]*\}", template)
    pattern = r"\d+".join(re.escape(part) for part in parts)
    return re.compile(rf"best_[^/\\]+_{pattern}" if best else pattern)


def own_checkpoint(named: Any, folder: Path, pattern: re.Pattern[str]) -> Path | None:
    """Return the checkpoint in ``folder`` that a training state names; None if there is none.

    Only the name of the path is used, because work directories may be copied or moved.

    Args:
        named: path from the training state.
        folder: work directory.
        pattern: pattern of valid names, see :func:`name_pattern`.
    """
    if not isinstance(named, str) or "\0" in named:
        return None
    path = folder / re.split(r"[/\\]", named)[-1]
    return path if pattern.fullmatch(path.name) and path.is_file() else None


def checkpoints_in(folder: Path, patterns: Iterable[re.Pattern[str]]) -> list[Path]:
    """Return the files of a folder whose names match one of ``patterns``, sorted."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if any(pattern.fullmatch(path.name) for pattern in patterns)]
