#!/usr/bin/env python
"""Draw a dataset of the toy world, in COCO's own layout and with COCO's names of files.

    train2017/, val2017/, web2017/             images, 128 x 128, JPEG
    annotations/panoptic_{train,val}2017/      one PNG file of segment ids per image
    annotations/panoptic_{train,val}2017.json
    annotations/instances_{train,val}2017.json things, as run lengths
    annotations/captions_{split}2017.json      five captions per image
    annotations/phrases_{train,val}2017.json   noun phrases of the captions

`train` is what segmentation is trained on: no mask, category, caption or phrase in it has a novel
name. `val` has all names. `web` is what other models are pre-trained on: images and captions with
all names. The same options write the same bytes, whatever the number of processes; scene number n
is the same in a small and in a large set.

Example:
    python projects/toy_world/generate.py data/toy_world --splits train val --number 8000 500
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from odise_mm.annotations.json_fields import TEXT
from odise_mm.annotations.panoptic_io import ids_to_rgb
from odise_mm.converters.claims import MADE, claim
from odise_mm.converters.files import parsing, read_json, rows_of, write_png
from odise_mm.converters.program import Row, converter_parser, program, show_written
from odise_mm.converters.verification import verify_instances, verify_panoptic
from odise_mm.converters.work import Item, convert_all, finish
from odise_mm.errors import DatasetError
from odise_mm.utils.command_line import positive_int
from odise_mm.utils.files import atomic_writer, path_inside, write_json
from projects.toy_world.names import NAMES, names_of
from projects.toy_world.world import SIZE, SPLITS, Scene, scene

DEFAULT_NUMBER = {"web": 8000, "train": 8000, "val": 500}
QUALITY = 92  # of JPEG, with full color resolution: sharp borders between colors stay sharp
LOOK = 1  # to be raised when the same seed draws something else than before
_VERIFIED = 1000  # so many files of a split are read again, about


def draw(item: Item) -> dict[str, Any]:
    """Write one scene's files; what the JSON files need of it."""
    options, index = item.data
    split = options["split"]
    made = scene((options["seed"], index), split, novel_in_train=options["novel_in_train"])
    known: dict[str, Any] = dict(captions=made.captions)
    image = item.source
    if split != "web":
        known["segments"] = [
            dict(id=s.id, category_id=s.name.category, area=s.area, bbox=s.box, iscrowd=0)
            for s in made.segments
        ]
        known["masks"] = [_run_lengths(made, s.id) for s in made.segments if s.name.is_thing]
    with atomic_writer(image, durable=False) as file:
        Image.fromarray(made.image).save(file, "JPEG", quality=QUALITY, subsampling=0)
    if split != "web":
        write_png(item.output, ids_to_rgb(made.panoptic))
    return known


def _run_lengths(made: Scene, segment_id: int) -> str:
    from pycocotools import mask as masks

    mask = np.asfortranarray(made.panoptic == segment_id)
    return masks.encode(mask.view(np.uint8))["counts"].decode("ascii")


def write_split(root: Path, options: dict[str, Any], workers: int) -> None:
    """Draw a split, or what an interrupted run has left of it.

    Args:
        options: what the split depends on: ``split``, ``number``, ``seed``, ``novel_in_train``.

    Raises:
        DatasetError: there is a split with other options.
    """
    split, info = options["split"], _info(options)
    if _is_written(root, split, info):
        return
    annotations = root / "annotations"
    # a journal knows nothing of the files that a run with other options has replaced since
    digest = hashlib.sha256(json.dumps(info).encode()).hexdigest()[:12]
    journal = annotations / f"toy_{split}.{digest}.journal"
    journals = [*annotations.glob(f"toy_{split}.*.journal")]
    kinds = ("captions",) if split == "web" else ("captions", "panoptic", "instances", "phrases")
    files = [annotations / f"{kind}_{split}2017.json" for kind in kinds]
    folders = [root / f"{split}2017"] + [annotations / f"panoptic_{split}2017"] * (split != "web")
    claim(root, [*files, *folders], journals)
    phrases = annotations / f"phrases_{split}2017.json"
    for stale in (*journals, phrases, *annotations.glob(f"phrases_{split}2017.*.journal")):
        if stale != journal and stale.is_file():
            stale.unlink()
    items = []
    for index in range(options["number"]):
        stem = _stem(index)
        image = root / f"{split}2017/{stem}.jpg"
        png = annotations / f"panoptic_{split}2017/{stem}.png"
        items.append(Item(image, image if split == "web" else png, (options, index)))
    known = convert_all(items, draw, f"draw {split}", workers, journal=journal)

    images = [
        dict(id=i, file_name=item.source.name, height=SIZE, width=SIZE)
        for i, item in enumerate(items, 1)
    ]
    if split != "web":
        _write_masks(annotations, info, images, known)
    captions = [
        dict(image_id=i, caption=text) for i, one in enumerate(known, 1) for text in one["captions"]
    ]
    captions = [dict(id=i, **caption) for i, caption in enumerate(captions, 1)]
    content = dict(info=info, images=images, annotations=captions)
    finish(annotations / f"captions_{split}2017.json", content, journal)  # last: all is there


def _write_masks(annotations: Path, info: dict, images: list[dict], known: list[dict]) -> None:
    split = info["split"]
    # what training must not know is not even listed
    listed = names_of("base") if split == "train" else NAMES
    categories = [
        dict(id=name.category, name=str(name), isthing=int(name.is_thing)) for name in listed
    ]
    panoptic, instances = [], []
    things = {name.category for name in listed if name.is_thing}
    for image, one in zip(images, known, strict=True):
        png = Path(image["file_name"]).with_suffix(".png").name
        panoptic.append(dict(image_id=image["id"], file_name=png, segments_info=one["segments"]))
        found = [segment for segment in one["segments"] if segment["category_id"] in things]
        for segment, counts in zip(found, one["masks"], strict=True):
            instances.append(
                dict(
                    segment,
                    id=len(instances) + 1,
                    image_id=image["id"],
                    segmentation=dict(size=[SIZE, SIZE], counts=counts),
                )
            )
    content = dict(info=info, images=images, annotations=panoptic, categories=categories)
    write_json(annotations / f"panoptic_{split}2017.json", content)
    categories = [category for category in categories if category["isthing"]]
    content = dict(info=info, images=images, annotations=instances, categories=categories)
    write_json(annotations / f"instances_{split}2017.json", content)


def _stem(index: int) -> str:
    return f"{index + 1:012d}"


def check_own(root: Path) -> None:
    """Refuse a folder with anything in it that this program did not write.

    Raises:
        DatasetError: such a folder.
    """
    there = [path for path in root.iterdir() if path.name[0] != "."] if root.is_dir() else []
    if not there or (root / MADE).is_file() or any(root.glob("annotations/toy_*.journal")):
        return
    for path in root.glob("annotations/captions_*2017.json"):  # of a version without that file
        content = read_json(path)
        info = content.get("info") if isinstance(content, dict) else None
        if isinstance(info, dict) and info.get("description") == "toy world":
            return
    raise DatasetError(
        f"{root}: has files that this program did not write ({there[0].name}, ...); name a new or "
        "empty folder"
    )


def _info(options: dict[str, Any]) -> dict[str, Any]:
    return dict(description="toy world", look=LOOK, **options)


def _is_written(root: Path, split: str, info: dict[str, Any]) -> bool:
    path = root / f"annotations/captions_{split}2017.json"
    if not path.is_file():
        return False
    content = read_json(path)
    with parsing(path, "captions in COCO's format"):
        there = content["info"]
    if there != info:
        keys = sorted(k for k in {*there, *info} if there.get(k) != info.get(k))
        differ = ", ".join(f"{k} {there.get(k)} instead of {info.get(k)}" for k in keys)
        raise DatasetError(
            f"{path}: another '{split}' is there already ({differ}); name another folder, or "
            "remove that file to have it drawn anew"
        )
    return True


def check_split(root: Path, split: str, workers: int) -> list[Row]:
    """Read again what was written.

    Raises:
        DatasetError: what is wrong first, by name.
    """
    annotations, images = root / "annotations", root / f"{split}2017"
    path = annotations / f"captions_{split}2017.json"
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; run this program without --verify-only")
    content = read_json(path)
    files = [
        path_inside(images, image["file_name"], DatasetError, str(path))
        for image in rows_of(content, "images", path, file_name=TEXT)
    ]
    count = len(rows_of(content, "annotations", path))
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DatasetError(
            f"{missing[0]}: no such file, and {len(missing) - 1} more are missing; remove {path} "
            "to have them drawn anew"
        )
    rows = [Row(images, "images", len(files)), Row(path, "captions", count)]
    if split == "web":
        return rows
    every = max(1, len(files) // _VERIFIED)
    path = annotations / f"panoptic_{split}2017.json"
    found = verify_panoptic(
        path, path.with_suffix(""), images, every=every, workers=workers,
        description=f"verify {split}",
    )  # fmt: skip
    rows.append(Row(path, "classes that occur", found.classes))
    path = annotations / f"instances_{split}2017.json"
    found = verify_instances(path, images, workers=workers)
    rows.append(Row(path, "things", found.segments))
    return rows


def write_phrases(root: Path, split: str) -> Row:
    """The noun phrases of a split's captions."""
    # late: brings OpenMMLab's packages
    from odise_mm.converters import coco
    from odise_mm.datasets.noun_phrases import NounPhrases

    extract = NounPhrases()
    coco.write_phrases(root, split, extract, extract.tagger.name, extract.grammar)
    path = root / f"annotations/phrases_{split}2017.json"
    phrases = read_json(path)["phrases"]
    count = sum(len(caption) for image in phrases.values() for caption in image)
    return Row(path, f"noun phrases ({extract.tagger.name})", count)


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {value}")
    return value


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = converter_parser(__doc__, "data/toy_world", SPLITS, "train", "val")
    defaults = ", ".join(f"{split} {number:,}" for split, number in DEFAULT_NUMBER.items())
    parser.add_argument(
        "--number",
        type=positive_int,
        nargs="+",
        metavar="N",
        help=f"scenes: one number for each of --splits, or one for all (default: {defaults})",
    )
    parser.add_argument("--seed", type=_seed, default=0, help="a whole number from 0 (default: 0)")
    parser.add_argument(
        "--novel-in-train",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="training images show novel things, too, unlabeled (default: they do, as in COCO)",
    )
    args = parser.parse_args(argv)
    numbers = args.number or [DEFAULT_NUMBER[split] for split in args.splits]
    if len(numbers) == 1:
        numbers *= len(args.splits)
    if len(numbers) != len(args.splits):
        parser.error(f"--number takes 1 or {len(args.splits)} numbers here, not {len(numbers)}")
    args.number = dict(zip(args.splits, numbers, strict=True))
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with program():
        rows = []
        if not args.verify_only:
            check_own(args.data_root)
        for split in args.splits:
            if not args.verify_only:
                options = dict(split=split, number=args.number[split], seed=args.seed)
                # only here it makes a difference
                options["novel_in_train"] = args.novel_in_train and split == "train"
                write_split(args.data_root, options, args.workers)
            rows += check_split(args.data_root, split, args.workers)
            if split != "web" and not args.verify_only:
                rows.append(write_phrases(args.data_root, split))
        show_written("toy world", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
