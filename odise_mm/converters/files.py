"""Files of providers' archives: read with messages that name them, and PNG files written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from odise_mm.annotations.json_fields import fault, shown
from odise_mm.errors import DatasetError
from odise_mm.utils import files
from odise_mm.utils.files import atomic_writer, regular_file
from odise_mm.utils.image import LABEL_FORMATS, MAX_LABEL_PIXELS, open_image

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)


def write_png(path: str | os.PathLike, pixels: np.ndarray) -> None:
    """Write a PNG file, atomically: (H, W) uint8 or uint16, or (H, W, 3) uint8 RGB."""
    if pixels.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"{path}: a PNG holds uint8 or uint16, not {pixels.dtype}")
    with atomic_writer(path, durable=False) as file:
        Image.fromarray(pixels).save(file, format="PNG")


def read_json(path: str | os.PathLike) -> Any:
    """A JSON file's content; see :func:`odise_mm.utils.files.read_json`.

    Raises:
        DatasetError: missing, or not JSON.
    """
    return files.read_json(path, DatasetError, "file")


def rows_of(content: Any, key: str, path: str | os.PathLike, **kinds: str) -> list[dict]:
    """The objects of a list in a JSON file, with fields of the right types.

    Args:
        content: of the file.
        key: of the list.
        path: of the file, for messages.
        kinds: of fields that must be there, see :data:`odise_mm.annotations.json_fields.KINDS`.

    Raises:
        DatasetError: there is no such list, or an object is incomplete or of wrong types.
    """
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise DatasetError(f"{path}: there is no list `{key}` in it")
    for place, row in enumerate(rows, start=1):
        problem = None if isinstance(row, dict) else f"is {shown(row)}, not an object"
        for field, kind in kinds.items():
            problem = problem or fault(row, field, kind)
        if problem:
            raise DatasetError(f"{path}: number {place} of `{key}` {problem}")
    return rows


def read_lines(path: str | os.PathLike) -> list[str]:
    """A text file's lines.

    Raises:
        DatasetError: missing, or not text in UTF-8.
    """
    path = regular_file(path, DatasetError, "file")
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not text in UTF-8 ({error})") from error


@contextmanager
def parsing(path: str | os.PathLike, what: str = "annotations in COCO's format") -> Iterator[None]:
    """What the block misses in a JSON file's content, or finds odd there, is a DatasetError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DatasetError(f"{path}: not {what} ({error!r})") from error


def read_pixels(path: str | os.PathLike, modes: Sequence[str] | None = None) -> np.ndarray:
    """Numbers of a file whose colors stand for them; see also ``read_label_map``.

    Args:
        path: the file.
        modes: Pillow's modes that are right here, e.g. ``("RGB", "RGBA")``; None: any.

    Returns:
        (H, W) or (H, W, channels).

    Raises:
        DatasetError: missing, damaged, or of another mode.
    """
    limits = dict(formats=LABEL_FORMATS, max_pixels=MAX_LABEL_PIXELS)
    with open_image(path, **limits, error=DatasetError) as image:
        mode, pixels = image.mode, np.array(image)
    if modes is not None and mode not in modes:
        raise DatasetError(f"{path}: a picture of mode {mode} where {' or '.join(modes)} is right")
    return pixels


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Height and width of an image as it is loaded (turned upright), from its header.

    Raises:
        DatasetError: missing or not an image.
    """
    with open_image(path, max_pixels=None, error=DatasetError) as image:  # nothing is decoded
        width, height = image.size
        if image.getexif().get(_ORIENTATION) in _TURNED:
            height, width = width, height
        return height, width


def need_folder(path: Path, where_from: str) -> Path:
    """``path`` if it is a folder.

    Args:
        path: part of the unpacked archive.
        where_from: which archive it comes from, e.g. ``"ADEChallengeData2016.zip"``.

    Raises:
        DatasetError: it is not there.
    """
    if not path.is_dir():
        raise DatasetError(f"{path}: no such folder; it comes from {where_from}, unpacked there")
    return path


def need_file(path: Path, where_from: str) -> Path:
    """``path`` if it is a file; see :func:`need_folder`."""
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; it comes from {where_from}, unpacked there")
    return path
