#!/usr/bin/env bash
# datumaro 1.13.12: an image with two objects, each with a box and a mask in one group, is exported as
# Pascal VOC and imported again.
#
# Expected: the box and the mask of an object are in one group.
# Seen: boxes are numbered from 0 and masks from 1, so the mask of the first object is in the group of
# the second object's box. What joins annotations by their group joins the wrong ones.
#
# Output seen on 2026-11-28, Python 3.11, Linux x86-64:
#   datumaro 1.13.12
#   before: {'box': {'cat': 1, 'dog': 2}, 'mask': {'cat': 1, 'dog': 2}}
#   after: {'box': {'cat': 0, 'dog': 1}, 'mask': {'cat': 1, 'dog': 2}}
# Fails if 1.13.12 behaves otherwise. Needs 0.6 GB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet datumaro==1.13.12
"$folder/venv/bin/python" - "$folder/voc" <<'PYTHON'
import sys

import datumaro
import numpy as np
from datumaro import AnnotationType, Bbox, Dataset, DatasetItem, Image, Mask

print("datumaro", datumaro.__version__)


def groups(dataset):
    labels = dataset.categories()[AnnotationType.label]
    found = {"box": {}, "mask": {}}
    for item in dataset:
        for one in item.annotations:
            kind = "box" if isinstance(one, Bbox) else "mask"
            found[kind][labels[one.label].name] = one.group
    return found


annotations = []
for label, (x, y) in enumerate([(1, 1), (6, 4)]):
    mask = np.zeros((8, 12), bool)
    mask[y : y + 3, x : x + 4] = True
    annotations.append(Bbox(x, y, 4, 3, label=label, group=label + 1))
    annotations.append(Mask(mask, label=label, group=label + 1))
pixels = Image.from_numpy(np.zeros((8, 12, 3), np.uint8))
item = DatasetItem("1", media=pixels, annotations=annotations)
before = Dataset.from_iterable([item], categories=["cat", "dog"])
print("before:", groups(before))
before.export(sys.argv[1], "voc", save_media=True)
after = groups(Dataset.import_from(sys.argv[1], "voc"))
print("after:", after)
assert after == {"box": {"cat": 0, "dog": 1}, "mask": {"cat": 1, "dog": 2}}, "changed"
PYTHON
