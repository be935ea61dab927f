"""Semantic label maps: files with one class number per pixel.

The largest number that a file's bits can hold means "ignored": 255 in 8 bits, 65535 in 16. A class
must never have that number, so that maps of 256 classes and more have 16 bits. Imports no torch:
worker processes of the converters read label maps, too.
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
"""Class of pixels that do not count, in the maps of :func:`class_indices`."""

_LARGEST = 65535


def ignored_value(numbers: np.ndarray) -> int:
    """The number that means "ignored" in a label map: 255 in 8 bits, 65535 in 16."""
    return int(np.iinfo(numbers.dtype).max)


def label_map_dtype(num_classes: int) -> type[np.unsignedinteger]:
    """The smallest type for label maps that leaves "ignored" a number of its own.

    Raises:
        ConfigError: more classes than 16 bits can number.
    """
    for dtype in (np.uint8, np.uint16):
        if num_classes <= np.iinfo(dtype).max:
            return dtype
    raise ConfigError(
        f"a vocabulary of {num_classes:,} classes has no label maps: their 16 bits number "
        f"{_LARGEST:,} classes, and one value means 'ignored'"
    )


def read_label_map(path: str | os.PathLike[str]) -> np.ndarray:
    """The numbers in a label map as they are stored: palette indices, never colors.

    Args:
        path: a PNG, TIFF, BMP or GIF file of one channel, of 1 to 16 bits.

    Returns:
        (H, W) uint8 or uint16. Files of 1, 2 or 4 bits become uint8 with numbers up to 1, 3, 15.

    Raises:
        DatasetError: the file is missing, damaged, or no label map.
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
                f"{shown}: a label map with transparent pixels, which may or may not count; save "
                "it without transparency, and 255 where pixels are ignored"
            )
        numbers = numbers[..., 0]
    elif mode not in ("1", "L", "P") and not mode.startswith("I"):
        kind = f"{mode}: floating point numbers" if mode == "F" else f"{mode}: colors"
        raise DatasetError(
            f"{shown}: a label map has one channel of whole numbers of 1 to 16 bits, this is {kind}"
        )
    if mode.startswith("I"):
        return _within_16_bits(numbers, shown)
    few_bits = re.match(r"L;([24])", raw_mode)
    if few_bits:  # Pillow stretches them to 0 ... 255
        numbers = numbers // (255 // (2 ** int(few_bits[1]) - 1))
    return np.ascontiguousarray(numbers, np.uint8)


def _raw_mode(image: Image.Image) -> str:
    """How a file stores its pixels, in Pillow's words; known until the file is decoded."""
    arguments: Any = image.tile[0][3] if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _within_16_bits(numbers: np.ndarray, shown: str) -> np.ndarray:
    low, high = int(numbers.min(initial=0)), int(numbers.max(initial=0))
    if low < 0 or high > _LARGEST:
        raise DatasetError(
            f"{shown}: a label map with numbers from {low} to {high}; they must be from 0 to "
            f"{_LARGEST}, which means 'ignored'"
        )
    return numbers.astype(np.uint16)


def class_indices(
    numbers: np.ndarray, path: str | os.PathLike[str], num_classes: int, from_one: bool = False
) -> np.ndarray:
    """Class indices of a label map's numbers.

    Args:
        numbers: see :func:`read_label_map`.
        path: of the file, for messages.
        num_classes: K.
        from_one: 0 is ignored, too, and classes count from 1 (``reduce_zero_label``).

    Returns:
        (H, W) int32, 0 to K - 1 or :data:`IGNORED`.

    Raises:
        DatasetError: a number that is no class, or one that is a class and "ignored" at once.
    """
    ignored, last = ignored_value(numbers), num_classes - 1 + from_one
    marked = numbers == ignored
    if last >= ignored and marked.any():
        raise DatasetError(
            f"{printable(path)}: {ignored} is a class and means 'ignored' at once: a label map of "
            f"{num_classes} classes {_way_out(ignored)}"
        )
    labels = numbers.astype(np.int32) - from_one
    labels[marked] = IGNORED
    highest = int(labels.max(initial=0))
    if highest >= num_classes:
        raise DatasetError(
            f"{printable(path)}: class index {highest}, number {highest + from_one} in the file, "
            f"but the vocabulary has {num_classes} classes (from 0); the dataset needs its own "
            "vocabulary, and reduce_zero_label if its classes count from 1"
        )
    return labels


def _way_out(ignored: int) -> str:
    if ignored < _LARGEST:
        return f"needs 16 bits, where {_LARGEST} is ignored"
    return "is not possible, 16 bits are the most"
