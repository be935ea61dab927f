"""Check LVIS v1. Its annotations are used unchanged, with COCO's images.

Unpack lvis_v1_val.json.zip (and lvis_v1_train.json.zip for `--splits train`) in DATA_ROOT. The
images are those of COCO 2017; val has 19,809, of which 15,000 are in train2017/. Nothing is
written. The program compares the 1,203 categories with the vocabulary `lvis`, and checks ids,
boxes, and the fields that the evaluation needs (frequency of the classes, which classes are
exhaustively annotated). It also checks that every image exists and has the annotated size.

Example:
    python tools/dataset_converters/lvis.py data/lvis --coco data/coco
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from odise_mm.annotations.coco_json import image_name as file_name
from odise_mm.annotations.coco_json import read_coco
from odise_mm.annotations.json_fields import fault, shown
from odise_mm.converters.files import need_file, need_folder
from odise_mm.converters.program import Row, converter_parser, program, show_written
from odise_mm.converters.verification import verify_instances
from odise_mm.errors import DatasetError
from odise_mm.utils.display import printable

NUM_IMAGES = {"train": 100170, "val": 19809}  # of the complete dataset
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


def verify(root: Path, coco: Path, split: str, workers: int) -> tuple[list[Row], tuple[str, ...]]:
    """Check one split.

    Returns:
        Rows with the counts, and notes about masks that cannot be used.

    Raises:
        DatasetError: A file is missing or invalid; the message names the first one.
    """
    path = need_file(root / f"lvis_v1_{split}.json", f"unpack lvis_v1_{split}.json.zip")
    need_folder(coco, "unpack COCO 2017 (train2017.zip, val2017.zip) there, or pass --coco")
    content = read_coco(path, "instance")
    categories, images = content.categories, list(content.images.values())
    del content  # free memory: the largest file has 1 GB and is read again below
    _check_categories(categories, path)
    _check_images(images, categories, path)
    found = verify_instances(path, coco, workers=workers, tolerant=True)
    parts = Counter(file_name(image).split("/")[0] for image in images)
    classes = Counter(FREQUENCIES[category["frequency"]] for category in categories.values())
    rows = [
        Row(path, "images", found.images, NUM_IMAGES[split]),
        *(Row(coco / name, "of these images", count) for name, count in sorted(parts.items())),
        Row(path, "masks", found.segments),
        Row(path, "classes present", found.classes),
        *(Row(path, f"{name} classes", classes[name]) for name in FREQUENCIES.values()),
    ]
    return rows, found.notes


def _check_images(images: list[dict], known: dict, path: Path) -> None:
    """Check that the images have the fields for the evaluation, with known categories."""
    for image in images:
        for key in _LISTS:
            name = f"{path}: image {shown(image['id'])}"
            problem = fault(image, key, "a list of whole numbers or texts")
            if problem:
                raise DatasetError(
                    f"{name} {problem}; LVIS v1 has this field, version 0.5 does not"
                )
            unknown = [id_ for id_ in image[key] if id_ not in known]
            if unknown:
                raise DatasetError(
                    f"{name}: category {shown(unknown[0])} in {key} is not listed in 'categories'"
                )


def _check_categories(categories: dict, path: Path) -> None:
    """Check that names, order and frequencies are those of LVIS v1."""
    from odise_mm.vocabulary import Vocabulary  # slow import

    wanted = Vocabulary.load("lvis").source_names
    if len(categories) != len(wanted):
        raise DatasetError(
            f"{path}: {len(categories)} categories, but LVIS v1 has {len(wanted)}; check the "
            "version"
        )
    for place, name in enumerate(wanted, start=1):
        category = categories.get(place, {"name": "nothing"})
        if category["name"] != name:
            raise DatasetError(
                f"{path}: category {place} is '{printable(category['name'])}', but in LVIS v1 it "
                f"is '{name}'"
            )
        if category.get("frequency") not in ("r", "c", "f"):
            raise DatasetError(f"{path}: category '{name}' has no `frequency` r, c or f")


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
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
        rows, notes = [], []
        for split in args.splits:
            new_rows, new_notes = verify(args.data_root, args.coco, split, args.workers)
            rows, notes = [*rows, *new_rows], [*notes, *new_notes]
        show_written("LVIS v1", rows, notes)
    return 0
