"""Reading of images from all sources and formats, and errors for invalid ones."""

from __future__ import annotations

import gzip
import io
import os
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from odise_mm.errors import DatasetError
from odise_mm.utils.image import (
    IMAGE_FORMATS,
    LABEL_FORMATS,
    ImageError,
    check_max_pixels,
    image_suffixes,
    open_image,
    read_image,
)

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GRAY = RGB[..., 0]


def save(path: Path, image: Image.Image, **kwargs) -> Path:
    image.save(path, **kwargs)
    return path


def test_colors_become_bgr(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    for source in (path, str(path), Image.fromarray(RGB)):
        image = read_image(source)
        assert image.dtype == np.uint8 and image.flags.c_contiguous
        assert np.array_equal(image, RGB[..., ::-1])


def test_jpeg_is_decoded_by_pillow(tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(RGB), quality=80)
    with Image.open(path) as image:
        assert np.array_equal(read_image(path), np.asarray(image.convert("RGB"))[..., ::-1])


def test_images_of_the_published_recordings():
    path = Path(__file__).parents[1] / "data" / "image_512x704.png"
    with Image.open(path) as image:
        assert np.array_equal(read_image(path)[..., ::-1], np.asarray(image.convert("RGB")))


def test_gray_is_repeated(tmp_path):
    path = save(tmp_path / "gray.png", Image.fromarray(GRAY))
    assert np.array_equal(read_image(path), np.repeat(GRAY[..., None], 3, axis=2))
    bits = save(tmp_path / "bits.png", Image.fromarray(GRAY > 128))
    assert np.array_equal(read_image(bits)[..., 0], np.where(GRAY > 128, 255, 0))


def on_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = alpha[..., None] / 255
    return color * weight + 255 * (1 - weight)


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_transparency_is_composited_on_white(tmp_path, kind):
    alpha = RNG.integers(0, 256, RGB.shape[:2], dtype=np.uint8)
    rgba = Image.fromarray(np.dstack([RGB, alpha]))
    options = dict(lossless=True, exact=True) if kind == "webp" else {}
    image = read_image(save(tmp_path / f"a.{kind}", rgba, **options))
    assert np.abs(image[..., ::-1] - on_white(RGB.astype(float), alpha)).max() <= 1
    array = read_image(np.dstack([RGB, alpha]), channel_order="rgb")
    assert np.abs(array.astype(int) - image).max() <= 1


def test_gray_with_alpha(tmp_path):
    alpha = RNG.integers(0, 256, GRAY.shape, dtype=np.uint8)
    path = save(tmp_path / "la.png", Image.fromarray(np.dstack([GRAY, alpha])))
    with Image.open(path) as image:
        assert image.mode == "LA"
    expected = on_white(np.repeat(GRAY[..., None], 3, 2).astype(float), alpha)
    assert np.abs(read_image(path) - expected).max() <= 1
    assert np.abs(read_image(np.dstack([GRAY, alpha])) - expected).max() <= 1


def test_palette_with_and_without_transparency(tmp_path):
    indices = np.array([[0, 1], [2, 1]], dtype=np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    opaque = read_image(save(tmp_path / "p.png", image))
    assert opaque[..., ::-1].tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 255, 0]]]
    clear = read_image(save(tmp_path / "t.png", image, transparency=1))
    assert clear[0, 1].tolist() == [255, 255, 255] and clear[0, 0].tolist() == [0, 0, 255]
    assert np.array_equal(read_image(save(tmp_path / "a.gif", image)), opaque)


def png(bits: int, colors: int, row: bytes, transparent: tuple[int, ...]) -> bytes:
    """Return a PNG file of one row with a transparent color, gray (1) or RGB (3)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", len(row) * 8 // bits // colors, 1, bits, colors - 1, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", struct.pack(f">{colors}H", *transparent))]
    chunks += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


@pytest.mark.parametrize(
    ("bits", "row", "transparent", "expected"),
    [
        (1, bytes([0b01010101]), 0, [255] * 8),
        (2, bytes([0b00011011]), 2, [0, 85, 255, 255]),
        (2, bytes([0b00011011]), 0, [255, 85, 170, 255]),
        (4, bytes([0x05, 0x5F]), 5, [0, 255, 255, 255]),
        (4, bytes([0x05, 0x3F]), 15, [0, 85, 51, 255]),
        (8, bytes([0, 5, 255]), 5, [0, 255, 255]),
        (16, struct.pack(">4H", 0, 500, 514, 65535), 500, [0, 255, 2, 255]),
        (16, struct.pack(">3H", 0, 1, 0), 0, [255, 0, 255]),
    ],
)
def test_transparent_gray(bits, row, transparent, expected):
    content = png(bits, 1, row, (transparent,))
    assert read_image(content)[0, :, 1].tolist() == expected


@pytest.mark.parametrize("bits", [8, 16])
def test_transparent_color(bits):
    unit = 257 if bits == 16 else 1
    color, other = (unit * 10, unit * 20, unit * 30), (unit * 10, unit * 20, unit * 31)
    content = png(bits, 3, struct.pack(f">6{'H' if bits == 16 else 'B'}", *color, *other), color)
    assert read_image(content)[..., ::-1].tolist() == [[[255, 255, 255], [10, 20, 31]]]


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bit_is_scaled_not_clipped(tmp_path, kind):
    deep = np.array([[0, 257, 300, 32768], [65535, 65278, 128, 129]], dtype=np.uint16)
    path = save(tmp_path / f"deep.{kind}", Image.fromarray(deep))
    expected = np.rint(deep / 257).astype(np.uint8)
    assert np.array_equal(read_image(path)[..., 0], expected)
    assert np.array_equal(read_image(deep)[..., 2], expected)


def test_16_bit_color_png(tmp_path):
    import cv2

    deep = RNG.integers(0, 65536, (4, 6, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    # Pillow keeps the high byte of deep colors: off by less than one step.
    assert np.abs(read_image(tmp_path / "deep.png") - deep / 257).max() <= 1


def test_32_bit_files(tmp_path):
    ints = np.array([[0, 65535]], dtype=np.int32)
    path = save(tmp_path / "i.tiff", Image.fromarray(ints))
    assert read_image(path)[..., 0].tolist() == [[0, 255]]
    wide = save(tmp_path / "wide.tiff", Image.fromarray(ints * 2))
    with pytest.raises(ImageError, match=r"wide\.tiff: 32-bit values from 0 to 131070"):
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
def test_other_color_models_are_converted(mode):
    image = Image.new(mode, (3, 2))
    assert read_image(image).shape == (2, 3, 3)


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # must be rotated by 90 degrees clockwise
    path = save(tmp_path / "turned.png", Image.fromarray(RGB), exif=exif)
    assert np.array_equal(read_image(path), np.rot90(RGB, -1)[..., ::-1])


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
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
    assert np.array_equal(read_image(GRAY[..., None]), read_image(GRAY))
    assert np.array_equal(read_image(GRAY > 9)[..., 0], np.where(GRAY > 9, 255, 0))
    assert np.array_equal(read_image((RGB / 255).astype(np.float32)), RGB)
    # rounding errors of float16 and float64 around 0 and 1
    nearly = np.array([[1.0000001, -1e-9, 0.5, 1.000977]])
    assert read_image(nearly)[0, :, 0].tolist() == [255, 0, 128, 255]
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
        (np.full((5, 7, 3), 1.0020001), r"from 1\.0020001 to 1\.0020001; scale them"),
        (np.full((5, 7, 3), np.nan), "NaN"),
        (np.full((5, 7, 3), np.inf), "NaN or infinite"),
    ],
)
def test_invalid_arrays_raise(array, match):
    with pytest.raises(ImageError, match=match) as info:
        read_image(array, name="images[2]")
    assert str(info.value).startswith("images[2]: ")


def test_invalid_files_raise(tmp_path):
    png = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(png, "PNG")
    jpg = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(jpg, "JPEG")
    files = {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"this is no image", "not a readable image"),
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
def test_file_without_permission_raises(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    path.chmod(0)
    with pytest.raises(ImageError, match="permission"):
        read_image(path)


# Formats


def encoded(kind: str, **kwargs) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(RGB)
    if kind == "MPO":
        kwargs |= dict(save_all=True, append_images=[image])
    if kind == "ICO":
        kwargs |= dict(sizes=[image.size])  # Pillow before 13 writes no small image otherwise
    image.save(buffer, kind, **kwargs)
    return buffer.getvalue()


WRITABLE = [kind for kind in IMAGE_FORMATS if kind != "PSD"]


@pytest.mark.parametrize("kind", WRITABLE)
def test_formats_are_detected_by_content(tmp_path, kind):
    options = dict(lossless=True) if kind == "WEBP" else {}
    content = encoded(kind, **options)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image.convert("RGB"))[..., ::-1]
    for name in ("right." + kind.lower(), "wrong.gif", "without"):
        (tmp_path / name).write_bytes(content)
        assert np.array_equal(read_image(tmp_path / name), expected)


def test_photoshop_files():
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, *RGB.shape[:2], 8, 3)
    planes = RGB.transpose(2, 0, 1).tobytes()
    content = header + bytes(12) + struct.pack(">H", 0) + planes
    assert np.array_equal(read_image(content), RGB[..., ::-1])


def test_suffixes_match_the_formats():
    known = {suffix: kind for suffix, kind in Image.registered_extensions().items()}
    assert set(known.values()) > set(IMAGE_FORMATS) > set(LABEL_FORMATS)
    assert {known[suffix] for suffix in image_suffixes()} == set(IMAGE_FORMATS)
    some = {".jpg", ".jfif", ".mpo", ".jp2", ".avif", ".tga", ".dib", ".pnm", ".webp", ".tiff"}
    assert some < image_suffixes()
    assert not {".eps", ".ps", ".wmf", ".emf", ".mpg", ".ico", ".hdf"} & image_suffixes()


def test_postscript_is_never_run(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    def run(*args, **kwargs):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    path = tmp_path / "holiday.jpg"
    path.write_bytes(encoded("EPS"))
    with pytest.raises(ImageError, match=r"holiday\.jpg: not a readable image, .*JPEG, PNG"):
        read_image(path)
    for formats in (LABEL_FORMATS, ("PNG",)):
        with pytest.raises(DatasetError, match="not a readable map, damaged or in none of"):
            with open_image(path, formats=formats, error=DatasetError, what="map"):
                pass
    with Image.open(path) as image, pytest.raises(ImageError, match="EPS is not decoded here"):
        read_image(image)


def test_pillow_without_a_decoder(monkeypatch):
    reader, _ = Image.OPEN["AVIF"]
    monkeypatch.setitem(Image.OPEN, "AVIF", (reader, lambda head: "AVIF support not installed"))
    with pytest.raises(ImageError, match="not a readable image, AVIF support not installed"):
        read_image(encoded("AVIF"))
    monkeypatch.delitem(Image.OPEN, "AVIF")  # an older Pillow
    with pytest.raises(ImageError, match="in none of the formats JPEG, PNG, WEBP, JPEG2000"):
        read_image(encoded("AVIF"))


@pytest.mark.parametrize("kind", ["ICO", "DDS", "PCX"])
def test_pil_images_that_are_already_decoded(kind):
    with Image.open(io.BytesIO(encoded(kind))) as image:
        image.load()
        assert read_image(image).shape == (*image.size[::-1], 3)


def test_image_open_is_only_used_in_one_place():
    root = Path(__file__).parents[2]
    places = [
        str(path.relative_to(root))
        for folder in ("odise_mm", "tools", "demo", "projects", "configs")
        for path in sorted((root / folder).rglob("*.py"))
        if "tests" not in path.parts and re.search(r"Image\.open\(|\bimread\(", path.read_text())
    ]
    # The first is in a program for users, the second in a docstring.
    assert places == ["odise_mm/export/readme.py", "odise_mm/utils/image.py"]


@pytest.mark.parametrize("kind", WRITABLE)
def test_damaged_files_raise_image_errors(kind):
    rng = np.random.default_rng(0)
    content = np.frombuffer(encoded(kind), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about optional parts
        for _ in range(60):
            damaged = content.copy()
            places = rng.integers(0, min(len(content), 200), rng.integers(1, 6))
            damaged[places] = rng.integers(0, 256, len(places))
            try:
                assert read_image(damaged.tobytes()).shape[2] == 3
            except ImageError as error:
                assert str(error).startswith("bytes: ")


# Bytes and file objects


class Pipe(io.RawIOBase):
    """A file object that cannot be rewound, such as that of a network connection."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, place) -> int:
        return self.buffer.readinto(memoryview(place)[:100])  # short reads


class Endless(Pipe):
    def readinto(self, place) -> int:
        return len(place)


def test_bytes_and_file_objects(tmp_path):
    content = encoded("PNG")
    path = tmp_path / "a.png"
    path.write_bytes(content)
    at_its_end = io.BytesIO()
    at_its_end.write(content)
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    with open(path, "rb") as file, gzip.open(tmp_path / "a.gz") as unpacked:
        twice = bytes(2 * len(content))
        spread = memoryview(bytearray(twice))[::2]
        spread[:] = content
        sources = [content, bytearray(content), memoryview(content), spread, io.BytesIO(content)]
        sources += [at_its_end, file, unpacked, Pipe(content)]
        for source in sources:
            assert np.array_equal(read_image(source), RGB[..., ::-1])
        assert not file.closed and not at_its_end.closed


class Coroutine:
    async def read(self, size: int = -1) -> bytes:
        return b""


class Strange:
    def read(self) -> bytes:
        return b""


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (b"", r"^bytes: the file is empty"),
        (io.BytesIO(), r"^BytesIO: the file is empty"),
        (b"GIF89a", r"^bytes: not a readable image"),
        (io.StringIO("text"), r"^StringIO: is open as text; open it with mode 'rb'"),
        (Coroutine(), r"^Coroutine: its read\(\) returns a coroutine; pass the bytes"),
        (Strange(), r"^Strange: cannot be read"),
        ([[[0, 0, 0]]], r"from a list; pass lists of pixels as numpy\.array"),
        ({}, r"from a dict; pass a path, a file's bytes"),
        (None, "from a NoneType; pass a path"),
        (np.frombuffer(b"\xff\xd8\xff", np.uint8), r"pass the bytes of a file as array\.tobytes"),
    ],
)
def test_not_an_image_raises(source, match):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # for coroutines that are never awaited
        with pytest.raises(ImageError, match=match):
            read_image(source)


def test_endless_files_raise(monkeypatch):
    monkeypatch.setattr("odise_mm.utils.image._MOST_BYTES", 8 << 20)
    with pytest.raises(ImageError, match="Endless: has more than 8 MiB"):
        read_image(Endless(b""))
    if os.path.exists("/dev/zero"):
        with open("/dev/zero", "rb") as file, pytest.raises(ImageError, match="not a readable"):
            read_image(file)


def test_closed_file_object_raises():
    file = io.BytesIO(encoded("PNG"))
    file.close()
    with pytest.raises(ImageError, match="BytesIO: cannot be read .*closed file"):
        read_image(file)


# Paths


def test_home_folders_and_trailing_slashes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "a.png", Image.fromarray(RGB))
    assert np.array_equal(read_image("~/a.png"), RGB[..., ::-1])
    assert np.array_equal(read_image(Path("~/a.png")), RGB[..., ::-1])
    assert np.array_equal(read_image(f"{tmp_path}/a.png/"), RGB[..., ::-1])
    assert np.array_equal(read_image(os.fsencode(tmp_path / "a.png").decode()), RGB[..., ::-1])


@pytest.mark.parametrize("path", ["", " ", "\t\n"])
def test_empty_path_raises(path):
    with pytest.raises(ImageError) as info:
        read_image(path)
    assert str(info.value) == f"{path!r}: the path is empty"


def test_text_that_cannot_be_a_path_raises(tmp_path):
    with pytest.raises(
        ImageError, match=r"^/9j/4AAQ.*\.\.\..*: not a file path, as it has 400,000 ch"
    ) as info:
        read_image("/9j/4AAQ" * 50_000)
    assert len(str(info.value)) < 500
    with pytest.raises(ImageError, match=r"a\\x00b\.png: cannot be read"):
        read_image("a\0b.png")
    with pytest.raises(ImageError) as info:
        read_image("a\x1b[2J\nerror: b.png")
    assert str(info.value).isprintable()


# The limit on pixels


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "PPM", "AVIF", "TGA", "JPEG2000"])
def test_our_own_limit_on_pixels_is_used(monkeypatch, kind):
    content = encoded(kind)  # 35 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(content, max_pixels=35).shape == (5, 7, 3)
        assert read_image(content, max_pixels=None).shape == (5, 7, 3)
        with pytest.raises(ImageError, match=r"7 x 5 = 35, but max_pixels is 34; shrink it, or"):
            read_image(content, max_pixels=34)
    assert Image.MAX_IMAGE_PIXELS == 3


@pytest.mark.parametrize("kind", ["TIFF", "WEBP"])
def test_pillow_readers_with_their_own_limit(monkeypatch, kind):
    if kind == "WEBP" and int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("Pillow before 13 has no limit of its own for WebP")
    content = encoded(kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    with pytest.raises(
        ImageError, match=r"Pillow's own limit .* raise PIL\.Image\.MAX_IMAGE_PIXELS"
    ):
        read_image(content)


def test_pixels_of_all_sources_are_counted(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    with Image.open(path) as lazy:
        for source in (path, lazy, RGB, GRAY, Image.fromarray(RGB), encoded("GIF")):
            with pytest.raises(ImageError, match="too many pixels, 7 x 5 = 35"):
                read_image(source, max_pixels=34)
            assert read_image(source, max_pixels=35).shape == (5, 7, 3)
        with pytest.raises(ImageError, match="too many pixels"):  # still not decoded
            read_image(lazy, max_pixels=34)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "64"])
def test_invalid_limits_raise(limit):
    for use in (check_max_pixels, lambda limit: read_image(RGB, max_pixels=limit)):
        with pytest.raises(ValueError, match="max_pixels must be a positive whole number or None"):
            use(limit)


def test_out_of_memory(monkeypatch):
    def fail(self):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(ImageError, match="^bytes: not enough memory to decode it"):
        read_image(encoded("PNG"))


def test_lazily_opened_damaged_image_raises(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    path = tmp_path / "half.png"
    path.write_bytes(buffer.getvalue()[:4000])
    with Image.open(path) as image, pytest.raises(ImageError, match=r"half\.png: .*damaged"):
        read_image(image)


def test_unknown_channel_order_raises():
    with pytest.raises(ValueError, match="channel_order"):
        read_image(RGB, channel_order="grb")
