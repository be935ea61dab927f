"""What a training's checkpoint may say, and whether a config goes on with that training."""

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
    "resume with the config that it was trained with (a copy lies beside it), or start from its "
    "weights with load_from"
)
RECORD = "training"
"""Key in a checkpoint's ``meta`` of what :func:`describe_training` returns."""

# Which of these the groups of an optimizer have tells what kind of optimizer it is.
_OF_OPTIMIZERS = {"momentum", "betas", "alpha", "rho", "nesterov", "lambd", "etas"}
# Entries of an optimizer's state with one number for each of a parameter's.
_OF_SHAPE = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}
# What moves while a schedule runs.
_OF_PROGRESS = {"last_step", "_global_step", "_last_value", "verbose", "base_values", "by_epoch"}


def check_types(state: Any, path: str) -> None:
    """Refuse a training state whose entries are of other types than what reads them expects.

    ``meta`` loses its ``config``, which none of ours has, and which is never run.

    Raises:
        CheckpointError: names the entry.
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
        check("state_dict", key, isinstance(key, str), "tensors by name")
        check(f"state_dict[{key!r}]", value, isinstance(value, Tensor), "a tensor")
    meta, hub = state["meta"], state["message_hub"]
    meta.pop("config", None)  # mmengine's runner would run it as a program
    for key in ("iter", "epoch"):
        check(f"meta[{key!r}]", meta.get(key), _is_whole(meta.get(key)), "a whole number from 0")
    seed = meta.get("seed")
    check("meta['seed']", seed, seed is None or _is_whole(seed), "a whole number from 0")
    record = meta.get(RECORD)
    check(f"meta[{RECORD!r}]", record, isinstance(record, dict | None), "a dictionary")
    for key in ("log_scalars", "runtime_info", "resumed_keys"):
        value = hub.get(key)
        fits = isinstance(value, dict) and all(isinstance(name, str) for name in value)
        check(f"message_hub[{key!r}]", value, fits, "a dictionary with names as keys")
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
    """What decides which images an iteration sees, as a checkpoint keeps it."""
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


_WORDS = {
    "images_per_iteration": "images per iteration",
    "iterations_per_update": "iterations per update",
    "images": "images in the training data",
    "sampler": "sampler",
    "shuffled": "shuffle of the sampler",
    "sampler_seed": "seed of the sampler",
}


def differences_of_training(state: Mapping[str, Any], runner: Any) -> tuple[list[str], list[str]]:
    """What a config has otherwise than the training that is to go on.

    Returns:
        What forbids to go on: the result would be that of neither. And what does not: the
        checkpoint's value counts, or it changes nothing but last digits.
    """
    forbidding: list[str] = []
    ignored: list[str] = []
    there, here = state["meta"].get(RECORD), describe_training(runner)
    if there is None:
        ignored.append("the checkpoint does not say its images per iteration, which must be equal")
    else:
        forbidding += [
            _differ(words, there[key], here[key])
            for key, words in _WORDS.items()
            if key in there and there[key] != here[key]
        ]
        if there.get("processes", here["processes"]) != here["processes"]:
            text = _differ("processes", there["processes"], here["processes"])
            ignored.append(f"{text}: the same images, but other random points in them")
    optimizer = getattr(runner.optim_wrapper, "optimizer", None)
    if optimizer is not None:
        groups = state["optimizer"]["param_groups"], optimizer.param_groups
        for words, forbids in _differences_of_optimizers(*groups):
            (forbidding if forbids else ignored).append(words)
        forbidding += _misshapen(state["optimizer"], optimizer.param_groups)
    _compare_schedules(state.get("param_schedulers", []), runner, forbidding, ignored)
    return list(dict.fromkeys(forbidding)), list(dict.fromkeys(ignored))


def _differences_of_optimizers(
    there: Sequence[Mapping[str, Any]], here: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, bool]]:
    if len(there) != len(here):
        return  # refused when the optimizer takes its state
    for old, new in zip(there, here, strict=True):
        if (old.keys() ^ new.keys()) & _OF_OPTIMIZERS:
            yield "another optimizer", True
            return
        rates = [group.get("initial_lr", group.get("lr")) for group in (old, new)]
        if not _equal(*rates):
            yield _differ("learning rate", *rates), True
        for key in sorted((old.keys() & new.keys()) - {"params"}):
            if not _same_kind(old[key], new[key]):
                yield _differ(key, old[key], new[key]), True
            elif key not in ("lr", "initial_lr") and not _equal(old[key], new[key]):
                yield f"{_differ(key, old[key], new[key])}: the checkpoint's counts", False


def _misshapen(there: Mapping[str, Any], here: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Running means of an optimizer that are not of their parameter's shape."""
    keys = [key for group in there["param_groups"] for key in _ids(group)]
    parameters = [parameter for group in here for parameter in group["params"]]
    for key, parameter in zip(keys, parameters, strict=False):  # torch compares how many
        for name, value in there["state"].get(key, {}).items():
            if name in _OF_SHAPE and value is not None:
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
            elif key not in _OF_PROGRESS and not _equal(old[key], new[key]):
                text = _differ(f"{kind}.{key}", old[key], new[key])
                ignored.append(f"{text}: the checkpoint's counts")


def _equal(first: Any, second: Any) -> bool:
    numbers = (int, float)
    if isinstance(first, numbers) and isinstance(second, numbers):
        return first == second or math.isclose(first, second, rel_tol=1e-9)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_equal, first, second))
    return type(first) is type(second) and bool(first == second)


def _same_kind(first: Any, second: Any) -> bool:
    """Whether what is made for one value can work with the other."""
    numbers = (int, float)
    if isinstance(first, numbers) and isinstance(second, numbers):
        return True
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_same_kind, first, second))
    if first is None or second is None:  # a switch that may be left to the library
        return all(value is None or isinstance(value, bool) for value in (first, second))
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return True
    return type(first) is type(second)


def _differ(what: str, there: Any, here: Any) -> str:
    shown = (
        f"{value:g}"
        if isinstance(value, float)
        else printable(dict(value))
        if isinstance(value, dict)
        else printable(value, 60)
        for value in (there, here)
    )
    return "{}: {} there, {} here".format(what, *shown)


def name_pattern(template: str, best: bool = False) -> re.Pattern[str]:
    """What names of checkpoints look like.

    Args:
        template: ``filename_tmpl`` of the checkpoint hook, such as ``iter_{}.pth``.
        best: those of the best ones (``save_best``).
    """
    parts = re.split(r"\{[^{}]*\}", template)
    pattern = r"\d+".join(re.escape(part) for part in parts)
    return re.compile(rf"best_[^/\\]+_{pattern}" if best else pattern)


def own_checkpoint(named: Any, folder: Path, pattern: re.Pattern[str]) -> Path | None:
    """The checkpoint of ``folder`` that a training state means; None where it has no such file.

    Of a path only the name counts, as folders are copied, moved and received.
    """
    if not isinstance(named, str) or "\0" in named:
        return None
    path = folder / re.split(r"[/\\]", named)[-1]
    return path if pattern.fullmatch(path.name) and path.is_file() else None


def checkpoints_in(folder: Path, patterns: Iterable[re.Pattern[str]]) -> list[Path]:
    """Files of a folder with the names of checkpoints, sorted."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if any(pattern.fullmatch(path.name) for pattern in patterns)]
