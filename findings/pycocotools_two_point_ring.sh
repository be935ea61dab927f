#!/usr/bin/env bash
# pycocotools 2.0.11: a polygon with a ring of two points, as labeling tools export for a click that
# was not finished, beside a proper ring.
#
# Expected: the ring of two points covers no pixel, wherever it stands in the list.
# Seen: the first ring alone decides what the list is. With four numbers in it the whole list is
# taken for boxes [x, y, w, h], and a list of lists then ends in a TypeError about 'bb', which names
# no annotation. The same rings in the other order are a polygon of the right area. COCOeval meets
# this only after the last image, when all numbers are lost.
#
# Output seen on 2026-11-28, Python 3.11, Linux x86-64:
#   pycocotools 2.0.11
#   ring of four points, ring of two points: areas [100, 0]
#   ring of two points, ring of four points: TypeError: Argument 'bb' has incorrect type (expected numpy.ndarray, got list)
# Fails if 2.0.11 behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pycocotools==2.0.11 numpy==2.2.6
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from pycocotools import mask

print("pycocotools", version("pycocotools"))
square = [2, 2, 12, 2, 12, 12, 2, 12]
line = [2, 2, 5, 5]


def areas(rings):
    return [int(area) for area in mask.area(mask.frPyObjects(rings, 30, 40))]


found = areas([square, line])
print("ring of four points, ring of two points: areas", found)
assert found == [100, 0], "changed"
try:
    areas([line, square])
except TypeError as error:
    print(f"ring of two points, ring of four points: TypeError: {error}")
    assert "'bb'" in str(error), "changed"
else:
    raise SystemExit("changed: the order of the rings makes no difference any more")
PYTHON
