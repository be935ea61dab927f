#!/usr/bin/env bash
# Pillow 13.0.0: a polygon with a slit, a line from its boundary into its inside and back, as formats
# without holes need it to reach a hole.
#
# Expected: the slit has no area, so the same pixels are filled as without it.
# Seen: if the slit is slanted, pixels of the row in which it begins are left out. A horizontal slit
# changes nothing.
#
# Output seen on 2026-11-28, Python 3.11, Linux x86-64:
#   Pillow 13.0.0
#   slit from (0, 6) to (8, 6): missing []
#   slit from (0, 6) to (8, 7): missing [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]
# Fails if 13.0.0 behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pillow==13.0.0
"$folder/venv/bin/python" - <<'PYTHON'
import PIL
from PIL import Image, ImageDraw

print("Pillow", PIL.__version__)


def filled(*slit):
    image = Image.new("L", (13, 13))
    ImageDraw.Draw(image).polygon([(0, 0), (12, 0), (12, 12), (0, 12), *slit], fill=1)
    return {(x, y) for y in range(13) for x in range(13) if image.getpixel((x, y))}


def missing(end):
    pixels = sorted(filled() - filled((0, 6), end, (0, 6)))
    print(f"slit from (0, 6) to {end}: missing {pixels}")
    return pixels


assert missing((8, 6)) == [], "changed"
assert missing((8, 7)), "changed: a slanted slit leaves out no pixels any more"
PYTHON
