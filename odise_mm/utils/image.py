"""Reading pictures: from a file, a PIL image or an array to uint8 BGR.

Files are decoded by Pillow, as the published pipeline does (decoders differ by a grey level or two,
which is enough to move a mask's border).
"""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from odise_mm.errors import ImageError

__all__ = ["DECODER_ERRORS", "IMAGE_EXTENSIONS", "ImageError", "ImageSource", "read_image"]

ImageSource = str | os.PathLike | np.ndarray | Image.Image

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
)

# What Pillow's decoders raise on damaged files; it has no common base class for them.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_image(
    source: ImageSource, *, channel_order: str = "bgr", name: str | None = None
) -> np.ndarray:
    """Read a picture as 8 bit BGR.

    - Grey is repeated over the channels; palettes, CMYK and the other colour models become RGB.
    - Transparency is composited on white, as a page or a viewer shows it.
    - 16 bit values are scaled (65535 becomes 255), not clipped.
    - The EXIF orientation is applied. Of an animation, the first frame is read.

    Args:
        source: a file's path, a PIL image, or an array (H, W), (H, W, 1 | 2 | 3 | 4), channels
            last; 2 and 4 channels: the last one is alpha. Accepted: uint8, uint16 (scaled), bool,
            and floating point in [0, 1].
        channel_order: ``"bgr"`` or ``"rgb"``, the order of an *array's* channels. The result is
            always BGR.
        name: what error messages call the picture; by default its path, "PIL image" or "array".

    Returns:
        uint8 array (H, W, 3), BGR, C-contiguous, not sharing memory with ``source``.

    Raises:
        ImageError: missing, a folder, unreadable or truncated, without pixels, or an array of a
            shape, type or value range that is not a picture's.
    """
    if channel_order not in ("bgr", "rgb"):
        raise ValueError(f'channel_order must be "bgr" or "rgb", not {channel_order!r}')
    if isinstance(source, np.ndarray):
        return _from_array(source, channel_order, name or "array")
    if isinstance(source, Image.Image):
        name = name or getattr(source, "filename", "") or "PIL image"
        try:
            return _from_pil(source, name)
        except DECODER_ERRORS as err:  # a lazily opened file is decoded only now
            raise _unreadable(name, err) from err
    if isinstance(source, (str, os.PathLike)):
        return _from_file(os.fspath(source), name)
    raise ImageError(
        f"{name or 'image'}: cannot read a picture from a {type(source).__name__}; "
        "give a path, a PIL image or a numpy array (H, W, 3)"
    )


def _unreadable(name: str, err: BaseException) -> ImageError:
    if isinstance(err, ImageError):
        return err
    if isinstance(err, Image.DecompressionBombError):
        return ImageError(f"{name}: too many pixels to decode safely ({err}); shrink it first")
    return ImageError(f"{name}: not a readable picture, or damaged ({err}); save it again as PNG")


def _from_file(path: str | bytes, name: str | None) -> np.ndarray:
    path = os.fsdecode(path)
    name = name or path
    if os.path.isdir(path):
        raise ImageError(f"{name}: is a folder, not a picture")
    if not os.path.exists(path):
        raise ImageError(f"{name}: no such file")
    if os.path.getsize(path) == 0 and os.path.isfile(path):
        raise ImageError(f"{name}: the file is empty (0 bytes)")
    try:
        with Image.open(path) as image:
            return _from_pil(image, name)
    except PermissionError as err:
        raise ImageError(f"{name}: no permission to read it") from err
    except Image.UnidentifiedImageError as err:
        raise ImageError(f"{name}: not a picture in a format that Pillow knows") from err
    except DECODER_ERRORS as err:
        raise _unreadable(name, err) from err


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    if image.width == 0 or image.height == 0:
        raise ImageError(f"{name}: has no pixels ({image.width} x {image.height})")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_array(_deep_values(image, name), "rgb", name)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):  # premultiplied: has a conversion to its sibling only
            image = image.convert(image.mode.upper())
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    rgb = np.asarray(image.convert("RGB"))
    return np.ascontiguousarray(rgb[..., ::-1])


def _deep_values(image: Image.Image, name: str) -> np.ndarray:
    """Pixels of a grey image with more than 8 bits: uint16, or float for mode F."""
    values = np.asarray(image)
    if image.mode == "F":
        return values
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"{name}: 32 bit values from {values.min()} to {values.max()}; "
            "convert it to 8 or 16 bit"
        )
    return values.astype(np.uint16)


def _from_array(array: np.ndarray, channel_order: str, name: str) -> np.ndarray:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; channels come last: array.transpose(1, 2, 0)"
        elif array.ndim == 4:
            hint = "; several pictures are given as a list of arrays"
        raise ImageError(
            f"{name}: shape {array.shape} is not a picture's, (H, W) or (H, W, channels)" + hint
        )
    if array.size == 0:
        raise ImageError(f"{name}: has no pixels (shape {array.shape})")
    pixels = _to_uint8(array, name)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1:].astype(np.float32) / 255
        opaque = pixels[..., :-1] * alpha + 255 * (1 - alpha)
        pixels = np.rint(opaque).astype(np.uint8)
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return (pixels[..., ::-1] if channel_order == "rgb" else pixels).copy(order="C")


def _to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise ImageError(f"{name}: has NaN or infinite values")
        low, high = float(array.min()), float(array.max())
        if low < 0 or high > 1:
            raise ImageError(
                f"{name}: floating point values from {low:g} to {high:g}; scale them to [0, 1], "
                "or convert to uint8"
            )
        return np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    raise ImageError(
        f"{name}: {array.dtype} values are not a picture's; convert to uint8 (0 to 255), "
        "uint16 (0 to 65535) or floating point (0 to 1)"
    )
