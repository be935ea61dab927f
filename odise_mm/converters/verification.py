"""Check prepared annotations against their images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from odise_mm.annotations.coco_json import CocoFile, image_name, read_coco, used_categories
from odise_mm.annotations.json_fields import FLAG, fault, shown
from odise_mm.annotations.label_maps import IGNORED, class_indices, read_label_map
from odise_mm.annotations.panoptic_io import read_panoptic_png
from odise_mm.converters.files import image_size, parsing
from odise_mm.converters.masks import box_of, measured_mask
from odise_mm.converters.work import Item, convert_all
from odise_mm.errors import DatasetError
from odise_mm.utils.files import path_inside
from odise_mm.utils.image import turned_hint


@dataclass(frozen=True)
class Verified:
    """Result of a verification.

    Attributes:
        images: Number of images.
        classes: Number of classes present.
        segments: Number of segments or masks (panoptic and instance files).
        notes: Notes about annotations that cannot be used.
    """

    images: int
    classes: int
    segments: int = 0
    notes: tuple[str, ...] = ()


def same_size(labels: np.ndarray, path: Path, image: Path) -> None:
    """Check that a label map has the size of its image.

    Raises:
        DatasetError: The sizes differ, or the image cannot be read.
    """
    height, width = image_size(image)
    if labels.shape[:2] != (height, width):
        raise DatasetError(
            f"{path}: {labels.shape[1]} x {labels.shape[0]} pixels, but its image {image} has "
            f"{width} x {height}" + turned_hint(labels.shape[:2], (height, width), image)
        )


def verify_semantic(
    pairs: Sequence[tuple[Path, Path]],
    num_classes: int,
    *,
    reduce_zero_label: bool = False,
    workers: int = 1,
    description: str = "verify labels",
) -> Verified:
    """Check that label maps are readable, have the size of their image, and valid labels.

    Args:
        pairs: Pairs (image, label PNG).
        num_classes: Labels are 0 to ``num_classes - 1``; 255 in 8-bit and 65535 in 16-bit files
            are ignored.
        reduce_zero_label: Labels are 1 to ``num_classes`` and 0 is ignored, as in original files.
        workers: Number of processes.
        description: Label of the progress bar.

    Raises:
        DatasetError: There are no pairs, or a pair is invalid; the message names the first one.
    """
    if not pairs:
        raise DatasetError("nothing to verify: no images found")
    items = [Item(Path(label), data=Path(image)) for image, label in pairs]
    work = partial(_check_labels, num_classes=num_classes, from_one=reduce_zero_label)
    found = convert_all(items, work, description, workers)
    return Verified(len(pairs), len(set().union(*found)))


def _check_labels(item: Item, num_classes: int, from_one: bool) -> list[int]:
    numbers = read_label_map(item.source)
    same_size(numbers, item.source, item.data)
    labels = class_indices(numbers, item.source, num_classes, from_one)
    return [int(label) for label in np.unique(labels) if label != IGNORED]


def verify_panoptic(
    json_path: str | os.PathLike,
    folder: str | os.PathLike,
    images_folder: str | os.PathLike,
    *,
    check_areas: bool = True,
    every: int = 1,
    workers: int = 1,
    description: str = "verify panoptic",
) -> Verified:
    """Check panoptic annotations in COCO's format against their PNG files and images.

    Ids of images, categories and the segments of an image must be unique, categories must be known,
    and an image must not have two segments of a stuff class. The JSON file and the PNG files must
    contain the same segments with the same areas and boxes. JSON file, PNG file and image must
    agree in size.

    Args:
        json_path: The JSON file.
        folder: Folder of the PNG files.
        images_folder: Folder of the images (``file_name`` in the JSON file).
        check_areas: Whether to check areas and boxes; False if the provider computed them.
        every: Read only every n-th PNG file and image.
        workers: Number of processes.
        description: Label of the progress bar.

    Raises:
        DatasetError: A file is missing or invalid; the message names the first one.
    """
    content = read_coco(json_path, "panoptic")
    annotations, images = content.annotations, content.images
    _not_empty(content)
    # read_coco has checked that an image has at most one annotation, and every annotation an image
    if len(annotations) != len(images):
        raise DatasetError(
            f"{json_path}: {len(images)} images but {len(annotations)} annotations; every image "
            "needs one"
        )
    for id_, category in content.categories.items():
        problem = fault(category, "isthing", FLAG)
        if problem:
            raise DatasetError(f"{json_path}: category {shown(id_)} {problem}")
    things = {id_: bool(category["isthing"]) for id_, category in content.categories.items()}
    items = []
    for annotation in annotations:
        image = images[annotation["image_id"]]
        where = f"{json_path}: image {shown(image['id'])}"
        image_path = path_inside(images_folder, image_name(image), DatasetError, where)
        png = path_inside(folder, annotation["file_name"], DatasetError, where)
        items.append(Item(png, data=(image_path, image, annotation["segments_info"])))
    classes = used_categories(annotations)
    work = partial(_check_panoptic, things=things, check_areas=check_areas)
    found = convert_all(items[::every], work, description, workers)
    return Verified(len(images), len(classes), sum(found))


def _not_empty(content: CocoFile) -> None:
    for key in ("images", "categories"):
        if not getattr(content, key):
            raise DatasetError(f"{content.path}: '{key}' is empty")


def _check_size(path: Path, image: dict, shape: Iterable[int]) -> None:
    height, width = shape
    if (height, width) != (image["height"], image["width"]):
        raise DatasetError(
            f"{path}: {width} x {height} pixels, but {image['width']} x {image['height']} in the "
            "JSON" + turned_hint((image["height"], image["width"]), (height, width), path)
        )


def _check_panoptic(item: Item, things: dict[int, bool], check_areas: bool) -> int:
    image_path, image, infos = item.data
    with parsing(item.source, "described completely by the JSON"):
        return _compare_segments(item.source, image_path, image, infos, things, check_areas)


def _compare_segments(
    path: Path,
    image_path: Path,
    image: dict,
    infos: list[dict],
    things: dict[int, bool],
    check_areas: bool,
) -> int:
    ids = read_panoptic_png(path)
    _check_size(path, image, ids.shape)
    _check_size(image_path, image, image_size(image_path))
    listed = [info["id"] for info in infos]
    if len(set(listed)) != len(listed) or 0 in listed:
        raise DatasetError(f"{path}: a segment id occurs twice or is 0")
    drawn, areas = np.unique(ids, return_counts=True)
    area_of = {int(i): int(a) for i, a in zip(drawn, areas, strict=True) if i}
    for what, missing in (
        ("the JSON lacks", set(area_of) - set(listed)),
        ("the PNG lacks", set(listed) - set(area_of)),
    ):
        if missing:
            raise DatasetError(f"{path}: {what} segment {min(missing)}")
    stuff_seen = set()
    for info in infos:
        category = info["category_id"]
        if category not in things:
            raise DatasetError(
                f"{path}: segment {info['id']} has category {category}, which is not in "
                "'categories'"
            )
        if not things[category] and category in stuff_seen:
            raise DatasetError(f"{path}: two segments of the stuff category {category}")
        stuff_seen.add(category)
        if check_areas and (
            info["area"] != area_of[info["id"]] or info["bbox"] != box_of(ids == info["id"])
        ):
            raise DatasetError(
                f"{path}: area or box of segment {info['id']} differs between JSON and PNG"
            )
    return len(listed)


def verify_instances(
    json_path: str | os.PathLike,
    images_folder: str | os.PathLike,
    *,
    workers: int = 1,
    tolerant: bool = False,
) -> Verified:
    """Check instance annotations in COCO's format against their images.

    Ids must be unique, images and categories known, and sizes must agree. Boxes must lie inside the
    image. For masks stored as run lengths, area and box must be those of the mask.

    Args:
        json_path: The JSON file.
        images_folder: Folder of the images.
        workers: Number of processes.
        tolerant: Whether masks that cannot be used are noted instead of an error. For files of
            providers.

    Raises:
        DatasetError: A file is missing or invalid; the message names the first one.
    """
    content = read_coco(json_path, "instance")
    _not_empty(content)
    if content.notes and not tolerant:
        raise DatasetError(content.notes[0])
    annotations_of: dict[Any, list[dict]] = {id_: [] for id_ in content.images}
    for annotation in content.annotations:
        if annotation["category_id"] not in content.categories:
            raise DatasetError(
                f"{json_path}: annotation {shown(annotation.get('id'))} has category "
                f"{shown(annotation['category_id'])}, which is not in 'categories'"
            )
        annotations_of[annotation["image_id"]].append(annotation)
    items = []
    for id_, image in content.images.items():
        where = f"{json_path}: image {shown(id_)}"
        image_path = path_inside(images_folder, image_name(image), DatasetError, where)
        items.append(Item(image_path, data=(str(json_path), image, annotations_of[id_])))
    convert_all(items, _check_instances, "verify instances", workers)
    classes = used_categories(content.annotations)
    notes = tuple(content.notes)
    return Verified(len(content.images), len(classes), len(content.annotations), notes)


def _check_instances(item: Item) -> None:
    json_path, image, annotations = item.data
    with parsing(f"{json_path}: an annotation of {item.source}", "complete"):
        size = image["height"], image["width"]
        _check_size(item.source, image, image_size(item.source))
        for annotation in annotations:
            try:
                _check_instance(annotation, size)
            except DatasetError as error:
                name = f"{json_path}: annotation {annotation.get('id')} of {item.source}"
                raise DatasetError(f"{name}: {error}") from error


def _check_instance(annotation: dict, size: tuple[int, int]) -> None:
    x, y, width, height = annotation["bbox"]
    if x < 0 or y < 0 or x + width > size[1] + 1 or y + height > size[0] + 1:
        raise DatasetError(f"its box {annotation['bbox']} exceeds the image")
    _, area, box = measured_mask(annotation["segmentation"], size)
    if isinstance(annotation["segmentation"], list):
        return  # area and box of polygons were computed by the provider
    if area != annotation["area"]:
        raise DatasetError(f"its mask has {area} pixels, but its area is {annotation['area']}")
    if box != list(annotation["bbox"]):
        raise DatasetError("its box does not match its mask")
