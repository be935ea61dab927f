"""Semantic label maps: image files with one class value per pixel.

The largest value of the file's bit depth means "ignored": 255 for 8 bits, 65535 for 16 bits. No
class may have that value, so maps of 256 or more classes need 16 bits. This module does not import
torch, because worker processes of the converters read label maps too.
"""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
from PIL import Image

from odise_mm.errors import ConfigError, DatasetError
from odise_mm.utils.display import printable
from odise_mm.utils.image import LABEL_FORMATS, MAX_LABEL_PIXELS, open_image

IGNORED = -1
"""Class index of ignored pixels in the maps of :func:`class_indices`."""

_LARGEST = 65535


def ignored_value(numbers: np.ndarray) -> int:
    """Return the value that means "ignored" in a label map: 255 for 8 bits, 65535 for 16 bits."""
    return int(np.iinfo(numbers.dtype).max)


def label_map_dtype(num_classes: int) -> type[np.unsignedinteger]:
    """Return the smallest dtype for label maps in which no class has the value for "ignored".

    Raises:
        ConfigError: If 16 bits are not enough for all classes.
    """
    for dtype in (np.uint8, np.uint16):
        if num_classes <= np.iinfo(dtype).max:
            return dtype
    raise ConfigError(
        f"label maps cannot have {num_classes:,} classes: 16 bits are enough for {_LARGEST:,} "
        "classes, as one value means 'ignored'"
    )


def read_label_map(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the stored values of a label map; for files with a palette, the palette indices.

    Args:
        path: A PNG, TIFF, BMP or GIF file with one channel of 1 to 16 bits.

    Returns:
        (H, W) uint8 or uint16. Files of 1, 2 or 4 bits become uint8 with values up to 1, 3 or 15.

    Raises:
        DatasetError: If the file is missing, damaged, or not a label map.
    """
    shown = printable(path)
    limits = dict(formats=LABEL_FORMATS, max_pixels=MAX_LABEL_PIXELS)
    with open_image(path, **limits, error=DatasetError, what="label map") as image:
        raw_mode = _raw_mode(image)
        image.load()
        mode, numbers = image.mode, np.array(image)
    if mode in ("LA", "PA"):
        if (numbers[..., 1] != 255).any():
            raise DatasetError(
                f"{shown}: the label map has transparent pixels, whose meaning is ambiguous; save "
                "it without transparency, with 255 for ignored pixels"
            )
        numbers = numbers[..., 0]
    elif mode not in ("1", "L", "P") and not mode.startswith("I"):
        kind = f"{mode}: floating point numbers" if mode == "F" else f"{mode}: colors"
        raise DatasetError(
            f"{shown}: a label map must have one channel of integers with 1 to 16 bits, but the "
            f"file has mode {kind}"
        )
    if mode.startswith("I"):
        return _within_16_bits(numbers, shown)
    few_bits = re.match(r"L;([24])", raw_mode)
    if few_bits:  # Pillow scales them to 0 ... 255
        numbers = numbers // (255 // (2 ** int(few_bits[1]) - 1))
    return np.ascontiguousarray(numbers, np.uint8)


def _raw_mode(image: Image.Image) -> str:
    """Return Pillow's name of the stored pixel format, which is only known before decoding."""
    arguments: Any = image.tile[0][3] if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _within_16_bits(numbers: np.ndarray, shown: str) -> np.ndarray:
    low, high = int(numbers.min(initial=0)), int(numbers.max(initial=0))
    if low < 0 or high > _LARGEST:
        raise DatasetError(
            f"{shown}: the label map has values from {low} to {high}; they must be from 0 to "
            f"{_LARGEST}, which means 'ignored'"
        )
    return numbers.astype(np.uint16)


def class_indices(
    numbers: np.ndarray, path: str | os.PathLike[str], num_classes: int, from_one: bool = False
) -> np.ndarray:
    """Convert the values of a label map to class indices.

    Args:
        numbers: Values of the label map, see :func:`read_label_map`.
        path: Path of the file, for messages.
        num_classes: Number of classes K.
        from_one: Whether 0 is ignored as well and classes are numbered from 1
            (``reduce_zero_label``).

    Returns:
        (H, W) int32, 0 to K - 1 or :data:`IGNORED`.

    Raises:
        DatasetError: If a value is not a class, or is both a class and "ignored".
    """
    ignored, last = ignored_value(numbers), num_classes - 1 + from_one
    marked = numbers == ignored
    if last >= ignored and marked.any():
        raise DatasetError(
            f"{printable(path)}: {ignored} is both a class and the value for 'ignored'; a label "
            f"map of {num_classes} classes {_way_out(ignored)}"
        )
    labels = numbers.astype(np.int32) - from_one
    labels[marked] = IGNORED
    highest = int(labels.max(initial=0))
    if highest >= num_classes:
        raise DatasetError(
            f"{printable(path)}: class index {highest}, value {highest + from_one} in the file, "
            f"but the vocabulary has {num_classes} classes (counted from 0); use the dataset's own "
            "vocabulary, and reduce_zero_label if its classes are numbered from 1"
        )
    return labels


def _way_out(ignored: int) -> str:
    if ignored < _LARGEST:
        return f"needs 16 bits, where {_LARGEST} is ignored"
    return "is not supported, as 16 bits are the maximum"
