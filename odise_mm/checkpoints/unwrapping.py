"""Finding of a model's weights in the checkpoints of other training programs.

Checkpoints can wrap weights in three ways: in nested dictionaries
(``{"epoch": 3, "state_dict": {...}}``), as several sets of weights (averaged weights and those of
the last step), and with prefixes that wrapper modules add to names (``module.`` by
DistributedDataParallel, ``_orig_mod.`` by torch.compile, ``model.`` by Lightning). The variant that
fits the model best is used, so a model whose own part is called ``module`` or ``model`` keeps its
names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

# Keys of weights in files of Stable Diffusion and OpenMMLab, ODISE and detectron2, DeepSpeed,
# PySlowFast, and torch's tutorials.
LEVELS = ("state_dict", "model", "module", "model_state", "model_state_dict")
# Keys of weights that are averaged over training steps: timm, torchvision, others.
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema_state", "ema")

# Prefixes that wrapper modules add. Models hardly ever use the first two themselves.
_TECHNICAL = ("module.", "_orig_mod.")
_PREFIXES = (*_TECHNICAL, "model.")
# Submodules may be wrapped, too.
_INSIDE = (re.compile(r"(?:(?<=\.)|^)(?:_orig_mod\.)+"), re.compile(r"(?:(?<=\.)|^)(?:module\.)+"))
# Step counters that the averaging wrappers of torch and mmengine store with the weights.
_COUNTERS = ("n_averaged", "steps")
_DEEPEST = 8
_MOST_WAYS = 64

Fits = Callable[[str], bool]


class WeightSet(NamedTuple):
    """One set of weights in a file.

    Attributes:
        place: keys that lead to the set, such as ``model_ema.module``; empty for the top level.
        averaged: whether the weights are averaged over training steps.
        values: the weights by the model's names.
        score: number of weights whose names the model has.
    """

    place: str
    averaged: bool
    values: dict[str, Any]
    score: int


def unwrap(
    content: Mapping[Any, Any], is_weight: Callable[[Any], bool], fits: Fits | None = None
) -> tuple[WeightSet | None, list[WeightSet]]:
    """Find the set of weights that fits a model best; prefer averaged weights if several fit.

    Args:
        content: content of a file; nested dictionaries may contain themselves.
        is_weight: function that returns whether an entry is a tensor.
        fits: function that returns whether the model has a parameter with this name. None: return
            the innermost set with unchanged names.

    Returns:
        The best set, without prefixes of wrappers, and the other sets. The best set is None if the
        file contains no weights.
    """
    found = _find(content, is_weight)
    if fits is not None:
        found += [inner for place, values in found for inner in _averaged_among(place, values)]
    sets = [_peeled(place, values, fits) for place, values in found]
    if not sets:
        return None, []
    best = max(sets, key=lambda found: (found.score, found.averaged))  # the first of equals
    return best, [found for found in sets if found is not best]


def _find(
    content: Mapping[Any, Any], is_weight: Callable[[Any], bool]
) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """Return all sets of weights with the keys that lead to them, the innermost first."""
    found: list[tuple[tuple[str, ...], dict[str, Any]]] = []
    seen: set[int] = set()

    def visit(level: Mapping[Any, Any], place: tuple[str, ...]) -> None:
        if id(level) in seen or len(place) > _DEEPEST:  # a level may contain itself
            return
        seen.add(id(level))
        for name in (*LEVELS, *AVERAGED):
            if isinstance(level.get(name), Mapping):
                visit(level[name], (*place, name))
        values = {k: v for k, v in level.items() if isinstance(k, str) and is_weight(v)}
        if values:
            found.append((place, values))

    visit(content, ())
    return found


def innermost(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return the innermost nested dictionary in which weights are expected."""
    seen = set()
    while id(content) not in seen:
        seen.add(id(content))
        levels = (content.get(name) for name in LEVELS)
        content = next((level for level in levels if isinstance(level, Mapping)), content)
    return content


def _averaged_among(
    place: tuple[str, ...], values: dict[str, Any]
) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """Return averaged weights inside a flat set, such as ``model_ema.x`` besides ``model.x``."""
    found = []
    for name in AVERAGED:
        prefix = re.compile(rf"(?:(?:module|_orig_mod|model)\.)*{name}\.")
        inside = {k[m.end() :]: v for k, v in values.items() if (m := prefix.match(k))}
        if inside and len(inside) < len(values):
            found.append(((*place, name), inside))
    return found


def _peeled(place: tuple[str, ...], values: dict[str, Any], fits: Fits | None) -> WeightSet:
    names = _best_names(tuple(values), fits)
    return WeightSet(
        ".".join(place),
        _is_averaged(place, values),
        {new: values[old] for new, old in names.items()},
        sum(map(fits, names)) if fits else 0,
    )


def _is_averaged(place: tuple[str, ...], values: Mapping[str, Any]) -> bool:
    if place[-1:] == ("ema_state_dict",) and "steps" in values:
        # mmengine's EMAHook swaps the two sets when it saves: state_dict has the averaged weights,
        # and this entry has those of the last step and the hook's counter.
        return False
    return any(name in AVERAGED for name in place)


def _best_names(names: tuple[str, ...], fits: Fits | None) -> dict[str, str]:
    """Return the names that fit the model best, each with the corresponding name in the file."""
    candidates = _peelings(names)
    raw = next(candidates)
    if fits is None:
        return raw
    best, most = raw, sum(map(fits, raw))
    for candidate in candidates:
        score = sum(map(fits, candidate))
        if score > most:
            best, most = candidate, score
    if best is raw:
        best = _without_technical(raw, most, fits)
    if best is not raw:
        spare = [name for name in _COUNTERS if best.get(name) == name and not fits(name)]
        best = {new: old for new, old in best.items() if new not in spare}
    return best


def _without_technical(raw: dict[str, str], score: int, fits: Fits) -> dict[str, str]:
    """Remove technical prefixes that all names share, as long as no fewer names fit the model."""
    best = raw
    while True:
        names = [name for name in best if name not in _COUNTERS]
        prefix = next((p for p in _TECHNICAL if names and all(n.startswith(p) for n in names)), "")
        shorter = {name.removeprefix(prefix): old for name, old in best.items()}
        if not prefix or len(shorter) < len(best) or sum(map(fits, shorter)) < score:
            return best
        best = shorter


def _peelings(names: Iterable[str]) -> Iterable[dict[str, str]]:
    """Yield all ways to remove wrappers' prefixes, as names with those in the file."""
    queue = [{name: name for name in names}]
    seen = {frozenset(queue[0])}
    while queue:
        current = queue.pop(0)
        yield current
        for shorten in _shortenings():
            shorter = {shorten(name): old for name, old in current.items()}
            # Skip removals that make two names equal.
            if len(shorter) == len(current) and (key := frozenset(shorter)) not in seen:
                if len(seen) > _MOST_WAYS:
                    return
                seen.add(key)
                queue.append(shorter)


def _shortenings() -> list[Callable[[str], str]]:
    prefixes = [lambda name, prefix=prefix: name.removeprefix(prefix) for prefix in _PREFIXES]
    return prefixes + [lambda name, inside=inside: inside.sub("", name) for inside in _INSIDE]
