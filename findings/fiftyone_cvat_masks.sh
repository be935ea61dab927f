#!/usr/bin/env bash
# fiftyone 1.22.1: its importer of CVAT's image format reads a file with a mask and a polygon.
#
# Expected: the mask is read, or a message says that it is not.
# Seen: only the polygon is read, without a message. The code that reads tasks through CVAT's API
# handles masks.
#
# Output seen on 2026-11-28, Python 3.11, Linux x86-64:
#   fiftyone 1.22.1
#   read: {'polylines': ['cat']}
# Fails if 1.22.1 behaves otherwise. Needs 1 GB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet fiftyone==1.22.1
mkdir "$folder/data"
cat >"$folder/labels.xml" <<'XML'
<annotations>
  <version>1.1</version>
  <image id="0" name="1.jpg" width="12" height="8">
    <mask label="dog" source="manual" occluded="0" rle="0, 6" left="2" top="3" width="3" height="2" z_order="0"/>
    <polygon label="cat" source="manual" occluded="0" points="1,1;5,1;5,4" z_order="0"/>
  </image>
</annotations>
XML
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import fiftyone
from fiftyone.utils.cvat import CVATImageDatasetImporter
from PIL import Image

print("fiftyone", fiftyone.__version__)
Image.new("RGB", (12, 8)).save(f"{sys.argv[1]}/data/1.jpg")
importer = CVATImageDatasetImporter(sys.argv[1])
with importer:
    (sample,) = importer
found = {
    name: [one.label for one in getattr(labels, name)] for name, labels in sample[2].items()
}
print("read:", found)
assert found == {"polylines": ["cat"]}, "changed"
PYTHON
