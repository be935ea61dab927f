"""Names of videos, cameras and streams. Imports nothing heavy, since programs parse arguments."""

from __future__ import annotations

import os
import re
from pathlib import Path

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()
)
"""File name extensions that are taken for videos where images are expected as well."""

OUTPUT_SUFFIXES = (".mkv", ".mov", ".mp4")
"""File name extensions of videos that can be written."""

_STREAM = re.compile(r"(rtsps?|rtmps?|https?|udp|tcp|srt)://", re.IGNORECASE)
_CAMERA = re.compile(r"camera:(\d+)")


def is_stream(name: str) -> bool:
    """Return whether a name is the address of a network stream."""
    return _STREAM.match(name) is not None


def camera_of(source: str | os.PathLike[str] | int) -> int | None:
    """Return the index of a camera from a number or ``camera:N``; None for other sources."""
    if isinstance(source, int) and not isinstance(source, bool):
        return source
    found = _CAMERA.fullmatch(source) if isinstance(source, str) else None
    return None if found is None else int(found[1])


def is_video(source: object) -> bool:
    """Return whether a source is a video by its name: a file, ``camera:N`` or a network stream.

    Web addresses count only with the extension of a video, because images have addresses, too.
    """
    if not isinstance(source, str | os.PathLike):
        return False
    text = os.fspath(source)
    has_suffix = Path(text).suffix.lower() in VIDEO_SUFFIXES
    if camera_of(text) is not None or (is_stream(text) and not text.lower().startswith("http")):
        return True
    return has_suffix and not os.path.isdir(text)
