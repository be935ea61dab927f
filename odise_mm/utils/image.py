"""Reading images: from a file, its bytes, a PIL image or an array to uint8 BGR.

Files are decoded by Pillow, as the published pipeline does (decoders differ by a gray level or two,
which is enough to move a mask's border). Every file that holds pixels is opened by
:func:`open_image`: in the formats named here alone, whatever its extension says, and with its
pixels counted before they are decoded.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from odise_mm.errors import ImageError, OdiseError
from odise_mm.utils.display import printable
from odise_mm.utils.files import regular_file

__all__ = [
    "LABEL_FORMATS",
    "MAX_LABEL_PIXELS",
    "MAX_PIXELS",
    "IMAGE_FORMATS",
    "ImageError",
    "ImageSource",
    "advice_on",
    "check_max_pixels",
    "exif_orientation",
    "is_encoded",
    "open_image",
    "image_suffixes",
    "read_image",
    "turned_hint",
]

ImageSource = (
    str | os.PathLike | bytes | bytearray | memoryview | IO[bytes] | np.ndarray | Image.Image
)

# Pillow's names. Left out: what starts a program (EPS), holds drawing commands or files of another
# format, or is no image of something. TGA comes last, as its files have no signature.
IMAGE_FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "AVIF", "JPEG2000", "TIFF", "GIF", "BMP", "DIB", "PPM", "PSD",
    "QOI", "SGI", "PCX", "TGA",
)  # fmt: skip
# Lossless formats of which Pillow gives the numbers as stored; it rescales those of PGM.
LABEL_FORMATS = ("PNG", "TIFF", "BMP", "GIF")

MAX_PIXELS = 8192 * 8192
"""Pixels of an image by default: 100 masks of that size in float32 take 27 GB."""
MAX_LABEL_PIXELS = 4 * MAX_PIXELS
"""Pixels of a map: it takes a few bytes per pixel, and has the size of its image."""

_ORIENTATION = 0x0112  # EXIF's tag
# What Pillow's decoders raise on damaged files; it has no common base class for them.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_LONGEST_PATH = 4096
_MOST_BYTES = 1 << 30  # of what cannot be rewound, and so must be kept
# Floating point numbers this close to 0 and 1 are rounding: half a step of float16 at 1.
_ROUNDING = 1e-3


@cache
def image_suffixes() -> frozenset[str]:
    """Extensions of the formats that are read, in lower case and with their dot."""
    Image.init()
    return frozenset(
        suffix for suffix, name in Image.registered_extensions().items() if name in IMAGE_FORMATS
    )


def check_max_pixels(value: Any) -> int | None:
    """A limit as it is, if it is one.

    Raises:
        ValueError: neither a positive whole number nor None.
    """
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1
    ):
        raise ValueError(f"max_pixels must be a positive whole number or None, not {value!r}")
    return value


def is_encoded(source: Any) -> bool:
    """Whether it is an image's file in memory: bytes, or something to read them from."""
    return isinstance(source, (bytes, bytearray, memoryview)) or hasattr(source, "read")


@contextmanager
def open_image(
    source: str | os.PathLike | bytes | bytearray | memoryview | IO[bytes],
    *,
    formats: Sequence[str] = IMAGE_FORMATS,
    max_pixels: int | None = MAX_PIXELS,
    error: type[OdiseError] = ImageError,
    what: str = "image",
    name: str | None = None,
) -> Iterator[Image.Image]:
    """Open a file that holds pixels; what its decoder raises in the block becomes one error.

    Nothing is decoded before the block asks for it. Pillow's own limit
    (``PIL.Image.MAX_IMAGE_PIXELS``) is not used, but for what its readers of TIFF, WebP and GIF
    check themselves.

    Args:
        source: a path (``~`` is expanded), a file's bytes, or a binary file object, which is read
            from its start where it can be rewound, and stays open.
        formats: Pillow's names of the formats that may be opened, in the order they are tried.
        max_pixels: more are refused; None: any number is taken.
        error: what is raised.
        what: for messages: "image", "label map".
        name: for messages; by default the path.

    Raises:
        OdiseError: ``error``, for a file that is missing, no regular file, empty, in none of the
            formats, damaged, with too many pixels, or too large for the memory.
    """
    name = _name_of(source, name)
    with _decoding(name, what, error), _binary_file(source, error, what, name) as file:
        with _identify(file, formats, error, what, name) as image:
            _count_pixels(image.size, max_pixels, error, name)
            yield image


def _name_of(source: Any, name: str | None) -> str:
    if name is None and isinstance(source, (str, bytes, os.PathLike)):
        name = "bytes" if isinstance(source, bytes) else os.fsdecode(source)
    return printable(name if name is not None else type(source).__name__)


@contextmanager
def _decoding(name: str, what: str, error: type[OdiseError]) -> Iterator[None]:
    """Turn what Pillow raises into one error with one message."""
    try:
        yield
    except OdiseError:
        raise
    except MemoryError as err:
        raise error(f"{name}: not enough memory to decode it; shrink it first") from err
    except Image.DecompressionBombError as err:
        raise error(
            f"{name}: too many pixels for Pillow's own limit ({printable(err)}); shrink it, or "
            "raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from err
    except _DECODER_ERRORS as err:
        raise error(
            f"{name}: not a readable {what}, or damaged ({printable(err)}); save it again as PNG"
        ) from err


def _binary_file(
    source: Any, error: type[OdiseError], what: str, name: str
) -> AbstractContextManager[IO[bytes]]:
    """The file to read from; closed at the end of the block if it was opened here."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        file = io.BytesIO(bytes(source))
    elif hasattr(source, "read"):
        file = _rewound(source, error, name)
    else:
        text = os.fsdecode(source)
        if not text.strip():
            raise error(f"{text!r}: the path is empty")
        if len(text) > _LONGEST_PATH:
            raise error(
                f"{printable(text, limit=60)}: no path of a file: {len(text):,} characters; of "
                "base64 text, give base64.b64decode(text)"
            )
        try:
            path = regular_file(text, error, "file" if what == "image" else what)
            return _not_empty(open(path, "rb"), error, name)
        except PermissionError as err:
            raise error(f"{name}: no permission to read it") from err
    return nullcontext(_not_empty(file, error, name))


def _not_empty(file: IO[bytes], error: type[OdiseError], name: str) -> IO[bytes]:
    if not file.read(1):
        file.close()
        raise error(f"{name}: the file is empty (0 bytes)")
    file.seek(0)
    return file


def _rewound(file: Any, error: type[OdiseError], name: str) -> IO[bytes]:
    """A file object at its start, or, of what cannot be rewound, all that is left in it."""
    try:
        content = file.read(0)
    except Exception as err:  # somebody else's code: it may raise anything
        raise error(f"{name}: cannot be read ({printable(err)}); give the bytes") from err
    if isinstance(content, str):
        raise error(f"{name}: is open as text; open it with mode 'rb'")
    if not isinstance(content, (bytes, bytearray, memoryview)):
        if hasattr(content, "close"):  # a coroutine complains where nobody awaits or closes it
            content.close()
        raise error(f"{name}: its read() gives a {type(content).__name__}; give the bytes")
    try:
        file.seek(0)
    except (AttributeError, OSError):  # io.UnsupportedOperation is an OSError
        return _all_that_is_left(file, error, name)
    return file


def _all_that_is_left(file: Any, error: type[OdiseError], name: str) -> IO[bytes]:
    content = io.BytesIO()
    try:
        while part := file.read(1 << 20):
            content.write(part)
            if content.tell() > _MOST_BYTES:
                raise error(f"{name}: gives more than {_MOST_BYTES >> 20:,} MiB; is it endless?")
    except OSError as err:
        raise error(f"{name}: cannot be read ({printable(err)})") from err
    content.seek(0)
    return content


def _identify(
    file: IO[bytes], formats: Sequence[str], error: type[OdiseError], what: str, name: str
) -> Image.Image:
    """As ``Image.open(file, formats=formats)``, which would also apply Pillow's limit on pixels."""
    Image.init()
    head = file.read(16)
    missing = []
    for key in formats:
        if key not in Image.OPEN:  # e.g. MPO, which JPEG's reader reads
            continue
        reader, accepts = Image.OPEN[key]
        try:
            answer = accepts(head) if accepts else True
            if isinstance(answer, str):
                missing.append(answer)
            elif answer:
                file.seek(0)
                return reader(file, "")
        except (SyntaxError, LookupError, TypeError, struct.error):
            continue  # of another format, or its header is damaged
    known = ", ".join(key for key in formats if key in Image.OPEN)
    reason = "; ".join(missing) or f"damaged or in none of the formats {known}"
    raise error(f"{name}: not a readable {what}, {reason}")


def _count_pixels(
    size: tuple[int, int], max_pixels: int | None, error: type[OdiseError], name: str
) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise error(f"{name}: has no pixels ({width} x {height})")
    if max_pixels is not None and width * height > max_pixels:
        raise error(
            f"{name}: too many pixels, {width} x {height} = {width * height:,} where max_pixels "
            f"is {max_pixels:,}; shrink it, or raise max_pixels"
        )


def read_image(
    source: ImageSource,
    *,
    channel_order: str = "bgr",
    name: str | None = None,
    max_pixels: int | None = MAX_PIXELS,
    exif: bool = True,
) -> np.ndarray:
    """Read an image as 8 bit BGR.

    - Gray is repeated over the channels; palettes, CMYK and the other color models become RGB.
    - Transparency is composited on white, as a page or a viewer shows it.
    - 16 bit values are scaled (65535 becomes 255), not clipped.
    - The EXIF orientation is applied, unless ``exif`` is False.
    - Of an animation, the first frame is read.

    Args:
        source: a file's path or its bytes, a binary file object, a PIL image, or an array (H, W),
            (H, W, 1 | 2 | 3 | 4), channels last; 2 and 4 channels: the last one is alpha.
            Accepted: uint8, uint16 (scaled), bool, and floating point in [0, 1].
        channel_order: ``"bgr"`` or ``"rgb"``, the order of an *array's* channels. The result is
            always BGR.
        name: what error messages call the image; by default its path or its type.
        max_pixels: images of more pixels are refused, files before they are decoded; None: none
            is refused.
        exif: False: pixels are taken as they are stored, whatever the EXIF orientation says.

    Returns:
        uint8 array (H, W, 3), BGR, C-contiguous, not sharing memory with ``source``.

    Raises:
        ImageError: missing, a folder, unreadable or truncated, in a format that is not read,
            without pixels or with too many, or an array of a shape, type or value range that is
            not an image's.
    """
    if channel_order not in ("bgr", "rgb"):
        raise ValueError(f'channel_order must be "bgr" or "rgb", not {channel_order!r}')
    check_max_pixels(max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, channel_order, printable(name or "array"), max_pixels)
    if isinstance(source, Image.Image):
        name = printable(name or getattr(source, "filename", "") or "PIL image")
        with _decoding(name, "image", ImageError):
            _check_lazy(source, name)
            _count_pixels(source.size, max_pixels, ImageError, name)
            return _from_pil(source, name, exif)
    if isinstance(source, (str, os.PathLike)) or is_encoded(source):
        with open_image(source, max_pixels=max_pixels, name=name) as image:
            return _from_pil(image, _name_of(source, name), exif)
    raise ImageError(
        f"{printable(name or 'image')}: cannot read an image from a {type(source).__name__}; "
        + advice_on(source)
    )


def exif_orientation(path: str | os.PathLike) -> int:
    """How an image is to be turned, 1 to 8 as EXIF counts; 1 where nothing is to be done.

    Read from the file's header; 1 for a file that cannot be read.
    """
    try:
        with open_image(path, max_pixels=None) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
    except ImageError:
        return 1
    return orientation if orientation in range(2, 9) else 1


def turned_hint(
    annotated: tuple[int, ...], picture: tuple[int, ...], path: str | os.PathLike | None = None
) -> str:
    """What to add to a message on sizes that differ, where the EXIF orientation may be the cause.

    Args:
        annotated: height and width of the annotation.
        image: of the image as it was read, or of its result.
        path: the image's file, where it is known.

    Returns:
        Nothing unless height and width are swapped, and the file, if it is known, is to be turned.
    """
    if tuple(annotated) != tuple(picture)[::-1] or tuple(annotated) == tuple(picture):
        return ""
    cause = "the image's EXIF orientation is the probable cause"
    if path is not None and os.path.isfile(path):
        orientation = exif_orientation(path)
        if orientation == 1:
            return ""
        cause = f"the image's EXIF orientation ({orientation}) is the probable cause"
    return (
        f". Height and width are swapped, and {cause}: set the dataset's `exif` to True if its "
        "annotations were made on images that are turned upright (the default), to False if on "
        "their pixels as stored"
    )


def advice_on(value: Any) -> str:
    """What to give instead of something that is no image."""
    if hasattr(value, "permute"):
        return (
            "give a numpy array (H, W, 3), e.g. tensor.permute(1, 2, 0).cpu().numpy() with "
            "channel_order='rgb', or a list of these"
        )
    if isinstance(value, (list, tuple)):
        return (
            "pixels in lists are given as numpy.array(pixels, dtype=numpy.uint8), several images "
            "as one list without lists in it"
        )
    if hasattr(value, "read_bytes"):
        return "give its read_bytes()"
    return "give a path, a file's bytes, a PIL image or a numpy array (H, W, 3)"


def _check_lazy(image: Image.Image, name: str) -> None:
    """Refuse what was opened elsewhere, is still to be decoded, and is in no format named here."""
    if getattr(image, "tile", None) and image.format not in IMAGE_FORMATS:
        raise ImageError(
            f"{name}: {image.format} is not decoded here; call its load() first, or save it as PNG"
        )


def _from_pil(image: Image.Image, name: str, exif: bool) -> np.ndarray:
    clear = _transparent_color(image)
    image.load()
    image = ImageOps.exif_transpose(image) if exif else image.copy()
    if image.mode == "F" or image.mode.startswith("I"):
        values = _deep_values(image, name)
        if clear is not None:
            values[values == clear] = 65535
        return _from_array(values, "rgb", name, None)
    if clear is not None:
        image.info["transparency"] = clear
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or clear is not None:
        if image.mode in ("La", "RGBa"):  # premultiplied: has a conversion to its sibling only
            image = image.convert(image.mode.upper())
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    rgb = np.asarray(image.convert("RGB"))
    return np.ascontiguousarray(rgb[..., ::-1])


def _transparent_color(image: Image.Image) -> Any:
    """The color that stands for transparent, in the units of the decoded pixels, or None.

    Pillow scales the pixels of these PNG files to 8 bits and leaves the color as it is stored.
    """
    clear = image.info.get("transparency")
    tiles = getattr(image, "tile", None)  # what is still to be decoded
    stored = tiles[0][3] if tiles and clear is not None else None
    if stored == "L;2":
        return clear * 85
    if stored == "L;4":
        return clear * 17
    if stored == "RGB;16B":
        return tuple(value >> 8 for value in clear)
    return clear


def _deep_values(image: Image.Image, name: str) -> np.ndarray:
    """Pixels of a gray image with more than 8 bits: uint16, or float for mode F."""
    values = np.array(image)
    if image.mode == "F":
        return values
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"{name}: 32 bit values from {values.min()} to {values.max()}; "
            "convert it to 8 or 16 bit"
        )
    return values.astype(np.uint16)


def _from_array(
    array: np.ndarray, channel_order: str, name: str, max_pixels: int | None
) -> np.ndarray:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; channels come last: array.transpose(1, 2, 0)"
        elif array.ndim == 4:
            hint = "; several images are given as a list of arrays"
        elif array.ndim == 1 and array.dtype == np.uint8:
            hint = "; the bytes of a file are given as array.tobytes()"
        raise ImageError(
            f"{name}: shape {array.shape} is not an image's, (H, W) or (H, W, channels)" + hint
        )
    _count_pixels(array.shape[1::-1], max_pixels, ImageError, name)
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
        if low < -_ROUNDING or high > 1 + _ROUNDING:
            raise ImageError(
                f"{name}: floating point values from {low:.9g} to {high:.9g}; scale them to "
                "[0, 1], or convert to uint8"
            )
        return np.rint(np.clip(array.astype(np.float32), 0, 1) * 255).astype(np.uint8)
    raise ImageError(
        f"{name}: {array.dtype} values are not an image's; convert to uint8 (0 to 255), "
        "uint16 (0 to 65535) or floating point (0 to 1)"
    )
