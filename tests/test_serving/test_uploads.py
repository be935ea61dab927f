"""Images and names from strangers."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odise_mm.errors import CheckpointError, ImageError, VocabularyError
from odise_mm.serving.uploads import (
    INTERNAL_ERROR,
    MAX_NAME,
    MAX_TEXT,
    Limits,
    TooLargeError,
    decode_base64,
    parse_names,
    public_message,
    read_upload,
)
from odise_mm.utils.image import read_image
from tests.support.load_api import bomb

LIMITS = Limits(max_bytes=100_000, max_pixels=2_000)


def encoded(mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(file, **{"format": "PNG", **options})
    return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(format="JPEG", exif=exif)


@pytest.mark.parametrize(
    "content",
    [
        encoded(),
        encoded("RGBA"),
        encoded("L"),
        encoded("P"),
        encoded("CMYK", format="TIFF"),
        turned(),
    ],
    ids=["RGB", "RGBA", "L", "P", "CMYK", "EXIF"],
)
def test_an_upload_is_read_like_a_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(content)
    expected = read_image(tmp_path / "image")
    assert np.array_equal(read_upload(content, LIMITS), expected)
    text = base64.b64encode(content).decode()
    assert decode_base64(text, LIMITS) == content
    assert decode_base64(f"data:image/png;base64,{text}", LIMITS) == content


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", ImageError, "empty"),
        (b"<svg/>", ImageError, "none of the formats JPEG, PNG"),
        (encoded()[:900], ImageError, "damaged"),
        (encoded(format="PPM"), ImageError, "none of the formats"),
        (bytes(100_001), TooLargeError, "100,001 bytes, but the limit is 100,000"),
        (encoded(size=(50, 41)), TooLargeError, "50 x 41 = 2,050 pixels, but the limit is 2,000"),
        (bomb(), TooLargeError, "900,000,000 pixels"),
    ],
    ids=["empty", "text", "truncated", "format", "bytes", "pixels", "bomb"],
)
def test_bad_uploads(content: bytes, error: type[ImageError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        read_upload(content, LIMITS, "a\x1b[1m.png")
    assert public_message(caught.value).startswith("a\\x1b[1m.png: ")


def test_bad_base64() -> None:
    with pytest.raises(ImageError, match="not base64"):
        decode_base64("hello world", LIMITS)
    with pytest.raises(TooLargeError, match="the limit is 100,000"):
        decode_base64("A" * 200_000, LIMITS)


def test_names() -> None:
    names = parse_names("cat, kitty; dog", "sky", "voc20")
    assert names.vocabulary is not None
    assert names.vocabulary.synonyms[0][:2] == ("cat", "kitty")
    assert not names.vocabulary.is_thing[2] and len(names.vocabulary) == 21
    assert parse_names("", None, " ").vocabulary is None
    for _ in range(2):  # every request is warned, not only the first
        assert "read as 1 class" in parse_names("cat. dog.").warnings[0]


@pytest.mark.parametrize("argument", ["texts", "stuff_texts", "vocabulary"])
@pytest.mark.parametrize("form", ["{}", "cat; {}", "coco, {}"])
def test_files_are_not_read(argument: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("secret\n")
    for text in (str(path), "openseg:coco_panoptic", f"~/../{path}"):
        with pytest.raises(VocabularyError) as caught:
            parse_names(**{argument: form.format(text)})
        assert "secret" not in str(caught.value)


def test_names_must_be_text_and_may_be_too_long() -> None:
    assert parse_names("猫; 🐕").vocabulary is not None
    with pytest.raises(VocabularyError, match="stuff_texts: has half a surrogate pair"):
        parse_names("cat", "sky\ud800")
    with pytest.raises(VocabularyError, match=f"limit is {MAX_TEXT:,}"):
        parse_names(";".join(f"name {i}" for i in range(3000)))
    with pytest.raises(VocabularyError, match=f"limit is {MAX_NAME}"):
        parse_names("a" * (MAX_NAME + 1))


def test_messages_for_clients() -> None:
    assert public_message(VocabularyError("no names")) == "no names"
    for error in (CheckpointError("/srv/model.pth: damaged"), OSError(2, "No", "/etc/x")):
        assert public_message(error) == INTERNAL_ERROR
