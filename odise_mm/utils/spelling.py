"""Names that people write into configs: files or tags, and the nearest to a typo."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest known ones, if any is close."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def is_path(weights: str) -> bool:
    """Whether ``weights`` means a file, not a tag; timm's and open_clip's tags have no dots."""
    return Path(weights).expanduser().is_file() or "/" in weights or "." in weights
