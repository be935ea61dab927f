"""Regions of scenes as images of their own: what CLIP learns names from."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from PIL import Image

Mode = Literal["crop", "masked", "masked_crop"]
MODES: tuple[str, ...] = get_args(Mode)
GRAY = 128
"""What is not the region in masked images."""

_SMALLEST = 24  # side of a crop in pixels
_MARGIN = (0.05, 0.6)  # of a crop around a region, of the region's larger side


def show_region(
    image: np.ndarray, mask: np.ndarray, mode: Mode, size: int, rng: np.random.Generator
) -> np.ndarray:
    """A region as a picture of its own, (size, size, 3) uint8.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) bool, with a pixel at least.
        mode: "crop": a square around it, larger by a margin at random. "masked": the whole picture,
            grey but for the region. "masked_crop": both.
        size: of the result, in pixels.
        rng: of the margin.

    Raises:
        ValueError: another mode, or an empty mask.
    """
    if mode not in MODES:
        raise ValueError(f"a region is shown as one of {', '.join(MODES)}, not {mode!r}")
    if not mask.any():
        raise ValueError("a region without a pixel cannot be shown")
    if mode != "crop":
        image = np.where(mask[..., None], image, np.uint8(GRAY))
    if mode == "masked":
        return _resized(image, size)
    spans = [np.flatnonzero(mask.any(axis=axis))[[0, -1]] + [0, 1] for axis in (0, 1)]
    side = max(int(end - start) for start, end in spans)
    side = round(max(side * (1 + rng.uniform(*_MARGIN)), _SMALLEST))
    side = min(side, *mask.shape)
    box = []
    for (start, end), limit in zip(spans, mask.shape[::-1], strict=True):
        box.append(int(np.clip((start + end - side) // 2, 0, limit - side)))
    left, top = box
    return _resized(image[top : top + side, left : left + side], size)


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
