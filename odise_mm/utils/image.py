"""Reading of images from files, bytes, PIL images and arrays as uint8 BGR.

Files are decoded by Pillow, as in the published pipeline: decoders differ by a gray level or two,
which is enough to move the border of a mask. All image files are opened by :func:`open_image`,
which only accepts the formats listed here, whatever the extension is, and checks the number of
pixels before it decodes them.
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

# Pillow's names. Not included: formats that start a program (EPS), contain drawing commands or
# other files, or are not used for images. TGA comes last, as its files have no signature.
IMAGE_FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "AVIF", "JPEG2000", "TIFF", "GIF", "BMP", "DIB", "PPM", "PSD",
    "QOI", "SGI", "PCX", "TGA",
)  # fmt: skip
# Lossless formats for which Pillow returns the stored values; it rescales those of PGM.
LABEL_FORMATS = ("PNG", "TIFF", "BMP", "GIF")

MAX_PIXELS = 8192 * 8192
"""Default maximum number of pixels of an image: 100 float32 masks of that size take 27 GB."""
MAX_LABEL_PIXELS = 4 * MAX_PIXELS
"""Maximum number of pixels of a label or panoptic map, which takes only a few bytes per pixel."""

_ORIENTATION = 0x0112  # EXIF tag
# Exceptions of Pillow's decoders for damaged files; they have no common base class.
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
_MOST_BYTES = 1 << 30  # limit for streams that cannot be rewound and must be kept in memory
# Tolerance for floating point values outside [0, 1]: about the rounding error of float16 at 1.
_ROUNDING = 1e-3


@cache
def image_suffixes() -> frozenset[str]:
    """Return the file extensions of the supported formats, in lower case and with the dot."""
    Image.init()
    return frozenset(
        suffix for suffix, name in Image.registered_extensions().items() if name in IMAGE_FORMATS
    )


def check_max_pixels(value: Any) -> int | None:
    """Check a limit on the number of pixels and return it.

    Raises:
        ValueError: If it is neither a positive whole number nor None.
    """
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1
    ):
        raise ValueError(f"max_pixels must be a positive whole number or None, not {value!r}")
    return value


def is_encoded(source: Any) -> bool:
    """Return whether the source is an encoded image: bytes, or a file object."""
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
    """Open an image file; all decoder errors in the block become one error.

    Nothing is decoded until the block does so. Pillow's own limit (``PIL.Image.MAX_IMAGE_PIXELS``)
    is not used, except by its readers of TIFF, WebP and GIF, which always check it.

    Args:
        source: A path (``~`` is expanded), the bytes of a file, or a binary file object. A file
            object is read from its start if it can be rewound, and is not closed.
        formats: Pillow's names of the accepted formats, in the order in which they are tried.
        max_pixels: Maximum number of pixels, or None for no limit.
        error: Class of the raised error.
        what: Description for messages, e.g. "image" or "label map".
        name: Name for messages; by default the path.

    Raises:
        OdiseError: Of class ``error``, if the file is missing, not a regular file, empty, in none
            of the formats or damaged, has too many pixels, or does not fit into memory.
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
    """Turn Pillow's exceptions into one error."""
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
    """Return a file to read from, which is closed at the end of the block if it was opened here."""
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
                f"{printable(text, limit=60)}: not a file path, as it has {len(text):,} "
                "characters; for base64 text, pass base64.b64decode(text)"
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
    """Rewind a file object; if that is not possible, read the rest of it into memory."""
    try:
        content = file.read(0)
    except Exception as err:  # foreign code may raise anything
        raise error(f"{name}: cannot be read ({printable(err)}); pass the bytes") from err
    if isinstance(content, str):
        raise error(f"{name}: is open as text; open it with mode 'rb'")
    if not isinstance(content, (bytes, bytearray, memoryview)):
        if hasattr(content, "close"):  # a coroutine must be closed, or Python warns
            content.close()
        raise error(f"{name}: its read() returns a {type(content).__name__}; pass the bytes")
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
                raise error(f"{name}: has more than {_MOST_BYTES >> 20:,} MiB; is it endless?")
    except OSError as err:
        raise error(f"{name}: cannot be read ({printable(err)})") from err
    content.seek(0)
    return content


def _identify(
    file: IO[bytes], formats: Sequence[str], error: type[OdiseError], what: str, name: str
) -> Image.Image:
    """Open like ``Image.open(file, formats=formats)``, but without Pillow's limit on pixels."""
    Image.init()
    head = file.read(16)
    missing = []
    for key in formats:
        if key not in Image.OPEN:  # e.g. MPO, which is read by the JPEG reader
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
            continue  # another format, or a damaged header
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
            f"{name}: too many pixels, {width} x {height} = {width * height:,}, but max_pixels "
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
    """Read an image as 8-bit BGR.

    - Gray is repeated over the channels; palettes, CMYK and other color models become RGB.
    - Transparency is composited on white, as web pages and viewers show it.
    - 16-bit values are scaled (65535 becomes 255), not clipped.
    - The EXIF orientation is applied, unless ``exif`` is False.
    - The first frame of an animation is read.

    Args:
        source: A path, the bytes of a file, a binary file object, a PIL image, or an array (H, W)
            or (H, W, 1 | 2 | 3 | 4). The last of 2 or 4 channels is alpha. Arrays can be uint8,
            uint16 (scaled), bool, or floating point in [0, 1].
        channel_order: ``"bgr"`` or ``"rgb"``, the channel order of an *array*. The result is always
            BGR.
        name: Name of the image in messages; by default its path or its type.
        max_pixels: Maximum number of pixels, or None for no limit. Files are checked before they
            are decoded.
        exif: Whether to apply the EXIF orientation. If False, pixels are read as stored.

    Returns:
        uint8 array (H, W, 3), BGR, C-contiguous, which does not share memory with ``source``.

    Raises:
        ImageError: If the file is missing, a folder, unreadable, truncated or in an unsupported
            format, the image has no pixels or too many, or an array has an unsupported shape, type
            or value range.
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
    """Return the EXIF orientation of an image file, 1 to 8, where 1 is upright.

    It is read from the header of the file. The result is 1 if the file cannot be read.
    """
    try:
        with open_image(path, max_pixels=None) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
    except ImageError:
        return 1
    return orientation if orientation in range(2, 9) else 1


def turned_hint(
    annotated: tuple[int, ...], image: tuple[int, ...], path: str | os.PathLike | None = None
) -> str:
    """Return a hint for messages about different sizes that the EXIF orientation may have caused.

    Args:
        annotated: Height and width of the annotation.
        image: Height and width of the image as it was read, or of its result.
        path: Path of the image file, if known.

    Returns:
        A suffix for the message. It is empty unless height and width are swapped and the file, if
        known, has an EXIF orientation.
    """
    if tuple(annotated) != tuple(image)[::-1] or tuple(annotated) == tuple(image):
        return ""
    cause = "the image's EXIF orientation is the probable cause"
    if path is not None and os.path.isfile(path):
        orientation = exif_orientation(path)
        if orientation == 1:
            return ""
        cause = f"the image's EXIF orientation ({orientation}) is the probable cause"
    return (
        f". Height and width are swapped, and {cause}: set the dataset's `exif` to True (the "
        "default) if its annotations were made on upright images, or to False if they were made "
        "on the pixels as stored"
    )


def advice_on(value: Any) -> str:
    """Return advice on what to pass instead of a value that is not an image."""
    if hasattr(value, "permute"):
        return (
            "pass a numpy array (H, W, 3), e.g. tensor.permute(1, 2, 0).cpu().numpy() with "
            "channel_order='rgb', or a list of these"
        )
    if isinstance(value, (list, tuple)):
        return (
            "pass lists of pixels as numpy.array(pixels, dtype=numpy.uint8), and several images "
            "as one flat list"
        )
    if hasattr(value, "read_bytes"):
        return "pass its read_bytes()"
    return "pass a path, a file's bytes, a PIL image or a numpy array (H, W, 3)"


def _check_lazy(image: Image.Image, name: str) -> None:
    """Reject images that were opened elsewhere, are not decoded yet and have another format."""
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
        if image.mode in ("La", "RGBa"):  # premultiplied: can only be converted to LA and RGBA
            image = image.convert(image.mode.upper())
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    pixels = bytearray(image.convert("RGB").tobytes("raw", "BGR"))
    return np.frombuffer(pixels, np.uint8).reshape(image.height, image.width, 3)


def _transparent_color(image: Image.Image) -> Any:
    """Return the color that means transparent, in the units of the decoded pixels, or None.

    Pillow scales the pixels of some PNG files to 8 bits, but not this color.
    """
    clear = image.info.get("transparency")
    tiles = getattr(image, "tile", None)  # not decoded yet
    stored = tiles[0][3] if tiles and clear is not None else None
    if stored == "L;2":
        return clear * 85
    if stored == "L;4":
        return clear * 17
    if stored == "RGB;16B":
        return tuple(value >> 8 for value in clear)
    return clear


def _deep_values(image: Image.Image, name: str) -> np.ndarray:
    """Return the pixels of a gray image with more than 8 bits as uint16, or float for mode F."""
    values = np.array(image)
    if image.mode == "F":
        return values
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"{name}: 32-bit values from {values.min()} to {values.max()}; "
            "convert it to 8 or 16 bits"
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
            hint = "; pass several images as a list of arrays"
        elif array.ndim == 1 and array.dtype == np.uint8:
            hint = "; pass the bytes of a file as array.tobytes()"
        raise ImageError(
            f"{name}: unsupported shape {array.shape}, expected (H, W) or (H, W, channels)" + hint
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
        f"{name}: {array.dtype} values are not supported; convert to uint8 (0 to 255), "
        "uint16 (0 to 65535) or floating point (0 to 1)"
    )
