"""Safe display of untrusted text, such as file names, class names and keys.

Does not import torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# Control characters, undecodable bytes (as surrogates), and line and paragraph separators.
_ESCAPED_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
# Marks that change the direction of the following text, and the byte order mark.
_ESCAPED = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)


def printable(text: object, limit: int | None = None) -> str:
    """Return text as one line that is safe to print to a terminal.

    Control characters (including line breaks, tabs and escape sequences), undecodable bytes of file
    names, and marks that change the writing direction become ``\\x1b``, ``\\n``, ``\\udcff`` and so
    on. Everything else is unchanged, including backslashes.

    Args:
        text: Any object; its ``str`` is used.
        limit: Maximum number of characters; the middle of a longer text is replaced by "...".
    """
    shown = str(text)
    if not (shown.isascii() and shown.isprintable()):
        shown = "".join(_escape(sign) if _is_unsafe(sign) else sign for sign in shown)
    if limit is not None and len(shown) > limit:
        tail = max(0, (limit - 3) // 2)
        shown = shown[: max(0, limit - 3 - tail)] + "..." + shown[len(shown) - tail :]
    return shown


def first_line(text: object, limit: int = 200) -> str:
    """Return the first non-empty line like :func:`printable`, for messages of other libraries."""
    lines = (line.strip() for line in str(text).splitlines())
    return printable(next(filter(None, lines), ""), limit)


def markdown_cell(text: object, limit: int | None = None) -> str:
    """Return text like :func:`printable`, with markup escaped, for a cell of a Markdown table."""
    shown = printable(text, limit).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for sign in "|`*[]":
        shown = shown.replace(sign, "\\" + sign)
    return re.sub(r"(?<=\s)\\\*(?=\s|$)", "*", shown)  # a star between spaces is not markup


def _is_unsafe(sign: str) -> bool:
    return sign in _ESCAPED or unicodedata.category(sign) in _ESCAPED_CATEGORIES


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape", "backslashreplace").decode("ascii")


def some(texts: Iterable[str], limit: int = 5) -> str:
    """Join the first texts with commas, and add the number of omitted ones: "a, b and 3 more"."""
    texts = list(texts)
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more" * (len(texts) > limit))
