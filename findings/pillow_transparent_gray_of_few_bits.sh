#!/usr/bin/env bash
# Pillow 13.0.0: a gray PNG of 2 or 4 bits with a transparent gray value (chunk tRNS), such as small
# label maps and icons have.
#
# Expected: convert("RGBA") makes the pixels of that value transparent, as with 8 bits.
# Seen: pixels are stretched to 0 to 255 when the file is read (4 bits: times 17, 2 bits: times 85),
# info["transparency"] stays as it is stored, and convert("RGBA") compares the two. So no pixel, or
# one of another value, becomes transparent.
#
# Output seen on 2026-11-28, Python 3.11, Linux x86-64:
#   Pillow 13.0.0
#   8 bits: pixels [0, 1, 2, 3], transparency 2, alpha [255, 255, 0, 255]
#   4 bits: pixels [0, 17, 34, 51], transparency 2, alpha [255, 255, 255, 255]
#   2 bits: pixels [0, 85, 170, 255], transparency 2, alpha [255, 255, 255, 255]
# Fails if 13.0.0 behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pillow==13.0.0
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import zlib

import PIL
from PIL import Image

print("Pillow", PIL.__version__)


def gray_png(bits, row):
    """Four pixels of the values 0, 1, 2, 3, of which 2 is transparent."""

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"tRNS", struct.pack(">H", 2))]
    parts += [(b"IDAT", zlib.compress(bytes([0, *row]))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


alphas = {}
for bits, row in ((8, (0, 1, 2, 3)), (4, (0x01, 0x23)), (2, (0b00011011,))):
    image = Image.open(io.BytesIO(gray_png(bits, row)))
    pixels = [image.getpixel((x, 0)) for x in range(4)]
    stored = image.info["transparency"]
    rgba = image.convert("RGBA")
    alphas[bits] = [rgba.getpixel((x, 0))[3] for x in range(4)]
    print(f"{bits} bits: pixels {pixels}, transparency {stored}, alpha {alphas[bits]}")
opaque = [255] * 4
assert alphas == {8: [255, 255, 0, 255], 4: opaque, 2: opaque}, "changed"
PYTHON
