"""Read the files of providers' archives, with errors that name the file, and write PNG files."""

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

_ORIENTATION, _SWAPPED = 0x0112, (5, 6, 7, 8)


def write_png(path: str | os.PathLike, pixels: np.ndarray) -> None:
    """Write a PNG file atomically.

    Args:
        path: The file.
        pixels: (H, W) uint8 or uint16, or (H, W, 3) uint8 RGB.

    Raises:
        TypeError: The array has another dtype.
    """
    if pixels.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"{path}: PNG files need uint8 or uint16 pixels, not {pixels.dtype}")
    with atomic_writer(path, durable=False) as file:
        Image.fromarray(pixels).save(file, format="PNG")


def read_json(path: str | os.PathLike) -> Any:
    """Return the content of a JSON file; see :func:`odise_mm.utils.files.read_json`.

    Raises:
        DatasetError: The file is missing or not JSON.
    """
    return files.read_json(path, DatasetError, "file")


def rows_of(content: Any, key: str, path: str | os.PathLike, **kinds: str) -> list[dict]:
    """Return a list of objects from a JSON file after checking the types of their fields.

    Args:
        content: Content of the file.
        key: Key of the list.
        path: Path of the file, for error messages.
        kinds: Types of the required fields; see :data:`odise_mm.annotations.json_fields.KINDS`.

    Raises:
        DatasetError: The list is missing, or an object lacks a field or has one of the wrong type.
    """
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise DatasetError(f"{path}: has no list `{key}`")
    for place, row in enumerate(rows, start=1):
        problem = None if isinstance(row, dict) else f"is {shown(row)}, not an object"
        for field, kind in kinds.items():
            problem = problem or fault(row, field, kind)
        if problem:
            raise DatasetError(f"{path}: number {place} of `{key}` {problem}")
    return rows


def read_lines(path: str | os.PathLike) -> list[str]:
    """Return the lines of a text file.

    Raises:
        DatasetError: The file is missing or not UTF-8 text.
    """
    path = regular_file(path, DatasetError, "file")
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text ({error})") from error


@contextmanager
def parsing(path: str | os.PathLike, what: str = "annotations in COCO's format") -> Iterator[None]:
    """Turn errors that invalid JSON content causes in the block into a DatasetError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DatasetError(f"{path}: not {what} ({error!r})") from error


def read_pixels(
    path: str | os.PathLike | bytes, modes: Sequence[str] | None = None, name: str | None = None
) -> np.ndarray:
    """Return the pixels of a file whose colors encode numbers; see also ``read_label_map``.

    Args:
        path: The file, or its content.
        modes: Pillow modes that are accepted, e.g. ``("RGB", "RGBA")``; None: any.
        name: Name of the file in messages; by default the path.

    Returns:
        (H, W) or (H, W, channels) array.

    Raises:
        DatasetError: The file is missing, damaged, or has another mode.
    """
    limits = dict(formats=LABEL_FORMATS, max_pixels=MAX_LABEL_PIXELS)
    with open_image(path, **limits, error=DatasetError, name=name) as image:
        mode, pixels = image.mode, np.array(image)
    if modes is not None and mode not in modes:
        raise DatasetError(f"{name or path}: its mode is {mode}, expected {' or '.join(modes)}")
    return pixels


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Read height and width of an image, after applying its EXIF orientation, from the header.

    Raises:
        DatasetError: The file is missing or not an image.
    """
    with open_image(path, max_pixels=None, error=DatasetError) as image:  # reads only the header
        width, height = image.size
        if image.getexif().get(_ORIENTATION) in _SWAPPED:
            height, width = width, height
        return height, width


def need_folder(path: Path, hint: str) -> Path:
    """Return ``path`` if it is a folder.

    Args:
        path: Folder of the unpacked archive.
        hint: How to get it, for the error message, e.g. ``"unpack ADEChallengeData2016.zip"``.

    Raises:
        DatasetError: The folder does not exist.
    """
    if not path.is_dir():
        raise DatasetError(f"{path}: no such folder; {hint}")
    return path


def need_file(path: Path, hint: str) -> Path:
    """Return ``path`` if it is a file; see :func:`need_folder`."""
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; {hint}")
    return path
