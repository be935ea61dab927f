"""Regions of scenes as separate images, from which CLIP learns names."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from PIL import Image

Mode = Literal["crop", "masked", "masked_crop"]
MODES: tuple[str, ...] = get_args(Mode)
GRAY = 128
"""Gray level outside the region in masked images."""

_SMALLEST = 24  # smallest side of a crop, in pixels
_MARGIN = (0.05, 0.6)  # range of margins, as a fraction of the region's larger side


def show_region(
    image: np.ndarray, mask: np.ndarray, mode: Mode, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Show a region as a separate image.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) bool, with at least one pixel.
        mode: "crop": a square around the region with a random margin. "masked": the whole image,
            gray outside the region. "masked_crop": both.
        size: Height and width of the result, in pixels.
        rng: Random numbers of the margin.

    Returns:
        (size, size, 3) uint8.

    Raises:
        ValueError: The mode is unknown, or the mask is empty.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if not mask.any():
        raise ValueError("the mask of the region is empty")
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
