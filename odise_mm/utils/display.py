"""Showing text that comes from elsewhere: names of files, classes and keys. Imports no torch."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# Control characters, parts of names in no encoding, and line and paragraph separators.
_ESCAPED_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
# Marks that turn the direction of the text behind them, and a byte order mark.
_ESCAPED = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)


def printable(text: object, limit: int | None = None) -> str:
    """One line that is safe to show: what would steer a terminal is written as an escape.

    Control characters (line breaks, tabs and escape sequences among them), bytes of file names that
    are in no encoding, and marks that turn the direction of writing become ``\\x1b``, ``\\n``,
    ``\\udcff`` and so on. Everything else is left as it is, backslashes included.

    Args:
        text: anything; its ``str``.
        limit: characters to show at most; the middle of a longer text becomes "...".
    """
    shown = str(text)
    if not (shown.isascii() and shown.isprintable()):
        shown = "".join(_escape(sign) if _is_unsafe(sign) else sign for sign in shown)
    if limit is not None and len(shown) > limit:
        tail = max(0, (limit - 3) // 2)
        shown = shown[: max(0, limit - 3 - tail)] + "..." + shown[len(shown) - tail :]
    return shown


def first_line(text: object, limit: int = 200) -> str:
    """The first line with anything in it, as :func:`printable`; for messages of other libraries."""
    lines = (line.strip() for line in str(text).splitlines())
    return printable(next(filter(None, lines), ""), limit)


def markdown_cell(text: object, limit: int | None = None) -> str:
    """As :func:`printable`, for a cell of a Markdown table: nothing in it is markup."""
    shown = printable(text, limit).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for sign in "|`*[]":
        shown = shown.replace(sign, "\\" + sign)
    return re.sub(r"(?<=\s)\\\*(?=\s|$)", "*", shown)  # a star of its own is no markup


def _is_unsafe(sign: str) -> bool:
    return sign in _ESCAPED or unicodedata.category(sign) in _ESCAPED_CATEGORIES


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape", "backslashreplace").decode("ascii")


def some(texts: Iterable[str], limit: int = 5) -> str:
    texts = list(texts)
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more" * (len(texts) > limit))
