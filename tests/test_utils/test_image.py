"""Reading pictures of every kind, and saying what is wrong with the others."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odise_mm.utils.image import ImageError, read_image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def save(path: Path, image: Image.Image, **kwargs) -> Path:
    image.save(path, **kwargs)
    return path


def test_colours_become_bgr(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    for source in (path, str(path), Image.fromarray(RGB)):
        image = read_image(source)
        assert image.dtype == np.uint8 and image.flags.c_contiguous
        assert np.array_equal(image, RGB[..., ::-1])


def test_jpeg_is_decoded_by_pillow(tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(RGB), quality=80)
    with Image.open(path) as image:
        assert np.array_equal(read_image(path), np.asarray(image.convert("RGB"))[..., ::-1])


def test_the_published_pictures_of_the_tests():
    path = Path(__file__).parents[1] / "data" / "image_512x704.png"
    with Image.open(path) as image:
        assert np.array_equal(read_image(path)[..., ::-1], np.asarray(image.convert("RGB")))


def test_grey_is_repeated(tmp_path):
    path = save(tmp_path / "grey.png", Image.fromarray(GREY))
    assert np.array_equal(read_image(path), np.repeat(GREY[..., None], 3, axis=2))
    bits = save(tmp_path / "bits.png", Image.fromarray(GREY > 128))
    assert np.array_equal(read_image(bits)[..., 0], np.where(GREY > 128, 255, 0))


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = alpha[..., None] / 255
    return colour * weight + 255 * (1 - weight)


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_transparency_is_composited_on_white(tmp_path, kind):
    alpha = RNG.integers(0, 256, RGB.shape[:2], dtype=np.uint8)
    rgba = Image.fromarray(np.dstack([RGB, alpha]))
    options = dict(lossless=True, exact=True) if kind == "webp" else {}
    image = read_image(save(tmp_path / f"a.{kind}", rgba, **options))
    assert np.abs(image[..., ::-1] - on_white(RGB.astype(float), alpha)).max() <= 1
    array = read_image(np.dstack([RGB, alpha]), channel_order="rgb")
    assert np.abs(array.astype(int) - image).max() <= 1


def test_grey_with_alpha(tmp_path):
    alpha = RNG.integers(0, 256, GREY.shape, dtype=np.uint8)
    path = save(tmp_path / "la.png", Image.fromarray(np.dstack([GREY, alpha])))
    with Image.open(path) as image:
        assert image.mode == "LA"
    expected = on_white(np.repeat(GREY[..., None], 3, 2).astype(float), alpha)
    assert np.abs(read_image(path) - expected).max() <= 1
    assert np.abs(read_image(np.dstack([GREY, alpha])) - expected).max() <= 1


def test_palette_with_and_without_transparency(tmp_path):
    indices = np.array([[0, 1], [2, 1]], dtype=np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    opaque = read_image(save(tmp_path / "p.png", image))
    assert opaque[..., ::-1].tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 255, 0]]]
    clear = read_image(save(tmp_path / "t.png", image, transparency=1))
    assert clear[0, 1].tolist() == [255, 255, 255] and clear[0, 0].tolist() == [0, 0, 255]
    assert np.array_equal(read_image(save(tmp_path / "a.gif", image)), opaque)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bit_is_scaled_not_clipped(tmp_path, kind):
    deep = np.array([[0, 257, 300, 32768], [65535, 65278, 128, 129]], dtype=np.uint16)
    path = save(tmp_path / f"deep.{kind}", Image.fromarray(deep))
    expected = np.rint(deep / 257).astype(np.uint8)
    assert np.array_equal(read_image(path)[..., 0], expected)
    assert np.array_equal(read_image(deep)[..., 2], expected)


def test_16_bit_colour_png(tmp_path):
    import cv2

    deep = RNG.integers(0, 65536, (4, 6, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    # Pillow keeps the high byte of deep colours: off by less than one step.
    assert np.abs(read_image(tmp_path / "deep.png") - deep / 257).max() <= 1


def test_32_bit_files(tmp_path):
    ints = np.array([[0, 65535]], dtype=np.int32)
    path = save(tmp_path / "i.tiff", Image.fromarray(ints))
    assert read_image(path)[..., 0].tolist() == [[0, 255]]
    wide = save(tmp_path / "wide.tiff", Image.fromarray(ints * 2))
    with pytest.raises(ImageError, match=r"wide\.tiff: 32 bit values from 0 to 131070"):
        read_image(wide)
    floats = save(tmp_path / "f.tiff", Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)))
    assert read_image(floats)[..., 0].tolist() == [[0, 128, 255]]


def test_cmyk(tmp_path):
    flat = Image.new("RGB", (16, 16), (200, 40, 90))
    path = save(tmp_path / "cmyk.jpg", flat.convert("CMYK"), quality=100)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    assert np.abs(read_image(path)[8, 8].astype(int) - [90, 40, 200]).max() <= 3


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "RGBX", "LAB", "La", "RGBa", "PA", "I;16B"])
def test_other_colour_models_are_converted(mode):
    image = Image.new(mode, (3, 2))
    assert read_image(image).shape == (2, 3, 3)


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise to be upright
    path = save(tmp_path / "turned.png", Image.fromarray(RGB), exif=exif)
    assert np.array_equal(read_image(path), np.rot90(RGB, -1)[..., ::-1])


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert read_image(path)[0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("size", [(1, 1), (3, 4000), (4000, 3)])
def test_extreme_sizes(tmp_path, size):
    path = save(tmp_path / "a.png", Image.new("L", size[::-1], 7))
    assert read_image(path).shape == (*size, 3)


def test_arrays():
    bgr = RGB[..., ::-1]
    assert np.array_equal(read_image(RGB), RGB)
    assert np.array_equal(read_image(RGB, channel_order="rgb"), bgr)
    assert np.array_equal(read_image(GREY[..., None]), read_image(GREY))
    assert np.array_equal(read_image(GREY > 9)[..., 0], np.where(GREY > 9, 255, 0))
    assert np.array_equal(read_image((RGB / 255).astype(np.float32)), RGB)
    copy = read_image(RGB)
    assert not np.shares_memory(copy, RGB)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((5,), np.uint8), "shape"),
        (np.zeros((3, 5, 7), np.uint8), "channels come last"),
        (np.zeros((2, 5, 7, 3), np.uint8), "list of arrays"),
        (np.zeros((5, 7, 5), np.uint8), "shape"),
        (np.zeros((5, 7, 3), np.int64), "int64 values"),
        (np.zeros((5, 7), complex), "complex128 values"),
        (np.zeros((5, 7), object), "object values"),
        (np.full((5, 7, 3), 128.0), "from 128 to 128; scale them"),
        (np.full((5, 7, 3), -0.5), "from -0.5"),
        (np.full((5, 7, 3), np.nan), "NaN"),
        (np.full((5, 7, 3), np.inf), "NaN or infinite"),
    ],
)
def test_arrays_that_are_no_pictures(array, match):
    with pytest.raises(ImageError, match=match) as info:
        read_image(array, name="images[2]")
    assert str(info.value).startswith("images[2]: ")


def test_bad_files(tmp_path):
    png = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(png, "PNG")
    jpg = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(jpg, "JPEG")
    files = {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"this is no picture", "not a picture"),
        "half.png": (png.getvalue()[: len(png.getvalue()) // 2], "damaged"),
        "half.jpg": (jpg.getvalue()[: len(jpg.getvalue()) // 2], "damaged"),
        "head.png": (png.getvalue()[:20], "not a"),
    }
    flipped = bytearray(png.getvalue())
    flipped[60:80] = bytes(20)
    files["flipped.png"] = (bytes(flipped), "damaged")
    for name, (content, match) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=match) as info:
            read_image(tmp_path / name)
        assert name in str(info.value) and "\n" not in str(info.value)
    with pytest.raises(ImageError, match=r"missing\.png: no such file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="a float"):
        read_image(3.0)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    path.chmod(0)
    with pytest.raises(ImageError, match="permission"):
        read_image(path)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "big.png", Image.new("L", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="too many pixels"):
        read_image(path)


def test_a_lazily_opened_damaged_image(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    path = tmp_path / "half.png"
    path.write_bytes(buffer.getvalue()[:4000])
    with Image.open(path) as image, pytest.raises(ImageError, match=r"half\.png: .*damaged"):
        read_image(image)


def test_an_unknown_channel_order():
    with pytest.raises(ValueError, match="channel_order"):
        read_image(RGB, channel_order="grb")
