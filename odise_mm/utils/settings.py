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
    allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        raise _refused(name, value, f"a whole number {allowed}")


def check_number(
    name: str, value: Any, least: float = -math.inf, most: float = math.inf, above: bool = False
) -> None:
    """Refuse what is no finite number from ``least`` to ``most``.

    Args:
        name: of the setting.
        value: its value.
        least, most: both included; infinite: no bound.
        above: ``least`` itself is not allowed.

    Raises:
        ConfigError: names the setting, its value and what is allowed.
    """
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    low = number and (value < least or (above and value == least))
    if number and not low and value <= most:
        return
    bound = f"above {least:g}" if above else f"of at least {least:g}"
    if least == -math.inf:
        allowed = "a finite number" if most == math.inf else f"a number of at most {most:g}"
    elif most == math.inf:
        allowed = f"a finite number {bound}"
    elif above:
        allowed = f"a number {bound} and at most {most:g}"
    else:
        allowed = f"a number from {least:g} to {most:g}"
    raise _refused(name, value, allowed)


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
    for edge in value if pair else ():
        pair = pair and isinstance(edge, Integral) and not isinstance(edge, bool) and edge >= 1
    if not pair:
        raise _refused(name, value, "two whole numbers of at least 1, such as (2560, 1024)")


def _refused(name: str, value: Any, allowed: str) -> ConfigError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return ConfigError(f"{name}={shown}: {allowed}")
