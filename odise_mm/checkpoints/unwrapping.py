"""Find a model's weights in what training code saves around them.

Three kinds of wrapping come alone or together: levels (``{"epoch": 3, "state_dict": {...}}``),
several sets of weights (averaged ones beside those of the last step), and beginnings of names that
wrapper modules add (``module.`` by DistributedDataParallel, ``_orig_mod.`` by torch.compile,
``model.`` by Lightning). What fits the model best is taken, so that a model with a part that is
really called ``module`` or ``model`` keeps its names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

# Names under which files hold weights: Stable Diffusion and OpenMMLab, ODISE and detectron2,
# DeepSpeed, PySlowFast, torch's tutorials.
LEVELS = ("state_dict", "model", "module", "model_state", "model_state_dict")
# Names of weights that are averaged over the steps of a training: timm, torchvision, others.
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema_state", "ema")

# Beginnings of names that wrapper modules add. The first two hardly ever are a model's own.
_TECHNICAL = ("module.", "_orig_mod.")
_PREFIXES = (*_TECHNICAL, "model.")
# Parts of a model may be wrapped, too.
_INSIDE = (re.compile(r"(?:(?<=\.)|^)(?:_orig_mod\.)+"), re.compile(r"(?:(?<=\.)|^)(?:module\.)+"))
# What the wrappers for averaging count beside the weights: torch's and mmengine's.
_COUNTERS = ("n_averaged", "steps")
_DEEPEST = 8
_MOST_WAYS = 64

Fits = Callable[[str], bool]


class WeightSet(NamedTuple):
    """One set of weights in a file.

    Attributes:
        place: the levels above it, ``model_ema.module``; empty: the file itself.
        averaged: whether it holds weights averaged over the training.
        values: the weights by the model's names.
        score: how many of them the model wants.
    """

    place: str
    averaged: bool
    values: dict[str, Any]
    score: int


def unwrap(
    content: Mapping[Any, Any], is_weight: Callable[[Any], bool], fits: Fits | None = None
) -> tuple[WeightSet | None, list[WeightSet]]:
    """The set of weights that fits a model best, the averaged one where several do.

    Args:
        content: what a file holds; levels may lead back to themselves.
        is_weight: tells tensors from other entries.
        fits: whether a name is one of the model's. None: the innermost set as it is.

    Returns:
        The set, with the names that wrappers gave taken back; None if there are no weights. And
        the other sets.
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
    """All sets of weights with the names of the levels above, the innermost first."""
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
    """The level at which a file's weights are looked for first."""
    seen = set()
    while id(content) not in seen:
        seen.add(id(content))
        levels = (content.get(name) for name in LEVELS)
        content = next((level for level in levels if isinstance(level, Mapping)), content)
    return content


def _averaged_among(
    place: tuple[str, ...], values: dict[str, Any]
) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """Averaged weights that are a part of a flat set: ``model_ema.x`` beside ``model.x``."""
    found = []
    for name in AVERAGED:
        beginning = re.compile(rf"(?:(?:module|_orig_mod|model)\.)*{name}\.")
        inside = {k[m.end() :]: v for k, v in values.items() if (m := beginning.match(k))}
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
        # mmengine's EMAHook exchanges the two sets when it saves: the averaged weights are under
        # state_dict, and those of the last step, with the hook's counter, here.
        return False
    return any(name in AVERAGED for name in place)


def _best_names(names: tuple[str, ...], fits: Fits | None) -> dict[str, str]:
    """The names to use, and the one in the file for each."""
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
    """Where no name tells (an author's own names), what all names begin with is no part of them."""
    best = raw
    while True:
        names = [name for name in best if name not in _COUNTERS]
        prefix = next((p for p in _TECHNICAL if names and all(n.startswith(p) for n in names)), "")
        shorter = {name.removeprefix(prefix): old for name, old in best.items()}
        if not prefix or len(shorter) < len(best) or sum(map(fits, shorter)) < score:
            return best
        best = shorter


def _peelings(names: Iterable[str]) -> Iterable[dict[str, str]]:
    """Every way to take wrappers' additions from names, with the name in the file for each."""
    queue = [{name: name for name in names}]
    seen = {frozenset(queue[0])}
    while queue:
        current = queue.pop(0)
        yield current
        for shorten in _shortenings():
            shorter = {shorten(name): old for name, old in current.items()}
            # Two names that become one are two things.
            if len(shorter) == len(current) and (key := frozenset(shorter)) not in seen:
                if len(seen) > _MOST_WAYS:
                    return
                seen.add(key)
                queue.append(shorter)


def _shortenings() -> list[Callable[[str], str]]:
    prefixes = [lambda name, prefix=prefix: name.removeprefix(prefix) for prefix in _PREFIXES]
    return prefixes + [lambda name, inside=inside: inside.sub("", name) for inside in _INSIDE]
