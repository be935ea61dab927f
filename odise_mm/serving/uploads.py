"""Images and class names from strangers, and error messages for them.

Nothing here reads a file that a client names, and no message contains a path of the server.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

import numpy as np

from odise_mm.errors import (
    ConfigError,
    DeviceMemoryError,
    ImageError,
    VocabularyError,
)
from odise_mm.utils.display import printable
from odise_mm.utils.image import open_image, read_image
from odise_mm.vocabulary import Vocabulary
from odise_mm.vocabulary.loading import BUILTIN, builtin_key

UPLOAD_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP")
"""Accepted formats: fewer than those of files, because every decoder can have a weakness."""
MAX_TEXT = 20_000
"""Maximum number of characters of class names in a request, synonyms included."""
MAX_NAME = 200
"""Maximum number of characters of a class name."""
INTERNAL_ERROR = "internal error; the log of the server tells more"

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)


class TooLargeError(ImageError):
    """An image with too many bytes or pixels."""


@dataclass(frozen=True)
class Limits:
    """Limits of an uploaded image."""

    max_bytes: int = 32 << 20
    """Bytes of the file."""
    max_pixels: int = 4096 * 4096
    """Pixels. 100 masks in float32 take 400 bytes per pixel."""


@dataclass(frozen=True)
class Names:
    """Class names of a request."""

    vocabulary: Vocabulary | None
    """None if the request has no names."""
    warnings: tuple[str, ...] = ()
    """Why the names may have been meant otherwise."""


def read_upload(content: bytes, limits: Limits, name: str = "image") -> np.ndarray:
    """Decode an uploaded image, as :func:`odise_mm.utils.image.read_image` does.

    Args:
        content: Bytes of the file. Its format is recognized from them, never from a name.
        limits: Limits, which are checked before anything is decoded.
        name: Name of the image in messages.

    Returns:
        uint8 array (H, W, 3), BGR.

    Raises:
        TooLargeError: If the image has too many bytes or pixels.
        ImageError: If it is empty, in none of :data:`UPLOAD_FORMATS`, damaged or truncated.
    """
    name = printable(name, limit=100)
    check_bytes(len(content), limits, name)
    with open_image(content, formats=UPLOAD_FORMATS, max_pixels=None, name=name) as image:
        width, height = image.size
        if width * height > limits.max_pixels:
            raise TooLargeError(
                f"{name}: {width} x {height} = {width * height:,} pixels, but the limit is "
                f"{limits.max_pixels:,}; shrink it first"
            )
        return read_image(image, name=name, max_pixels=None)


def check_bytes(count: int, limits: Limits, name: str = "image") -> None:
    """Check the size of an uploaded file.

    Raises:
        TooLargeError: If it is too large.
    """
    if count > limits.max_bytes:
        raise TooLargeError(
            f"{name}: {count:,} bytes, but the limit is {limits.max_bytes:,}; shrink it first, or "
            "compress it"
        )


def decode_base64(text: str, limits: Limits, name: str = "image") -> bytes:
    """Decode a file in base64, with or without the head of a data URL.

    Raises:
        TooLargeError: If it has too many bytes.
        ImageError: If it is not base64.
    """
    head = _DATA_URL.match(text)
    encoded = text[head.end() :] if head else text
    check_bytes(3 * len(encoded) // 4 - 2, limits, name)
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as err:
        raise ImageError(
            f"{name}: not base64 ({printable(err)}); send the bytes of an image file in base64, "
            "without line breaks, or as a data URL (data:image/png;base64,...)"
        ) from err


def parse_names(
    texts: str | None = None, stuff_texts: str | None = None, vocabulary: str | None = None
) -> Names:
    """Parse the class names of a request, as :meth:`Vocabulary.parse` does, but read no files.

    Empty text means no names.

    Args:
        texts: Names of things, or built-in vocabularies.
        stuff_texts: Names of stuff.
        vocabulary: Built-in vocabularies, separated by commas.

    Raises:
        VocabularyError: If the names are invalid or too long, or a vocabulary is not built in.
    """
    arguments = {"texts": texts, "stuff_texts": stuff_texts, "vocabulary": vocabulary}
    given = {key: text for key, text in arguments.items() if text and text.strip()}
    length = sum(map(len, given.values()))
    if length > MAX_TEXT:
        raise VocabularyError(
            f"the class names have {length:,} characters, but the limit is {MAX_TEXT:,}; send "
            "fewer names"
        )
    for key, text in given.items():
        if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
            raise VocabularyError(f"{key}: has half a surrogate pair, which is not a character")
    parts = []
    warnings: list[str] = []
    if "texts" in given or "stuff_texts" in given:
        names = (given.get("texts"), given.get("stuff_texts"))
        parts.append(Vocabulary.parse(*names, files=False, on_doubt=warnings.append))
    for key in re.split("[,;]", given.get("vocabulary", "")):
        if not key.strip():
            continue
        if builtin_key(key) is None:
            raise VocabularyError(
                f"unknown vocabulary '{printable(key.strip(), limit=60)}'; built-in vocabularies: "
                + ", ".join(BUILTIN)
            )
        parts.append(Vocabulary.load(key))
    if not parts:
        return Names(None)
    joined = Vocabulary.join(parts)
    longest = max((name for group in joined.synonyms for name in group), key=len)
    if len(longest) > MAX_NAME:
        raise VocabularyError(
            f"the class name '{printable(longest, limit=60)}' has {len(longest):,} characters, "
            f"but the limit is {MAX_NAME}; ';' separates classes and ',' separates synonyms"
        )
    return Names(joined, tuple(warnings))


def public_message(error: BaseException) -> str:
    """Return the message of an error for a client: without paths and internals of the server.

    Messages of errors that a request caused are returned as they are. All others become
    :data:`INTERNAL_ERROR`; write them to the log.
    """
    caused = (ImageError, VocabularyError, ConfigError, DeviceMemoryError, FloatingPointError)
    return printable(error) if isinstance(error, caused) else INTERNAL_ERROR
