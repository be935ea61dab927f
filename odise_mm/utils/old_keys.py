"""Keys and arguments that were renamed: the old ones are read for one more release, with a warning.

CHANGELOG.md lists all of them.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

RECORDED = {"made_up_weights": "random_weights", "opinions": "classifiers"}
"""Keys of JSON files that this package wrote."""


def rename_model_keys(model: Any, where: str = "model") -> None:
    """Rename the old keys of a segmentor's config, in place.

    ``fusion`` is ``ensemble`` now. Where a config inherits ``ensemble`` and changes ``fusion``, the
    change is merged into it, as mmengine merges.
    """
    if isinstance(model, dict) and "fusion" in model:
        _warn(f"{where}.fusion", f"{where}.ensemble", stacklevel=3)
        model["ensemble"] = _merged(model.pop("fusion"), model.get("ensemble"))


def rename_recorded_keys(content: Any) -> Any:
    """Rename the old keys of what this package wrote to a JSON file, in place.

    Earlier releases wrote them, so there is nothing to warn of.
    """
    if isinstance(content, dict):
        for old, new in RECORDED.items():
            if old in content:
                content.setdefault(new, content.pop(old))
        model = content.get("model")
        if isinstance(model, dict) and "fusion" in model:
            model.setdefault("ensemble", model.pop("fusion"))
    return content


def renamed_arguments(**names: str) -> Callable[[Function], Function]:
    """Let a function take an argument under its old name, too: ``renamed_arguments(old="new")``."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for old, new in names.items():
                if old in kwargs:
                    _warn(f"argument {old}", new, stacklevel=3)
                    kwargs[new] = _merged(kwargs.pop(old), kwargs.get(new))
            return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        from mmengine.config import Config  # here: takes a while

        return Config._merge_a_into_b(dict(old), dict(new))
    return old


def _warn(old: str, new: str, stacklevel: int) -> None:
    warnings.warn(
        f"{old} is called {new} now; the old name is read for one more release (CHANGELOG.md "
        "lists all of them)",
        FutureWarning,
        stacklevel=stacklevel + 1,
    )
