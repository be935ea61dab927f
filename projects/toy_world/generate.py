#!/usr/bin/env python
"""Draw a dataset of the toy world in COCO's layout, with COCO's file names.

    train2017/, val2017/, web2017/             images, 128 x 128, JPEG
    annotations/panoptic_{train,val}2017/      one PNG file of segment ids per image
    annotations/panoptic_{train,val}2017.json
    annotations/instances_{train,val}2017.json masks of things, as run lengths
    annotations/captions_{split}2017.json      five captions per image
    annotations/phrases_{train,val}2017.json   noun phrases of the captions

`train` is for training segmentation: none of its masks, categories, captions or phrases has a novel
name. `val` has all names. `web` is for pre-training: images and captions with all names. The same
options write the same bytes, whatever the number of processes. Scene n is the same in a small and
in a large dataset.

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
from odise_mm.utils.command_line import fraction, positive_int
from odise_mm.utils.files import atomic_writer, path_inside, write_json
from projects.toy_world.names import NAMES, NEW_NAMES, names_of
from projects.toy_world.world import SIZE, SPLITS, Scene, scene

DEFAULT_NUMBER = {"web": 8000, "train": 8000, "val": 500}
QUALITY = 92  # JPEG quality; color has full resolution, so that borders between colors stay sharp
LOOK = 1  # version of the drawings; increase it when a change makes a seed draw something else
_VERIFIED = 1000  # approximate number of files per split that are read again


def draw(item: Item) -> dict[str, Any]:
    """Write the files of one scene.

    Returns:
        Facts for the JSON files: "captions" and, except for "web", "segments" and "masks".
    """
    options, index = item.data
    split = options["split"]
    made = scene(
        (options["seed"], index),
        split,
        novel_in_train=options["novel_in_train"],
        new_share=options.get("new_share", 0),
    )
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
    """Draw a split, or the part that an interrupted run did not finish.

    Args:
        root: Folder of the dataset.
        options: Options of the split: ``split``, ``number``, ``seed``, ``novel_in_train``, and
            ``new_share`` if it is not 0.
        workers: Number of processes.

    Raises:
        DatasetError: The split exists with other options, or its files were not written by this
            program.
    """
    split, info = options["split"], _info(options)
    if _is_written(root, split, info):
        return
    annotations = root / "annotations"
    # one journal per options, because a run with other options replaces the files of the others
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
    finish(
        annotations / f"captions_{split}2017.json", content, journal
    )  # last: marks the split as complete


def _write_masks(annotations: Path, info: dict, images: list[dict], known: list[dict]) -> None:
    split = info["split"]
    # training files must not even list the novel names
    listed = names_of("base") if split == "train" else NAMES
    if info.get("new_share"):
        listed += NEW_NAMES
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
    """Refuse a folder that contains files which this program did not write.

    Raises:
        DatasetError: The folder contains such files.
    """
    paths = [path for path in root.iterdir() if path.name[0] != "."] if root.is_dir() else []
    if not paths or (root / MADE).is_file() or any(root.glob("annotations/toy_*.journal")):
        return
    for path in root.glob("annotations/captions_*2017.json"):  # written before that record existed
        content = read_json(path)
        info = content.get("info") if isinstance(content, dict) else None
        if isinstance(info, dict) and info.get("description") == "toy world":
            return
    raise DatasetError(
        f"{root}: contains files that this program did not write ({paths[0].name}, ...); use a new "
        "or empty folder"
    )


def _info(options: dict[str, Any]) -> dict[str, Any]:
    return dict(description="toy world", look=LOOK, **options)


def _is_written(root: Path, split: str, info: dict[str, Any]) -> bool:
    path = root / f"annotations/captions_{split}2017.json"
    if not path.is_file():
        return False
    content = read_json(path)
    with parsing(path, "captions in COCO's format"):
        old = content["info"]
    if old != info:
        keys = sorted(k for k in {*old, *info} if old.get(k) != info.get(k))
        differences = ", ".join(f"{k} {old.get(k)} instead of {info.get(k)}" for k in keys)
        raise DatasetError(
            f"{path}: '{split}' already exists with other options ({differences}); use another "
            "folder, or remove that file to draw the split again"
        )
    return True


def check_split(root: Path, split: str, workers: int) -> list[Row]:
    """Check the written files of a split.

    Raises:
        DatasetError: A file is missing or invalid; the message names the first one.
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
            f"{missing[0]}: no such file; {len(missing)} of {len(files)} images are missing; "
            f"remove {path} to draw them again"
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
    rows.append(Row(path, "classes present", found.classes))
    path = annotations / f"instances_{split}2017.json"
    found = verify_instances(path, images, workers=workers)
    rows.append(Row(path, "things", found.segments))
    return rows


def write_phrases(root: Path, split: str) -> Row:
    """Write the noun phrases of a split's captions.

    Returns:
        Row with their number.
    """
    # imported here because it imports OpenMMLab's packages
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
        help=f"number of scenes: one per split, or one for all (default: {defaults})",
    )
    parser.add_argument(
        "--seed", type=_seed, default=0, help="seed, an integer from 0 (default: 0)"
    )
    parser.add_argument(
        "--novel-in-train",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw novel things in training images, unlabeled (default: yes, as in COCO)",
    )
    parser.add_argument(
        "--new-share",
        type=fraction,
        default=0,
        metavar="P",
        help="probability that a thing or a region of stuff in 'val' gets a new name, with a shape "
        "or texture that occurs nowhere else (default: 0)",
    )
    args = parser.parse_args(argv)
    if args.new_share and "val" not in args.splits:
        parser.error("--new-share is for the split 'val'")
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
                # the other splits do not depend on it
                options["novel_in_train"] = args.novel_in_train and split == "train"
                if args.new_share and split == "val":
                    options["new_share"] = args.new_share
                write_split(args.data_root, options, args.workers)
            rows += check_split(args.data_root, split, args.workers)
            if split != "web" and not args.verify_only:
                rows.append(write_phrases(args.data_root, split))
        show_written("toy world", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
