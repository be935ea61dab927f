"""Examples of classes for a model's memory: from annotations, and from folders of crops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from odise_mm.annotations.coco_json import CocoFile, image_name
from odise_mm.annotations.masks import to_rle
from odise_mm.annotations.panoptic_io import read_panoptic_png
from odise_mm.annotations.reading import read_annotations
from odise_mm.converters.own_data import read_labelme
from odise_mm.errors import DatasetError
from odise_mm.structures.geometry import encode_mask
from odise_mm.utils.display import printable
from odise_mm.utils.files import path_inside, read_json
from odise_mm.utils.image import image_suffixes

Rle = Mapping[str, Any]


@dataclass
class ImageExamples:
    """The examples in one image.

    Attributes:
        path: the image.
        names: class name of each example.
        is_thing: whether each class is a thing.
        rles: run-length code of each mask; None for a crop, whose example is the whole image.
    """

    path: Path
    names: list[str] = field(default_factory=list)
    is_thing: list[bool] = field(default_factory=list)
    rles: list[Rle] | None = field(default_factory=list)

    def masks(self) -> list[np.ndarray]:
        """Decode the masks, (H, W) bool each."""
        return [mask_utils.decode(rle).astype(bool) for rle in self.rles or ()]


def read_examples(annotations: Path, images: Path) -> list[ImageExamples]:
    """Read the examples of an annotation file, or of a folder of LabelMe's files.

    Args:
        annotations: COCO's instances or panoptic segments (JSON; the maps are in the folder of the
            file's name without ``.json``), or a folder of LabelMe's files.
        images: folder of the images.

    Raises:
        DatasetError: a file is missing or invalid, or there are no annotations.
    """
    if annotations.is_dir():
        content = _instances(read_labelme(annotations, images))
        found = list(_of_instances(content, images))
    else:
        first = read_json(annotations, DatasetError, "annotation file")
        rows = first.get("annotations") if isinstance(first, dict) else None
        panoptic = bool(rows) and isinstance(rows[0], dict) and "segments_info" in rows[0]
        if panoptic:
            content = read_annotations(annotations, "panoptic")
        else:
            content = read_annotations(annotations, "instance", boxes=False)
        read = _of_panoptic if panoptic else _of_instances
        found = list(read(content, images))
    found = [one for one in found if one.names]
    if not found:
        raise DatasetError(f"{printable(str(annotations))}: contains no annotations with a mask")
    missing = next((one.path for one in found if not one.path.is_file()), None)
    if missing is not None:
        raise DatasetError(f"{printable(str(missing))}: image not found; see --images")
    return found


def read_crops(folder: Path) -> list[ImageExamples]:
    """List the images in the subfolders of a folder, which are named like their classes.

    Raises:
        DatasetError: there are no images in subfolders.
    """
    found = [
        ImageExamples(path, [path.parent.name], [True], None)
        for path in sorted(folder.glob("*/*"))
        if path.suffix.lower() in image_suffixes()
    ]
    if not found:
        raise DatasetError(
            f"{printable(str(folder))}: no images found; expected one folder for each class, such "
            "as oat crackers/1.jpg"
        )
    return found


def limited(examples: Sequence[ImageExamples], limit: int) -> list[ImageExamples]:
    """Keep the first ``limit`` examples of each class."""
    counts: Counter[str] = Counter()
    kept = []
    for one in examples:
        chosen = []
        for index, name in enumerate(one.names):
            counts[name] += 1
            if counts[name] <= limit:
                chosen.append(index)
        if chosen:
            rles = None if one.rles is None else [one.rles[i] for i in chosen]
            names, things = ([values[i] for i in chosen] for values in (one.names, one.is_thing))
            kept.append(ImageExamples(one.path, names, things, rles))
    return kept


def _instances(content: Mapping[str, Any]) -> CocoFile:
    images, categories = (
        {one["id"]: one for one in content[key]} for key in ("images", "categories")
    )
    return CocoFile("LabelMe", images, content["annotations"], categories, [])


def _of_instances(content: CocoFile, images: Path) -> Iterator[ImageExamples]:
    rows = content.images.items()
    groups = {id_: ImageExamples(_image(images, row, content)) for id_, row in rows}
    for one in content.annotations:
        if one.get("iscrowd"):
            continue
        row = content.images[one["image_id"]]
        group = groups[one["image_id"]]
        assert group.rles is not None
        group.rles.append(to_rle(one["segmentation"], (row["height"], row["width"])))
        _name(group, content.categories[one["category_id"]])
    yield from groups.values()


def _of_panoptic(content: CocoFile, images: Path) -> Iterator[ImageExamples]:
    maps = Path(content.path).with_suffix("")
    for one in content.annotations:
        group = ImageExamples(_image(images, content.images[one["image_id"]], content))
        ids = read_panoptic_png(
            path_inside(maps, one["file_name"], DatasetError, "file_name of an annotation")
        )
        assert group.rles is not None
        for segment in one["segments_info"]:
            mask = ids == segment["id"]
            if segment.get("iscrowd") or not mask.any():
                continue
            group.rles.append(encode_mask(mask))
            _name(group, content.categories[segment["category_id"]])
        yield group


def _name(group: ImageExamples, category: Mapping[str, Any]) -> None:
    group.names.append(category["name"])
    group.is_thing.append(bool(category.get("isthing", 1)))


def _image(folder: Path, row: dict, content: CocoFile) -> Path:
    name = image_name(row)
    return path_inside(folder, name, DatasetError, f"{content.path}: file_name of an image")
