"""Checks of config values, with error messages that name the setting, the value and the range."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

from odise_mm.errors import ConfigError


def check_whole(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Check that a value is a whole number from ``least`` to ``most``.

    Raises:
        ConfigError: If it is not.
    """
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    if not is_whole(value) or value < least or (most is not None and value > most):
        raise _refused(name, value, f"a whole number {bounds}")


def check_number(name: str, value: Any, least: float = 0, most: float = math.inf) -> None:
    """Check that a value is a finite number from ``least`` to ``most``.

    Raises:
        ConfigError: If it is not.
    """
    if not (is_number(value) and least <= value <= most):
        bounds = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise _refused(name, value, f"a number {bounds}")


def check_weight(name: str, value: Any) -> None:
    """Check that a value is a number from 0 to 1.

    Raises:
        ConfigError: If it is not.
    """
    if not (is_number(value) and 0 <= value <= 1):
        raise _refused(name, value, "a weight between 0 and 1")


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; booleans and strings are not."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_flag(name: str, value: Any) -> None:
    """Check that a value is True or False.

    Raises:
        ConfigError: If it is not.
    """
    if not isinstance(value, bool):
        raise _refused(name, value, "True or False")


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Check that a value is one of the choices.

    Raises:
        ConfigError: If it is not.
    """
    if not isinstance(value, str) or value not in choices:
        raise _refused(name, value, f"one of {', '.join(map(repr, choices))}")


def check_text(name: str, value: Any) -> None:
    """Check that a value is a non-empty string.

    Raises:
        ConfigError: If it is not.
    """
    if not isinstance(value, str) or not value:
        raise _refused(name, value, "a non-empty string")


def check_size(name: str, value: Any) -> None:
    """Check that a value is a width and a height in pixels: two whole numbers of at least 1.

    Raises:
        ConfigError: If it is not.
    """
    pair = isinstance(value, list | tuple) and len(value) == 2
    if not pair or not all(is_whole(edge) and edge >= 1 for edge in value):
        raise _refused(name, value, "two whole numbers of at least 1, such as (2560, 1024)")


def is_whole(value: Any) -> bool:
    """Return whether a value is an integer; booleans and 1.0 are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _refused(name: str, value: Any, allowed: str) -> ConfigError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return ConfigError(f"{name}={shown}: must be {allowed}")
