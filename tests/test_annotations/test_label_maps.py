"""Values of label maps are read as stored from all formats; "ignored" is never a class."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odise_mm.annotations.label_maps import (
    IGNORED,
    class_indices,
    ignored_value,
    label_map_dtype,
    read_label_map,
)
from odise_mm.errors import ConfigError, DatasetError


def write_png(path: Path, rows: list[list[int]], bits: int, color_type: int = 0) -> None:
    """Write a PNG file according to its specification, for bit depths that Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    width = len(rows[0]) // (2 if color_type == 4 else 1)
    packed = b""
    for row in rows:
        text = "".join(f"{number:0{bits}b}" for number in row)
        text += "0" * (-len(text) % 8)
        packed += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    header = struct.pack(">IIBBBBB", width, len(rows), bits, color_type, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(9, 9 + 3 * 4))) if color_type == 3 else b""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + palette
        + chunk(b"IDAT", zlib.compress(packed))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("color_type", [0, 3])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_all_bit_depths(bits: int, color_type: int, tmp_path: Path) -> None:
    last = min(2**bits - 1, 3) if color_type == 3 else 2**bits - 1
    rows = [[0, last, 1, 0, last], [1, 1, last, 0, 0]]
    write_png(tmp_path / "a.png", rows, bits, color_type)
    numbers = read_label_map(tmp_path / "a.png")
    assert numbers.tolist() == rows and numbers.dtype == np.uint8


def test_16_bits(tmp_path: Path) -> None:
    rows = [[0, 255, 256], [846, 65534, 65535]]
    write_png(tmp_path / "a.png", rows, 16)
    numbers = read_label_map(tmp_path / "a.png")
    assert numbers.tolist() == rows and numbers.dtype == np.uint16


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".gif"])
@pytest.mark.parametrize("palette", [False, True])
def test_formats(suffix: str, palette: bool, tmp_path: Path) -> None:
    expected = np.arange(240, dtype=np.uint8).reshape(12, 20)
    image = Image.fromarray(expected)
    if palette:
        image.putpalette(np.random.default_rng(1).permutation(256).astype(np.uint8).repeat(3))
    image.save(tmp_path / f"a{suffix}")
    assert np.array_equal(read_label_map(tmp_path / f"a{suffix}"), expected)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "packbits"])
@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16, np.int32])
def test_tiff(dtype: type, compression: str | None, tmp_path: Path) -> None:
    expected = np.array([[0, 1, 1], [1, 0, 0]]) * (1 if dtype in (np.bool_, np.uint8) else 300)
    path = tmp_path / "a.tif"
    Image.fromarray(expected.astype(dtype)).save(path, compression=compression)
    assert read_label_map(path).tolist() == expected.tolist()


def test_only_opaque_alpha_channels_are_accepted(tmp_path: Path) -> None:
    numbers = np.array([[0, 7], [3, 255]], np.uint8)
    alpha = np.full_like(numbers, 255)
    Image.merge("LA", [Image.fromarray(numbers), Image.fromarray(alpha)]).save(tmp_path / "a.png")
    assert read_label_map(tmp_path / "a.png").tolist() == numbers.tolist()
    alpha[0, 0] = 0
    Image.merge("LA", [Image.fromarray(numbers), Image.fromarray(alpha)]).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"a\.png: the label map has transparent pixels"):
        read_label_map(tmp_path / "a.png")


def test_transparent_palette_entry_keeps_its_value(tmp_path: Path) -> None:
    numbers = np.array([[0, 1], [2, 0]], np.uint8)
    image = Image.fromarray(numbers)
    image.putpalette(bytes(range(9)))
    image.save(tmp_path / "a.png", transparency=0)
    assert read_label_map(tmp_path / "a.png").tolist() == numbers.tolist()


def test_not_a_label_map_raises(tmp_path: Path) -> None:
    gray = np.zeros((4, 4), np.uint8)
    Image.fromarray(gray).save(tmp_path / "a.jpg")
    Image.fromarray(gray).save(tmp_path / "named.png", format="JPEG")
    for name in ("a.jpg", "named.png"):
        with pytest.raises(DatasetError, match=rf"{name}: not a readable label map, .* PNG"):
            read_label_map(tmp_path / name)
    Image.fromarray(gray.astype(np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DatasetError, match=r"f\.tif: .* has mode F: floating point numbers"):
        read_label_map(tmp_path / "f.tif")
    for low in (-1, 70_000):
        Image.fromarray(np.full((2, 2), low, np.int32)).save(tmp_path / "i.tif")
        with pytest.raises(DatasetError, match=r"i\.tif: the label map has values from"):
            read_label_map(tmp_path / "i.tif")
    write_png(tmp_path / "la16.png", [[1, 65535]], 16, color_type=4)
    for mode in ("RGB", "RGBA", "CMYK"):
        Image.new(mode, (3, 1)).save(tmp_path / f"{mode}.tif")
    for name in ("RGB.tif", "RGBA.tif", "CMYK.tif", "la16.png"):
        with pytest.raises(DatasetError, match=rf"{name}: .*one channel .* has mode \w+: colors"):
            read_label_map(tmp_path / name)
    with pytest.raises(DatasetError, match=r"gone\.png: no such label map"):
        read_label_map(tmp_path / "gone.png")


@pytest.mark.parametrize(
    ("num_classes", "dtype"),
    [(1, np.uint8), (255, np.uint8), (256, np.uint16), (257, np.uint16), (65535, np.uint16)],
)
def test_round_trip(num_classes: int, dtype: type, tmp_path: Path) -> None:
    assert label_map_dtype(num_classes) == dtype
    classes = np.array([[0, num_classes // 2, num_classes - 1]])
    Image.fromarray(classes.astype(label_map_dtype(num_classes))).save(tmp_path / "a.png")
    numbers = read_label_map(tmp_path / "a.png")
    assert numbers.max() != ignored_value(numbers)
    assert class_indices(numbers, "a.png", num_classes).tolist() == classes.tolist()


def test_too_many_classes_raise() -> None:
    with pytest.raises(ConfigError, match="65,536 classes: .* 65,535 classes"):
        label_map_dtype(65536)


@pytest.mark.parametrize(
    ("dtype", "num_classes", "from_one"),
    [
        (np.uint8, 256, False), (np.uint8, 847, False), (np.uint8, 255, True),
        (np.uint16, 65536, False), (np.uint16, 65535, True),
    ],
)  # fmt: skip
def test_value_that_is_both_a_class_and_ignored_raises(
    dtype: type, num_classes: int, from_one: bool
) -> None:
    last = int(np.iinfo(dtype).max)
    numbers = np.array([[1, last - 1]], dtype)
    found = class_indices(numbers, "a.png", num_classes, from_one)
    assert found.tolist() == [[1 - from_one, last - 1 - from_one]]
    with pytest.raises(DatasetError, match=rf"a\.png: {last} is both a class and .* 'ignored'"):
        class_indices(np.array([[1, last]], dtype), "a.png", num_classes, from_one)
    fits = num_classes - 1
    while fits - 1 + from_one >= last:
        fits -= 1
    numbers = np.array([[last]], dtype)
    assert class_indices(numbers, "a.png", fits, from_one).tolist() == [[IGNORED]]


@pytest.mark.parametrize("from_one", [False, True])
def test_values_beyond_the_classes_raise(from_one: bool) -> None:
    numbers = np.array([[4 + from_one]], np.uint8)
    with pytest.raises(DatasetError, match=rf"index 4, value {4 + from_one} in .* has 4 classes"):
        class_indices(numbers, "a.png", 4, from_one)
    assert class_indices(numbers, "a.png", 5, from_one).tolist() == [[4]]
    zero = np.array([[0]], np.uint8)
    assert class_indices(zero, "a.png", 5, from_one).tolist() == [[IGNORED if from_one else 0]]
