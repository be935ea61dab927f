"""Malicious image files, in harmless sizes."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odise_mm.annotations.label_maps import read_label_map
from odise_mm.annotations.panoptic_io import read_panoptic_png
from odise_mm.errors import DatasetError, ImageError, PanopticFileError
from odise_mm.utils.image import read_image

READERS = [
    (read_image, ImageError),
    (read_label_map, DatasetError),
    (read_panoptic_png, PanopticFileError),
]


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def bomb(path: Path, side: int) -> Path:
    """Write a one-bit PNG of ``side`` x ``side`` pixels; the file is a thousand times smaller."""
    packed = zlib.compressobj(9)
    row = bytes(side // 8 + 2)
    pixels = b"".join(packed.compress(row[: (side + 7) // 8 + 1]) for _ in range(side))
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", pixels + packed.flush()), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


def test_pixels_are_counted_before_they_are_decoded(tmp_path):
    path = bomb(tmp_path / "bomb.png", 13_000)
    assert path.stat().st_size < 50_000
    # In a separate process that has too little memory to decode it.
    code = f"""
import resource, warnings
from odise_mm.utils.image import ImageError, read_image
warnings.simplefilter("error")
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000,) * 2)
try:
    read_image({str(path)!r})
except ImageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "13000 x 13000 = 169,000,000, but max_pixels is 67,108,864" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(("read", "error"), READERS)
def test_maps_have_a_pixel_limit(tmp_path, monkeypatch, read, error):
    path = bomb(tmp_path / "bomb.png", 17_000)
    with pytest.raises(error, match=r"bomb\.png: too many pixels, 17000 x 17000"):
        read(path)


@pytest.mark.parametrize(("read", "error"), READERS)
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link"])
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX")
def test_pipes_sockets_and_devices_are_not_opened(tmp_path, read, error, kind):
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("pipe")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            folder = os.getcwd()
            os.chdir(tmp_path)  # names of sockets are short
            try:
                server.bind("a.png")
            finally:
                os.chdir(folder)
    else:
        path = Path("/dev/zero")
    with pytest.raises(error, match=f"{path.name}: is a pipe, a device or a socket"):
        read(path)


@pytest.mark.parametrize(("read", "error"), READERS[1:])
def test_maps_in_other_formats_raise(tmp_path, read, error):
    path = tmp_path / "map.png"
    for kind in ("JPEG", "WEBP", "EPS", "TGA", "PPM"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path, kind)
        with pytest.raises(error, match=r"map\.png: not a readable .* in none of the formats PNG"):
            read(path)
