#!/usr/bin/env python
"""Check LVIS v1: its annotations are used as they are, with COCO's pictures.

Unpack lvis_v1_val.json.zip (and lvis_v1_train.json.zip for `--splits train`) in DATA_ROOT. The
pictures are COCO 2017's: val has 19,809, of which 15,000 lie in train2017/. Nothing is written.
Checked are the 1,203 categories against the vocabulary `lvis`, ids, boxes, the lists that the
evaluation needs (rare, common or frequent; which classes are exhaustively annotated), and that
every picture is there and has its size.

Example:
    python tools/dataset_converters/lvis.py data/lvis --coco data/coco
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # runs from a clone that is not installed, too

from odise_mm.errors import DatasetError  # noqa: E402
from tools.dataset_converters.common import (  # noqa: E402
    Row,
    converter_parser,
    need_file,
    need_folder,
    parsing,
    program,
    read_json,
    show_written,
    verify_instances,
)

NUM_IMAGES = {"train": 100170, "val": 19809}  # of the complete data set
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
_IMAGE_KEYS = ("id", "height", "width", "coco_url", "neg_category_ids",
               "not_exhaustive_category_ids")  # fmt: skip


def file_name(image: dict) -> str:
    """A picture's path in COCO's folder, e.g. ``val2017/000000397133.jpg``."""
    return "/".join(image["coco_url"].split("/")[-2:])


def verify(root: Path, coco: Path, split: str, workers: int) -> list[Row]:
    """Check one split.

    Raises:
        DatasetError: what is wrong first, by name.
    """
    path = need_file(root / f"lvis_v1_{split}.json", f"lvis_v1_{split}.json.zip")
    need_folder(coco, "COCO 2017 (train2017.zip, val2017.zip)")
    content = read_json(path)
    with parsing(path, "annotations of LVIS"):
        categories = sorted(content["categories"], key=lambda category: category["id"])
        images = content["images"]
        _check_categories(categories, path)
        _check_images(images, {category["id"] for category in categories}, path)
    found = verify_instances(path, coco, workers=workers, file_name=file_name)
    parts = Counter(file_name(image).split("/")[0] for image in images)
    classes = Counter(FREQUENCIES[category["frequency"]] for category in categories)
    return [
        Row(path, "images", found.images, NUM_IMAGES[split]),
        *(Row(coco / name, "pictures of these", count) for name, count in sorted(parts.items())),
        Row(path, "masks", found.segments),
        Row(path, "classes that occur", found.classes),
        *(Row(path, f"{name} classes", classes[name]) for name in FREQUENCIES.values()),
    ]


def _check_images(images: list[dict], known: set[int], path: Path) -> None:
    """They have what the evaluation needs, and name known categories."""
    for image in images:
        missing = [key for key in _IMAGE_KEYS if key not in image]
        if missing:
            raise DatasetError(f"{path}: image {image.get('id')} lacks '{missing[0]}'; LVIS v1 has "
                               "it, version 0.5 has not")  # fmt: skip
        for key in _IMAGE_KEYS[-2:]:
            unknown = set(image[key]) - known
            if unknown:
                raise DatasetError(
                    f"{path}: image {image['id']} has category {min(unknown)} in {key}, which is "
                    "not in 'categories'"
                )


def _check_categories(categories: list[dict], path: Path) -> None:
    """Names, order and frequencies are those of LVIS v1."""
    from odise_mm.datasets.vocabulary import Vocabulary  # late: brings OpenMMLab's packages

    wanted = Vocabulary.load("lvis").source_names
    if len(categories) != len(wanted):
        raise DatasetError(
            f"{path}: {len(categories)} categories; LVIS v1 has {len(wanted)}, is it another one?"
        )
    for place, (category, name) in enumerate(zip(categories, wanted, strict=True), start=1):
        if (category["id"], category["name"]) != (place, name):
            raise DatasetError(
                f"{path}: category {category['id']} is '{category['name']}'; LVIS v1 has {place}, "
                f"'{name}', there"
            )
        if category.get("frequency") not in FREQUENCIES:
            raise DatasetError(f"{path}: category '{name}' has no frequency r, c or f")


def main(argv: list[str] | None = None) -> int:
    parser = converter_parser(__doc__, "data/lvis", list(NUM_IMAGES))
    parser.add_argument(
        "--coco",
        type=Path,
        default=Path("data/coco"),
        metavar="DIR",
        help="folder with train2017/ and val2017/ (default: data/coco)",
    )
    args = parser.parse_args(argv)
    with program():
        rows = []
        for split in args.splits:
            rows += verify(args.data_root, args.coco, split, args.workers)
        show_written("LVIS v1", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
