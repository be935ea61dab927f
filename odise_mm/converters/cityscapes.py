"""Prepare Cityscapes: panoptic, instance and semantic annotations of the 19 evaluated classes.

Unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip in DATA_ROOT. For every split (train
has 2,975 images, val 500), the converter writes there:

    annotations/panoptic_SPLIT.json, annotations/panoptic_SPLIT/CITY/*_gtFine_panoptic.png
    annotations/instances_SPLIT.json           (the 8 classes with instances)
    gtFine/SPLIT/CITY/*_gtFine_labelTrainIds.png    (class indices 0 to 18; 255: ignored)

Segment ids and categories equal those of createPanopticImgs in cityscapesscripts. The id of a
segment is its number in *_instanceIds.png. If a class has instances, a number below 1000 stands for
a group of them, which is annotated as crowd.

Example:
    python tools/dataset_converters/cityscapes.py data/cityscapes --splits val
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from odise_mm.annotations.label_maps import read_label_map
from odise_mm.annotations.panoptic_io import ids_to_rgb, read_panoptic_png
from odise_mm.converters.claims import claim
from odise_mm.converters.files import need_folder, read_json, write_png
from odise_mm.converters.masks import box_of
from odise_mm.converters.program import Row, alone_in, converter_parser, program, show_written
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

UNPACK_IMAGES = "unpack leftImg8bit_trainvaltest.zip"
UNPACK_LABELS = "unpack gtFine_trainvaltest.zip"
NUM_IMAGES = {"train": 2975, "val": 500}  # of the complete dataset
IMAGE, INSTANCES, LABELS = "_leftImg8bit.png", "_gtFine_instanceIds.png", "_gtFine_labelIds.png"
TRAIN_IDS, PANOPTIC = "_gtFine_labelTrainIds.png", "_gtFine_panoptic.png"
IGNORED, INSTANCES_PER_LABEL, NUM_LABELS = 255, 1000, 34


class Label(NamedTuple):
    """Evaluated class: its id in the provider's files, its name, and whether it has instances."""

    id: int
    name: str
    is_thing: bool


# In the order of the class indices (the provider's "train ids").
CLASSES = (
    Label(7, "road", False),
    Label(8, "sidewalk", False),
    Label(11, "building", False),
    Label(12, "wall", False),
    Label(13, "fence", False),
    Label(17, "pole", False),
    Label(19, "traffic light", False),
    Label(20, "traffic sign", False),
    Label(21, "vegetation", False),
    Label(22, "terrain", False),
    Label(23, "sky", False),
    Label(24, "person", True),
    Label(25, "rider", True),
    Label(26, "car", True),
    Label(27, "truck", True),
    Label(28, "bus", True),
    Label(31, "train", True),
    Label(32, "motorcycle", True),
    Label(33, "bicycle", True),
)
_BY_ID = {label.id: label for label in CLASSES}
_THINGS = tuple(label for label in CLASSES if label.is_thing)
# Maps all numbers of an 8-bit file from label ids to class indices.
_TO_INDEX = np.full(256, IGNORED, np.uint8)
_TO_INDEX[[label.id for label in CLASSES]] = np.arange(len(CLASSES))


def find_images(root: Path, split: str) -> list[Path]:
    """Return the split's image files, sorted by path.

    Raises:
        DatasetError: A folder is missing, or there are no images.
    """
    folder = need_folder(root / "leftImg8bit" / split, UNPACK_IMAGES)
    need_folder(root / "gtFine" / split, UNPACK_LABELS)
    found = sorted(folder.glob(f"*/*{IMAGE}"))
    if not found:
        raise DatasetError(f"{folder}: contains no CITY/*{IMAGE}; {UNPACK_IMAGES} again")
    return found


def prepare(root: Path, split: str, workers: int) -> None:
    """Write the annotation files of one split.

    Raises:
        DatasetError: A file is missing or invalid; the message names the first one.
    """
    images = find_images(root, split)
    annotations = root / "annotations"
    items = []
    for image in images:
        stem = f"{image.parent.name}/{image.name.removesuffix(IMAGE)}"
        labels = root / "gtFine" / split / stem
        items.append(
            Item(
                labels.with_name(labels.name + INSTANCES),
                annotations / f"panoptic_{split}" / (stem + PANOPTIC),
                data=image,
            )
        )
    written = [annotations / f"{kind}_{split}.json" for kind in ("panoptic", "instances")]
    written += [path for i in items for path in (i.output, _train_ids(root, split, i.data))]
    if all(map(is_complete, written)):
        return
    journal = annotations / f".panoptic_{split}.journal"
    claim(root, [*written[:2], annotations / f"panoptic_{split}"], [journal])
    facts = convert_all(items, _convert, f"cityscapes {split}", workers, journal=journal)
    entries, panoptic, instances = [], [], []
    for number, (image, item, fact) in enumerate(zip(images, items, facts, strict=True), start=1):
        name = f"{image.parent.name}/{image.name}"
        entries.append(dict(id=number, file_name=name, height=fact["height"], width=fact["width"]))
        name = f"{item.output.parent.name}/{item.output.name}"
        infos = [{k: v for k, v in s.items() if k != "rle"} for s in fact["segments"]]
        panoptic.append(dict(image_id=number, file_name=name, segments_info=infos))
        for segment in fact["segments"]:
            if "rle" in segment:
                mask = dict(size=[fact["height"], fact["width"]], counts=segment["rle"])
                instances.append(
                    dict(
                        id=len(instances) + 1,
                        image_id=number,
                        category_id=segment["category_id"],
                        iscrowd=segment["iscrowd"],
                        area=segment["area"],
                        bbox=segment["bbox"],
                        segmentation=mask,
                    )
                )
    write_json(
        annotations / f"instances_{split}.json",
        dict(images=entries, annotations=instances, categories=_categories(_THINGS)),
    )
    finish(
        annotations / f"panoptic_{split}.json",
        dict(images=entries, annotations=panoptic, categories=_categories(CLASSES)),
        journal,
    )


def _categories(labels: tuple[Label, ...]) -> list[dict]:
    return [dict(id=label.id, name=label.name, isthing=int(label.is_thing)) for label in labels]


def _convert(item: Item) -> dict:
    """Write the label map and the panoptic map of one image.

    Returns:
        "height", "width" and "segments"; the segments of things also have a mask, "rle".
    """
    ids = read_label_map(item.source)
    same_size(ids, item.source, item.data)
    path = item.source.with_name(item.source.name.replace(INSTANCES, LABELS))
    labels = read_label_map(path)
    same_size(labels, path, item.data)
    unknown = np.setdiff1d(labels, np.arange(NUM_LABELS))
    if unknown.size:
        raise DatasetError(
            f"{path}: unknown label {unknown[0]}; Cityscapes has 0 to {NUM_LABELS - 1}"
        )
    write_png(path.with_name(path.name.replace(LABELS, TRAIN_IDS)), _TO_INDEX[labels])
    segments = [s for number in np.unique(ids) if (s := _segment(ids, int(number))) is not None]
    kept = np.where(np.isin(ids, [s["id"] for s in segments]), ids, 0)
    write_png(item.output, ids_to_rgb(kept))
    return dict(height=ids.shape[0], width=ids.shape[1], segments=segments)


def _label_of(number: int | np.ndarray) -> np.ndarray:
    """Return the label ids of numbers in *_instanceIds.png."""
    return np.where(number < INSTANCES_PER_LABEL, number, number // INSTANCES_PER_LABEL)


def _segment(ids: np.ndarray, number: int) -> dict | None:
    """Return a segment in COCO's format, or None if its class is not evaluated."""
    label = _BY_ID.get(int(_label_of(number)))
    if label is None:
        return None
    mask = ids == number
    segment = dict(
        id=number,
        category_id=label.id,
        area=int(mask.sum()),
        bbox=box_of(mask),
        iscrowd=int(label.is_thing and number < INSTANCES_PER_LABEL),
    )
    if label.is_thing:
        segment["rle"] = encode_mask(mask)["counts"].decode("ascii")
    return segment


def verify(root: Path, split: str, workers: int) -> list[Row]:
    """Check the annotation files of one split against each other and the provider's files.

    Raises:
        DatasetError: A file is missing or invalid; the message names the first one.
    """
    images = find_images(root, split)
    folder, images_folder = root / "annotations", root / "leftImg8bit" / split
    path = folder / f"panoptic_{split}.json"
    panoptic = verify_panoptic(path, path.with_suffix(""), images_folder, workers=workers)
    if panoptic.images != len(images):
        raise DatasetError(
            f"{path}: {panoptic.images} images, but leftImg8bit/{split} has {len(images)}; "
            "remove it and run this program again"
        )
    instances = verify_instances(folder / f"instances_{split}.json", images_folder, workers=workers)
    things = {label.id for label in _THINGS}
    masks = sum(
        s["category_id"] in things
        for a in read_json(path)["annotations"]
        for s in a["segments_info"]
    )
    if instances.images != panoptic.images or instances.segments != masks:
        raise DatasetError(
            f"{folder / f'instances_{split}.json'}: {instances.segments} masks in "
            f"{instances.images} images, but {path.name} has {masks} in {panoptic.images}; remove "
            "both and run this program again"
        )
    pairs = [(image, _train_ids(root, split, image)) for image in images]
    verify_semantic(pairs, len(CLASSES), workers=workers)
    _compare(root, split, images, workers)
    return [
        Row(path, "images", panoptic.images, NUM_IMAGES[split]),
        Row(path, "segments", panoptic.segments),
        Row(folder / f"instances_{split}.json", "masks", instances.segments),
        Row(root / "gtFine" / split, "label maps", len(pairs), NUM_IMAGES[split]),
    ]


def _train_ids(root: Path, split: str, image: Path) -> Path:
    name = image.name.replace(IMAGE, TRAIN_IDS)
    return root / "gtFine" / split / image.parent.name / name


def _compare(root: Path, split: str, images: list[Path], workers: int) -> None:
    """Compare panoptic maps and label maps with the provider's files, pixel by pixel."""
    items = []
    for image in images:
        name = image.name.removesuffix(IMAGE)
        raw = root / "gtFine" / split / image.parent.name / name
        made = root / "annotations" / f"panoptic_{split}" / image.parent.name / name
        items.append(Item(raw, data=made.with_name(name + PANOPTIC)))
    convert_all(items, _check_pixels, "verify pixels", workers)


def _check_pixels(item: Item) -> None:
    def raw(suffix: str) -> Path:
        return item.source.with_name(item.source.name + suffix)

    numbers = read_label_map(raw(INSTANCES)).astype(np.int32)
    segments = np.where(_TO_INDEX[_label_of(numbers)] == IGNORED, 0, numbers)
    for path, found, source, right in (
        (item.data, read_panoptic_png(item.data), raw(INSTANCES), segments),
        (raw(TRAIN_IDS), read_label_map(raw(TRAIN_IDS)), raw(LABELS),
         _TO_INDEX[read_label_map(raw(LABELS))]),
    ):  # fmt: skip
        if not np.array_equal(found, right):
            raise DatasetError(
                f"{path}: its pixels differ from {source.name}; remove it and run this program "
                "again"
            )


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    parser = converter_parser(__doc__, "data/cityscapes", ["train", "val"])
    args = parser.parse_args(argv)
    with program(), alone_in(args.data_root, args.verify_only):
        rows = []
        for split in args.splits:
            if not args.verify_only:
                prepare(args.data_root, split, args.workers)
            rows += verify(args.data_root, split, args.workers)
        show_written("Cityscapes", rows)
    return 0
