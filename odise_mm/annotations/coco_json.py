"""Reading of annotation files in COCO's format, with a check of every field that is used.

Values are never converted to another type. An invalid file raises an error that names the file, the
entry and the value. Annotations without a usable mask are skipped and counted.

The checks are hand-written. For 211 MB of LVIS-like JSON, which take 8.4 s and 1.4 GB to parse,
they take 3.5 s and no memory; pydantic 2 takes 3.9 s and 0.2 GB more, msgspec 3.5 s and 0.1 GB.
Neither can name an annotation's id in errors or drop a ring, and the code would not be shorter.
Does not import torch.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from odise_mm.annotations.json_fields import AREA, BOX, FLAG, ID, LENGTH, TEXT, fault, shown, twin
from odise_mm.annotations.masks import MIN_POINTS, clean_mask
from odise_mm.annotations.panoptic_io import MAX_SEGMENT_ID
from odise_mm.errors import DatasetError
from odise_mm.utils.display import printable
from odise_mm.utils.files import read_json

Id = int | str
_NO_MASK = "they have no mask"
_FEW_POINTS = f"their rings have fewer than {MIN_POINTS} points"
_MISFIT = "their points are far outside the image; are its height and width correct?"


class CocoFile(NamedTuple):
    """The checked content of an annotation file, with entries as they are in the file."""

    path: str
    """Path of the file, for messages."""
    images: dict[Id, dict]
    """Images by id, in the file's order."""
    annotations: list[dict]
    categories: dict[Id, dict]
    """Categories by id, in the file's order."""
    notes: list[str]
    """Messages about skipped annotations and rings."""


def read_coco(
    path: str | os.PathLike[str], kind: str, *, boxes: bool = True, masks: bool = True
) -> CocoFile:
    """Read and check ``images``, ``annotations`` and ``categories``.

    Args:
        path: Path of the JSON file.
        kind: Required kind of annotations, "panoptic" or "instance".
        boxes: Whether instances must have a ``bbox``. It is always checked if present.
        masks: Whether to skip instances without a mask.

    Raises:
        DatasetError: If the file is missing, not JSON or of another kind, an entry is incomplete
            or has wrong types, an id is duplicate or unknown, or more than half of the annotations
            have no usable mask.
    """
    content = read_json(path, DatasetError, "annotation file")
    path = printable(os.fspath(path))
    lists = {}
    for key in ("images", "annotations", "categories"):
        lists[key] = content.pop(key, None) if isinstance(content, dict) else None
        if not isinstance(lists[key], list):
            raise DatasetError(
                f"{path}: not {kind} annotations in COCO's format, the list `{key}` is missing"
            )
    images = _by_id(lists["images"], "image", path, _image_fault)
    categories = check_categories(lists["categories"], path)
    annotations, notes = lists["annotations"], []
    _check_kind(annotations, kind, path)
    if kind == "panoptic":
        _check_panoptic(annotations, images, path)
    else:
        _check_instances(annotations, images, path, boxes)
        annotations, notes = _with_masks(annotations, images, path, masks)
    return CocoFile(path, images, annotations, categories, notes)


def used_categories(annotations: Iterable[dict]) -> set[Id]:
    """Return the ids of the categories used in instance or panoptic annotations."""
    return {
        one["category_id"]
        for annotation in annotations
        for one in annotation.get("segments_info", (annotation,))
    }


def check_categories(rows: list, path: str) -> dict[Id, dict]:
    """Check categories and return them by id.

    Args:
        rows: The list ``categories`` of a file.
        path: Path of the file, for messages.

    Raises:
        DatasetError: If a category is incomplete or has wrong types, or an id is duplicate.
    """
    return _by_id(rows, "category", path, _category_fault)


def without_unused_roots(
    categories: Mapping[Id, dict], used: Collection[Id] = ()
) -> dict[Id, dict]:
    """Return the categories without unused root categories.

    Some tools write a root category (``supercategory`` "none") with the same name as one of its
    classes. It is dropped if no annotation uses it.

    Args:
        categories: Categories by id.
        used: Ids of the categories that annotations use.
    """
    counts = Counter(category["name"] for category in categories.values())
    return {
        id_: category
        for id_, category in categories.items()
        if counts[category["name"]] < 2 or id_ in used or not _is_root(category)
    }


def _is_root(category: dict) -> bool:
    above = category.get("supercategory", "unknown")
    return above is None or str(above).strip().casefold() in ("", "none")


def image_name(image: dict) -> str:
    """Return the path of an image relative to the image folder, from an entry of ``images``.

    Entries of LVIS, which have lists of categories, refer to COCO's folders, which only
    ``coco_url`` names: ``val2017/000000397133.jpg``. A ``file_name`` that another tool has added
    is ignored. All other entries use ``file_name``.

    Raises:
        DatasetError: If the entry has neither. The message does not name the annotation file.
    """
    url = image.get("coco_url")
    if url is not None and ("neg_category_ids" in image or "file_name" not in image):
        return "/".join(url.split("/")[-2:])
    if "file_name" not in image:
        raise DatasetError(
            f"image {shown(image['id'])} has neither `file_name` nor `coco_url`; one of them must "
            "name its file"
        )
    return image["file_name"]


def read_captions(path: str | os.PathLike[str], *, all_images: bool = False) -> dict[Id, list[str]]:
    """Read captions from COCO's file (``captions_*.json``), by image id and in the file's order.

    Args:
        path: Path of the JSON file.
        all_images: Whether to include images without a caption, with an empty list, and to reject
            captions of images that the file does not list.

    Raises:
        DatasetError: If the file is missing, not JSON or has no captions, or an entry has wrong
            types.
    """
    content = read_json(path, DatasetError, "file of captions")
    path = printable(os.fspath(path))
    rows = content.get("annotations") if isinstance(content, dict) else None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(rows, list) or (all_images and not isinstance(images, list)):
        missing = "images" if isinstance(rows, list) else "annotations"
        raise DatasetError(
            f"{path}: not captions in COCO's format, the list `{missing}` is missing"
        )
    captions: dict[Id, list[str]] = {}
    if all_images:
        captions = {id_: [] for id_ in _by_id(images, "image", path, lambda _: None)}
    for place, row in enumerate(rows):
        problem = _object_fault(row) or fault(row, "image_id", ID) or fault(row, "caption", TEXT)
        if not problem and all_images:
            problem = _unknown_image(row["image_id"], captions)
        if problem:
            raise DatasetError(f"{path}: {_name(row, 'annotation', place)} {problem}")
        captions.setdefault(row["image_id"], []).append(row["caption"].strip())
    return captions


# --- entries --------------------------------------------------------------------------------------


def _by_id(
    rows: list, what: str, path: str, fault_of: Callable[[dict], str | None]
) -> dict[Id, dict]:
    table: dict[Id, dict] = {}
    for place, row in enumerate(rows):
        problem = _object_fault(row) or fault(row, "id", ID) or fault_of(row)
        if problem:
            raise DatasetError(f"{path}: {_name(row, what, place)} {problem}")
        if row["id"] in table:
            raise DatasetError(f"{path}: {what} id {shown(row['id'])} appears more than once")
        table[row["id"]] = row
    if len({type(id_) for id_ in table}) > 1:
        number = next(id_ for id_ in table if not isinstance(id_, str))
        text = next(id_ for id_ in table if isinstance(id_, str))
        raise DatasetError(
            f"{path}: {what} ids mix numbers and text ({shown(number)}, {shown(text)}); use one "
            "type for all"
        )
    return table


def _name(row: Any, what: str, place: int) -> str:
    """Return the name of an entry for messages: by its id, or by its position in the list."""
    if isinstance(row, dict) and fault(row, "id", ID) is None:
        return f"{what} {shown(row['id'])}"
    return f"{what} number {place + 1} of the list"


def _object_fault(row: Any) -> str | None:
    return None if isinstance(row, dict) else f"is {shown(row)}, not an object"


def _image_fault(row: dict) -> str | None:
    return (
        fault(row, "height", LENGTH)
        or fault(row, "width", LENGTH)
        or fault(row, "file_name", TEXT, required=False)
        or fault(row, "coco_url", TEXT, required=False)
    )


def _category_fault(row: dict) -> str | None:
    return fault(row, "name", TEXT) or fault(row, "isthing", FLAG, required=False)


def _unknown_image(image_id: Id, images: Collection[Id]) -> str | None:
    if image_id in images:
        return None
    hint = twin(image_id, images)
    return f"belongs to image id {shown(image_id)}, which `images` does not list{hint}"


def _check_kind(annotations: list, kind: str, path: str) -> None:
    first = next(iter(annotations), None)
    if isinstance(first, dict) and ("segments_info" in first) != (kind == "panoptic"):
        other = "instance" if kind == "panoptic" else "panoptic"
        raise DatasetError(f"{path}: expected {kind} annotations, found {other} annotations")


# --- panoptic annotations -------------------------------------------------------------------------


def _check_panoptic(annotations: list, images: Mapping[Id, dict], path: str) -> None:
    annotated: set[Id] = set()
    for place, one in enumerate(annotations):
        problem = (
            _object_fault(one)
            or fault(one, "file_name", TEXT)
            or fault(one, "image_id", ID)
            or fault(one, "segments_info", "a list")
        )
        if problem:
            raise DatasetError(f"{path}: annotation number {place + 1} of the list {problem}")
        name, image_id = printable(one["file_name"]), one["image_id"]
        if image_id not in images:
            raise DatasetError(
                f"{path}: {name} belongs to image id {shown(image_id)}, which `images` does "
                f"not list{twin(image_id, images)}"
            )
        if image_id in annotated:
            raise DatasetError(f"{path}: image id {shown(image_id)} is annotated twice")
        annotated.add(image_id)
        _check_segments(one["segments_info"], name, path)


def _check_segments(segments: list, name: str, path: str) -> None:
    ids: set[int] = set()
    for one in segments:
        problem = _object_fault(one) or fault(one, "id", ID) or fault(one, "category_id", ID)
        problem = problem or fault(one, "iscrowd", FLAG, required=False)
        problem = problem or fault(one, "area", AREA, required=False)
        if problem:
            place = len(ids) + 1
            raise DatasetError(f"{path}: {name}: {_name(one, 'segment', place - 1)} {problem}")
        if isinstance(one["id"], str) or not 0 < one["id"] <= MAX_SEGMENT_ID:
            raise DatasetError(
                f"{path}: {name} has segment id {shown(one['id'])}; its pixels can only store "
                f"whole numbers from 1 to {MAX_SEGMENT_ID}"
            )
        if one["id"] in ids:
            raise DatasetError(f"{path}: {name} has two segments with the same id, {one['id']}")
        ids.add(one["id"])


# --- instance annotations -------------------------------------------------------------------------


def _check_instances(annotations: list, images: Mapping[Id, dict], path: str, boxes: bool) -> None:
    ids: set[Id] = set()
    for place, one in enumerate(annotations):
        problem = (
            _object_fault(one)
            or fault(one, "id", ID, required=False)
            or fault(one, "image_id", ID)
            or _unknown_image(one["image_id"], images)
            or fault(one, "category_id", ID)
            or fault(one, "area", AREA)
            or fault(one, "iscrowd", FLAG, required=False)
            or fault(one, "ignore", FLAG, required=False)
            or fault(one, "bbox", BOX, required=boxes)
        )
        if problem:
            raise DatasetError(f"{path}: {_name(one, 'annotation', place)} {problem}")
        if "id" in one:
            if one["id"] in ids:
                raise DatasetError(
                    f"{path}: annotation id {shown(one['id'])} appears more than once"
                )
            ids.add(one["id"])


def _with_masks(
    annotations: list[dict], images: Mapping[Id, dict], path: str, needed: bool
) -> tuple[list[dict], list[str]]:
    """Return the annotations with usable masks, cleaned, and notes on the others."""
    kept: list[dict] = []
    skipped: dict[str, list[str]] = {}
    rings: list[str] = []
    for place, one in enumerate(annotations):
        given = one.get("segmentation")
        if not given and isinstance(given, list | dict | None):  # "", 0 and false are errors
            if needed:
                skipped.setdefault(_NO_MASK, []).append(_of_image(one, place))
            else:
                kept.append(one)
            continue
        image = images[one["image_id"]]
        try:
            mask = clean_mask(given, (image["height"], image["width"]))
        except DatasetError as err:
            raise DatasetError(f"{path}: {_of_image(one, place)}: {err}") from err
        if mask is None:
            far = any(len(ring) >= 2 * MIN_POINTS for ring in given)
            reason = _MISFIT if far else _FEW_POINTS
            skipped.setdefault(reason, []).append(_of_image(one, place))
            continue
        if len(mask) < len(given):
            rings.append(_of_image(one, place))
            one["segmentation"] = mask
        kept.append(one)
    count, dropped = len(annotations), len(annotations) - len(kept)
    if 2 * dropped > count:
        reason, names = max(skipped.items(), key=lambda item: len(item[1]))
        raise DatasetError(
            f"{path}: {dropped} of {count} annotations, such as {names[0]}, have no usable mask: "
            f"{reason}"
        )
    notes = [
        f"{path}: skipped {len(names)} of {count} annotations without a usable mask: {reason} "
        f"(the first: {names[0]})"
        for reason, names in skipped.items()
    ]
    if rings:
        notes.append(
            f"{path}: dropped rings of fewer than {MIN_POINTS} points from the masks of "
            f"{len(rings)} of {count} annotations (the first: {rings[0]})"
        )
    return kept, notes


def _of_image(one: dict, place: int) -> str:
    return f"{_name(one, 'annotation', place)} of image {shown(one['image_id'])}"
