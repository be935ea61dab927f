"""Suggestions for misspelled names, and the distinction of files from tags."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a suffix for messages about an unknown name, with similar known names, or ""."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def is_path(weights: str) -> bool:
    """Return whether ``weights`` is a path rather than a tag of timm or open_clip.

    These tags contain no dots or slashes.
    """
    return Path(weights).expanduser().is_file() or "/" in weights or "." in weights
