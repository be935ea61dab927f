"""ADE20K with 150 classes: panoptic and instance annotations in COCO's format.

Unpack ADEChallengeData2016.zip (images/, annotations/) and annotations_instance.tar of the scene
parsing benchmark into one folder. The converter writes panoptic_val.json, panoptic_val/ and
instances_val.json there (panoptic_train.json and so on for ``--splits train``). The semantic label
maps are used unchanged. Category ids are those of SceneParsing, 1 to 150.

Stuff segments come from the semantic maps. Thing segments come from the instance maps and cover the
stuff. Pixels of a thing class that belong to no instance stay empty.

Example:
    python tools/dataset_converters/ade20k.py data/ADEChallengeData2016
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from odise_mm.annotations.label_maps import read_label_map
from odise_mm.annotations.panoptic_io import ids_to_rgb
from odise_mm.converters.claims import claim
from odise_mm.converters.files import (
    need_file,
    need_folder,
    parsing,
    read_json,
    read_pixels,
    write_png,
)
from odise_mm.converters.masks import box_of
from odise_mm.converters.program import Row, alone_in, converter_parser, show_written
from odise_mm.converters.verification import (
    same_size,
    verify_instances,
    verify_panoptic,
    verify_semantic,
)
from odise_mm.converters.work import Item, convert_all, finish, is_complete
from odise_mm.errors import DatasetError
from odise_mm.structures.geometry import encode_mask
from odise_mm.utils.files import write_json

FOLDERS = {"train": "training", "val": "validation"}
EXPECTED = {"train": 20210, "val": 2000}
CLASSES, THINGS = 150, 100


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = converter_parser(__doc__, "data/ADEChallengeData2016", list(FOLDERS))
    return parser.parse_args(argv)


def categories() -> list[dict]:
    """Return SceneParsing's classes as COCO ``categories``; ids count from 1."""
    from odise_mm.vocabulary import Vocabulary  # imports torch, which workers do not need

    vocabulary = Vocabulary.load("ade20k")
    return [
        dict(id=index, name=name, isthing=int(thing))
        for index, (name, thing) in enumerate(
            zip(vocabulary.source_names, vocabulary.is_thing, strict=True), start=1
        )
    ]


def image_paths(root: Path, split: str) -> list[Path]:
    """Return the split's image files, sorted by name.

    Raises:
        DatasetError: A folder of the archive is missing, or there are no images.
    """
    folder = need_folder(root / "images" / FOLDERS[split], "unpack ADEChallengeData2016.zip")
    need_folder(root / "annotations" / FOLDERS[split], "unpack ADEChallengeData2016.zip")
    need_folder(root / "annotations_instance" / FOLDERS[split], "unpack annotations_instance.tar")
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        raise DatasetError(f"{folder}: no images (*.jpg); unpack ADEChallengeData2016.zip again")
    return paths


def convert(root: Path, split: str, workers: int) -> str | None:
    """Write the panoptic and instance annotations of a split.

    Returns:
        A note about files whose semantic and instance maps disagree, or None if all agree.

    Raises:
        DatasetError: A file is missing or invalid; the message names the first one.
    """
    panoptic, instances = root / f"panoptic_{split}.json", root / f"instances_{split}.json"
    paths, folder = image_paths(root, split), root / f"panoptic_{split}"
    classes = categories()
    things = [category["id"] for category in classes if category["isthing"]]
    items = []
    for path in paths:
        name = f"{path.stem}.png"
        maps = root / "annotations" / FOLDERS[split] / name
        source = need_file(
            root / "annotations_instance" / FOLDERS[split] / name, "unpack annotations_instance.tar"
        )
        data = (path, need_file(maps, "unpack ADEChallengeData2016.zip"), things)
        items.append(Item(source, folder / name, data))
        if not path.stem.rpartition("_")[2].isdecimal():
            raise DatasetError(f"{path}: the file name must end with a number")
    if (panoptic.exists() and instances.exists()) and all(is_complete(i.output) for i in items):
        return None
    journal = root / f".panoptic_{split}.journal"
    claim(root, [panoptic, instances, folder], [journal])
    found = convert_all(items, convert_image, f"ADE20K {split}", workers, journal=journal)
    disagreeing = _compare(items, found)
    images, segments, objects = [], [], []
    for item, facts in zip(items, found, strict=True):
        height, width = facts["size"]
        number = int(item.output.stem.rpartition("_")[2])
        images.append(dict(id=number, file_name=item.data[0].name, height=height, width=width))
        segments.append(
            dict(image_id=number, file_name=item.output.name, segments_info=facts["segments"])
        )
        for instance in facts["instances"]:
            objects.append(dict(id=len(objects) + 1, image_id=number, iscrowd=0, **instance))
    info = dict(description=f"ADE20K scene parsing, {FOLDERS[split]}")
    write_json(
        instances,
        dict(
            info=info,
            images=images,
            annotations=objects,
            categories=[c for c in classes if c["isthing"]],
        ),
    )
    finish(
        panoptic,
        dict(info=info, images=images, annotations=segments, categories=classes),
        journal,
    )
    return disagreeing


def convert_image(item: Item) -> dict[str, Any]:
    """Write the panoptic PNG file of one image.

    Returns:
        Facts for the JSON files: "size" (height, width), "segments" and "instances" (COCO's
        format), and the number of pixels that have a class in both maps ("both") and in both the
        same ("agree").

    Raises:
        DatasetError: The maps and the image differ in size, or a label is out of range.
    """
    image, semantic_path, things = item.data
    semantic = read_label_map(semantic_path)
    same_size(semantic, semantic_path, image)
    instance = read_pixels(item.source, ("RGB", "RGBA"))
    same_size(instance, item.source, image)
    if semantic.max(initial=0) > CLASSES:
        raise DatasetError(
            f"{semantic_path}: label {semantic.max()} is out of range; SceneParsing has labels 0 "
            f"to {CLASSES}"
        )
    # red: index among the thing classes, from 1; green: number of the object
    place, number = instance[..., 0].astype(np.int64), instance[..., 1].astype(np.int64)
    if place.max(initial=0) > THINGS:
        raise DatasetError(
            f"{item.source}: class {place.max()} is out of range; the red channel must be 0 to "
            f"{THINGS}"
        )
    category = np.array([0, *things])[place]
    ids = np.zeros(semantic.shape, np.int32)
    segments = []
    for label in np.unique(semantic):
        if label and int(label) not in things:
            segments.append(dict(id=len(segments) + 1, category_id=int(label)))
            ids[semantic == label] = len(segments)
    objects = []
    for key in np.unique((place * 256 + number)[place > 0]):
        mask = (place * 256 + number) == key
        segments.append(dict(id=len(segments) + 1, category_id=int(things[key // 256 - 1])))
        ids[mask] = len(segments)
        encoded = encode_mask(mask)
        objects.append(
            dict(
                category_id=segments[-1]["category_id"],
                segmentation=dict(size=encoded["size"], counts=encoded["counts"].decode()),
                area=int(mask.sum()),
                bbox=box_of(mask),
            )
        )
    kept = []
    for segment in segments:
        mask = ids == segment["id"]
        if mask.any():  # things may cover a stuff segment completely
            kept.append(dict(segment, iscrowd=0, area=int(mask.sum()), bbox=box_of(mask)))
    write_png(item.output, ids_to_rgb(ids))
    both = (category > 0) & (semantic > 0)
    return dict(
        size=list(semantic.shape),
        segments=kept,
        instances=objects,
        both=int(both.sum()),
        agree=int((category == semantic)[both].sum()),
    )


def _compare(items: Sequence[Item], found: Sequence[dict]) -> str | None:
    """Check that instance classes 1 to 100 are the thing classes in SceneParsing's order.

    The provider's list (instanceInfo100) has this order. To check it on the files, count the pixels
    whose class is the same in the instance map and in the semantic map. A single file may differ,
    because objects cover each other, but most pixels of all files must agree.
    """
    odd = [
        item.source
        for item, facts in zip(items, found, strict=True)
        if 2 * facts["agree"] < facts["both"]
    ]
    agree, both = (sum(facts[key] for facts in found) for key in ("agree", "both"))
    if both and 2 * agree <= both:
        raise DatasetError(
            f"{odd[0]}: the classes of the instances differ from the semantic map (in {len(odd)} "
            f"of {len(items)} files); make sure that annotations/ and annotations_instance/ are "
            "from the same release"
        )
    if odd:
        return (
            f"{len(odd)} files in which the class of most instance pixels differs from the "
            f"semantic map (the first: {odd[0]})"
        )
    return None


def verify(root: Path, split: str, workers: int) -> list[Row]:
    """Check the written annotations of a split and the original semantic maps.

    Raises:
        DatasetError: A file is missing or invalid; the message names the first one.
    """
    images = root / "images" / FOLDERS[split]
    paths = image_paths(root, split)
    panoptic, instances = root / f"panoptic_{split}.json", root / f"instances_{split}.json"
    for path in (panoptic, instances):
        if not path.exists():
            raise DatasetError(f"{path}: not written yet; run this program without --verify-only")
        wanted = [c for c in categories() if path == panoptic or c["isthing"]]
        with parsing(path):
            if read_json(path)["categories"] != wanted:
                raise DatasetError(
                    f"{path}: its categories are not SceneParsing's; remove the file and run this "
                    "program again"
                )
    labels = root / "annotations" / FOLDERS[split]
    pairs = [(path, labels / f"{path.stem}.png") for path in paths]
    label_counts = verify_semantic(pairs, CLASSES, reduce_zero_label=True, workers=workers)
    panoptic_counts = verify_panoptic(panoptic, panoptic.with_suffix(""), images, workers=workers)
    instance_counts = verify_instances(instances, images, workers=workers)
    for path, counted in ((panoptic, panoptic_counts), (instances, instance_counts)):
        if counted.images != len(paths):
            raise DatasetError(
                f"{path}: {counted.images} images, but {images} has {len(paths)}; remove the file "
                "and run this program again"
            )
    return [
        Row(labels, "semantic label maps", label_counts.images, EXPECTED[split]),
        Row(panoptic, "images", panoptic_counts.images, EXPECTED[split]),
        Row(panoptic, "segments", panoptic_counts.segments),
        Row(panoptic, "classes present", panoptic_counts.classes),
        Row(instances, "objects", instance_counts.segments),
        Row(instances, "classes present", instance_counts.classes),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    rows, notes = [], []
    with alone_in(args.data_root, args.verify_only):
        for split in args.splits:
            if not args.verify_only:
                notes.append(convert(args.data_root, split, args.workers))
            rows += verify(args.data_root, split, args.workers)
    show_written("ADE20K, 150 classes", rows, [note for note in notes if note])
