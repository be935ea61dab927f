#!/usr/bin/env bash
# Pillow 12.3.0: a picture smaller than 16 x 16 pixels, saved as ICO.
#
# Expected: a file that opens again with the picture's size, or an error from save(). ICO allows any
# size from 1 x 1 to 256 x 256, and Pillow itself writes 7 x 5 where `sizes=[(7, 5)]` is given.
# Seen: save() returns without a word; the file is a header of 6 bytes that announces no picture,
# and Pillow's own open() says UnidentifiedImageError. The picture is lost.
# (The default sizes start at 16 x 16, and those larger than the picture are left out: all of them.)
#
# Output seen on 2026-11-28, Python 3.11, Linux x86-64:
#   Pillow 12.3.0
#   16 x 16: 16 x 16
#   7 x 5, sizes given: 7 x 5
#   7 x 5: 6 bytes, 000001000000: UnidentifiedImageError
# Pillow 13.0.0 writes the picture. Fails if 12.3.0 behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pillow==12.3.0
"$folder/venv/bin/python" - <<'PYTHON'
import io

import PIL
from PIL import Image, UnidentifiedImageError


def saved(size, **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "ICO", **options)
    return buffer.getvalue()


def reopened(content):
    with Image.open(io.BytesIO(content)) as image:
        return "{} x {}".format(*image.size)


print("Pillow", PIL.__version__)
print("16 x 16:", reopened(saved((16, 16))))
print("7 x 5, sizes given:", reopened(saved((7, 5), sizes=[(7, 5)])))
content = saved((7, 5))
try:
    reopened(content)
except UnidentifiedImageError:
    print(f"7 x 5: {len(content)} bytes, {content.hex()}: UnidentifiedImageError")
else:
    raise SystemExit("changed: the small picture can be read")
assert content.hex() == "000001000000"
PYTHON
