"""Separators in typed text and text files: ``;`` between classes, ``,`` between synonyms.

A name in double quotes may contain both. Quotes count only around a whole name, so ``12" pipe`` is
an ordinary name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_QUOTED = r'"[^"]*"'
# A quoted name, or text up to the next separator.
_NAME = re.compile(rf"\s*(?:({_QUOTED})\s*(?=,|$)|([^,]*))(?:,|$)")
_CLASS = re.compile(rf"(?:(?:^|(?<=[;,\s])){_QUOTED}(?=\s*(?:[;,]|$))|[^;])+")


def clean(text: str) -> str:
    """Collapse every run of white space into one space and strip the ends."""
    return " ".join(text.split())


def split_classes(text: str) -> Iterator[str]:
    """Yield the stripped parts between semicolons, quotes included; empty parts are dropped."""
    for part in _CLASS.findall(text):
        if any(split_names(part)):
            yield part.strip()


def has_semicolon(text: str) -> bool:
    """Return whether text contains a semicolon that separates, even if only one class is named."""
    return ";" in _CLASS.sub("", text)


def split_names(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the names between commas outside quotes, and whether each was quoted.

    Quotes are dropped, and so are empty names.
    """
    for quoted, plain in _NAME.findall(text):
        name = clean(quoted[1:-1] if quoted else plain)
        if name:
            yield name, bool(quoted)


def split_synonyms(text: str) -> tuple[str, ...]:
    """Split text at commas outside quotes; drop quotes, and empty and repeated names.

    Names that differ only in case are repeated names.
    """
    names: dict[str, str] = {}
    for name, _ in split_names(text):
        names.setdefault(name.casefold(), name)
    return tuple(names.values())


def with_quotes(name: str) -> str:
    """Return a name as :func:`split_synonyms` reads it: in quotes if it contains a comma."""
    return f'"{name}"' if "," in name else name
