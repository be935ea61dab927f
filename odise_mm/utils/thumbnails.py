"""Small pictures of regions, by which a person recognizes an example."""

from __future__ import annotations

import base64
from functools import lru_cache

import cv2
import numpy as np

from odise_mm.errors import ImageError
from odise_mm.structures.geometry import box_of
from odise_mm.utils.image import open_image, read_image

SIDE = 64
"""Longest side of a picture that is made."""
MAX_SIDE = 128
"""Longest side of a picture that is shown; files from others may have larger ones."""
MAX_BYTES = 16 << 10
"""Most bytes of a picture."""
_MARGIN = 0.1  # around the region, as a fraction of its longer side
_GRAY = 128  # what is outside of the region fades into it, because regions may be dark or bright
_FADED = 0.65


def thumbnail(image: np.ndarray, mask: np.ndarray) -> bytes:
    """Make a picture of a region, with a little of what is around it.

    Args:
        image: (H, W, 3) uint8 BGR.
        mask: (H, W) bool, with at least one pixel.

    Returns:
        A JPEG image of at most 64 x 64 pixels.
    """
    left, top, right, bottom = box_of(mask)
    margin = round(_MARGIN * max(right - left, bottom - top))
    rows = slice(max(top - margin, 0), bottom + margin)
    columns = slice(max(left - margin, 0), right + margin)
    part, inside = image[rows, columns], mask[rows, columns].astype(np.float32)
    height, width = inside.shape
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    part = cv2.resize(part, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    faded = _FADED * (1 - cv2.resize(inside, size, interpolation=cv2.INTER_AREA))[..., None]
    return _encode((part * (1 - faded) + _GRAY * faded).round().astype(np.uint8))


@lru_cache(maxsize=4096)
def checked(picture: bytes) -> bytes | None:
    """Decode a picture that may come from anybody, and encode it again.

    Args:
        picture: bytes of a JPEG image.

    Returns:
        A JPEG image that this package wrote; None if the picture is damaged, of another format, or
        larger than :data:`MAX_BYTES` or :data:`MAX_SIDE`. Sides are checked before it is decoded.
    """
    if not 0 < len(picture) <= MAX_BYTES:
        return None
    try:
        with open_image(picture, formats=("JPEG",), name="picture of a region") as image:
            if max(image.size) > MAX_SIDE:
                return None
            return _encode(read_image(image, name="picture of a region"))
    except ImageError:
        return None


def as_data_url(picture: bytes) -> str:
    """Return a picture of :func:`checked` as the address of an image in HTML."""
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode()


def _encode(image: np.ndarray) -> bytes:
    _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return jpeg.tobytes()
