"""Renamed config keys and arguments: the old names work for one more release, with a warning.

CHANGELOG.md lists all of them.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from odise_mm.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])

RECORDED = {"made_up_weights": "random_weights", "opinions": "classifiers"}
"""Old -> new keys of JSON files written by this package."""


def rename_model_keys(model: Any, where: str = "model") -> None:
    """Rename the old keys of a segmentor's config in place.

    ``fusion`` is now ``ensemble``. If a config inherits ``ensemble`` and changes ``fusion``, the
    change is merged as mmengine would.
    """
    if isinstance(model, dict) and "fusion" in model:
        _warn(f"{where}.fusion", f"{where}.ensemble", stacklevel=3)
        model["ensemble"] = _merged(model.pop("fusion"), model.get("ensemble"))


def rename_recorded_keys(content: Any) -> Any:
    """Rename the old keys in the content of a JSON file of this package, in place.

    There is no warning, because the user did not write the file.
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
    """Accept arguments under their old names as well: ``@renamed_arguments(old="new")``."""

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


def spread_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Accept ``test_cfg=dict(topk=9)`` among the arguments of a call as ``topk=9``."""
    settings = dict(settings)
    if "test_cfg" in settings:
        old = settings.pop("test_cfg")
        if old is not None and not isinstance(old, Mapping):
            raise ConfigError(f"test_cfg={old!r} must be a dictionary")
        _warn("argument test_cfg=dict(name=value)", "name=value", stacklevel=3)
        settings = {**(old or {}), **settings}
    return settings


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        from mmengine.config import Config  # imported late, because it is slow

        return Config._merge_a_into_b(dict(old), dict(new))
    return old


def _warn(old: str, new: str, stacklevel: int) -> None:
    warnings.warn(
        f"{old} has been renamed to {new}; the old name works for one more release (CHANGELOG.md "
        "lists all renamed keys)",
        FutureWarning,
        stacklevel=stacklevel + 1,
    )
