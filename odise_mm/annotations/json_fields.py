"""Checks for the fields of JSON objects, with descriptions for error messages.

Values are never converted: "0" is not a number, and null is not a name. Does not import torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

from odise_mm.utils.display import printable

WHOLE = "a whole number from 0"
ID = "a whole number or text"
FLAG = "0 or 1"
TEXT = "text"
NAMES = "a list of texts"
LENGTH = "a whole number from 1 to 1000000"
AREA = "a number from 0"
_LARGEST = sys.float_info.max
BOX = "four numbers, x, y, width and height, the last two from 0"


def is_whole(value: Any) -> bool:
    """Return whether the value is an int; booleans and 1.0 are not."""
    return type(value) is int


def is_number(value: Any) -> bool:
    """Return whether the value is a finite number; booleans are not."""
    # math.isfinite would overflow for integers with hundreds of digits.
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST


def is_text(value: Any) -> bool:
    """Return whether the value is a string that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def is_box(value: Any) -> bool:
    """Return whether the value is a box in COCO's format: x, y, width, height."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(map(is_number, value))
        and value[2] >= 0 <= value[3]
    )


KINDS: dict[str, Callable[[Any], bool]] = {
    "a list": lambda value: isinstance(value, list),
    "a list of whole numbers or texts": (
        lambda value: isinstance(value, list) and all(map(KINDS[ID], value))
    ),
    TEXT: is_text,
    NAMES: lambda value: isinstance(value, list) and all(map(is_text, value)),
    WHOLE: lambda value: is_whole(value) and value >= 0,
    ID: lambda value: is_whole(value) or is_text(value),
    LENGTH: lambda value: is_whole(value) and 1 <= value <= 1_000_000,
    AREA: lambda value: is_number(value) and value >= 0,
    "a number from 0 to 1": lambda value: is_number(value) and 0 <= value <= 1,
    FLAG: lambda value: type(value) in (int, bool) and value in (0, 1),
    BOX: is_box,
}
"""Description of a kind of value -> check of a value."""


def shown(value: Any) -> str:
    """Return a value as shortened JSON, so that 1 and "1" look different."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return printable(json.dumps(value, ensure_ascii=False), limit=60)


def fault(entry: dict, key: str, kind: str, *, required: bool = True) -> str | None:
    """Return what is wrong with a field, to be appended to the entry's name, or None.

    Args:
        entry: An object of a JSON file.
        key: Key of the field.
        kind: One of :data:`KINDS`.
        required: Whether the field must be present.
    """
    if key not in entry:
        return f"has no `{key}` ({kind})" if required else None
    return None if KINDS[kind](entry[key]) else f"has `{key}` {shown(entry[key])}, not {kind}"


def twin(value: int | str, known: Iterable[int | str]) -> str:
    """Return a hint for an unknown id if it differs from a known one only in type, else "".

    Args:
        value: The unknown id.
        known: The existing ids.
    """
    for other in known:
        if str(other) == str(value) and other != value:
            return (
                f" (but {shown(other)} exists: one is text, the other a number; write ids in the "
                "same way everywhere, numbers without quotes)"
            )
    return ""
