"""Settings are looked at where a part is built, with one message each."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

from odise_mm.errors import ConfigError


def check_whole(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Refuse what is no whole number from ``least`` to ``most``.

    Raises:
        ConfigError: names the setting, its value and what is allowed.
    """
    bounds = f"at least {least}" if most is None else f"{least} to {most}"
    if not is_whole(value) or value < least or (most is not None and value > most):
        raise _refused(name, value, f"{bounds}, a whole number")


def check_number(name: str, value: Any, least: float = 0, most: float = math.inf) -> None:
    """Refuse what is no finite number from ``least`` to ``most``.

    Raises:
        ConfigError: names the setting, its value and what is allowed.
    """
    if not (is_number(value) and least <= value <= most):
        bounds = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise _refused(name, value, f"a number {bounds}")


def check_weight(name: str, value: Any) -> None:
    """Refuse what is no number from 0 to 1.

    Raises:
        ConfigError: names the setting, its value and what is allowed.
    """
    if not (is_number(value) and 0 <= value <= 1):
        raise _refused(name, value, "a weight between 0 and 1")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; True and False, and texts, are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False.

    Raises:
        ConfigError: names the setting and its value.
    """
    if not isinstance(value, bool):
        raise _refused(name, value, "True or False")


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Refuse what is not among the choices.

    Raises:
        ConfigError: names the setting, its value and the choices.
    """
    if not isinstance(value, str) or value not in choices:
        raise _refused(name, value, f"one of {', '.join(map(repr, choices))}")


def check_text(name: str, value: Any) -> None:
    """Refuse what is no text, or empty.

    Raises:
        ConfigError: names the setting and its value.
    """
    if not isinstance(value, str) or not value:
        raise _refused(name, value, "a text that is not empty")


def check_size(name: str, value: Any) -> None:
    """Refuse what is no pair of whole numbers of at least 1: a width and a height in pixels.

    Raises:
        ConfigError: names the setting and its value.
    """
    pair = isinstance(value, list | tuple) and len(value) == 2
    if not pair or not all(is_whole(edge) and edge >= 1 for edge in value):
        raise _refused(name, value, "two whole numbers of at least 1, such as (2560, 1024)")


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; True, False and 1.0 are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _refused(name: str, value: Any, allowed: str) -> ConfigError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return ConfigError(f"{name}={shown}: {allowed}")
