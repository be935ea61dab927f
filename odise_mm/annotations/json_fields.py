"""Fields of the objects in JSON files: what they may hold, and words for what they hold instead.

Nothing is converted: "0" is no number and null is no name. Imports no torch.
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
    """Whether it is a whole number; true and false are none, nor is 1.0."""
    return type(value) is int


def is_number(value: Any) -> bool:
    """Whether it is a finite number; true and false are none."""
    # Compared with, not asked whether it is finite: whole numbers may have 400 digits.
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST


def is_text(value: Any) -> bool:
    """Whether it is text with something to read in it."""
    return isinstance(value, str) and bool(value.strip())


def is_box(value: Any) -> bool:
    """Whether it is a box as COCO has it."""
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
"""What a field may hold, in words -> whether a value is that."""


def shown(value: Any) -> str:
    """A value as JSON writes it, shortened: 1 and "1" look different."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return printable(json.dumps(value, ensure_ascii=False), limit=60)


def fault(entry: dict, key: str, kind: str, *, required: bool = True) -> str | None:
    """What is wrong with a field, as the rest of a sentence; None if nothing is.

    Args:
        entry: an object of a JSON file.
        key: of the field.
        kind: one of :data:`KINDS`.
        required: whether the field must be there.
    """
    if key not in entry:
        return f"has no `{key}` ({kind})" if required else None
    return None if KINDS[kind](entry[key]) else f"has `{key}` {shown(entry[key])}, not {kind}"


def twin(value: int | str, known: Iterable[int | str]) -> str:
    """For an id that is unknown: a hint where one that looks alike is known, else "".

    Args:
        value: the unknown id.
        known: those that there are.
    """
    for other in known:
        if str(other) == str(value) and other != value:
            return (
                f" (there is {shown(other)}: one is text, the other a number; write ids in the "
                "same way everywhere, numbers without quotes)"
            )
    return ""
