"""Reading of class-agnostic masks of images: COCO's results, or COCO's instance annotations.

Does not import torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from mmengine.logging import print_log
from pycocotools import mask as mask_utils

from odise_mm.annotations.coco_json import Id, image_name
from odise_mm.annotations.json_fields import ID, fault, shown
from odise_mm.annotations.masks import Rle, clean_mask, to_rle
from odise_mm.annotations.reading import read_annotations
from odise_mm.errors import DatasetError
from odise_mm.utils.display import printable
from odise_mm.utils.files import read_json, regular_file

WHAT = "file of masks"
SCORE = "a number from 0 to 1"


class MaskEntry(NamedTuple):
    """One mask of a file.

    Attributes:
        name: which entry of the file this is, for messages.
        rle: compressed run-length code.
        score: in [0, 1]; 1 if the file has no score.
    """

    name: str
    rle: Rle
    score: float


@dataclass
class MaskFile:
    """The masks of a file by image.

    Attributes:
        path: path of the file, for messages.
        entries: the masks by image id.
        ids: image ids by file name, with all its folders and without; None if the file does not
            name the files of images.
        repeated: file names without folders that several images share.
    """

    path: str
    entries: dict[Id, list[MaskEntry]]
    ids: dict[str, Id] | None = None
    repeated: set[str] = field(default_factory=set)

    def of(self, image_path: str | None, image_id: Any) -> list[MaskEntry]:
        """Return the masks of an image.

        If the file lists images, the image is looked up by its file name: by as many folders as
        the list has, otherwise without folders. If the file has only image ids, as COCO's results,
        an id belongs to the image if it equals ``image_id``, the file name, the file name without
        its extension, or that name as a number (``000000000139.jpg``: 139).

        Args:
            image_path: path of the image; None if it is not a file.
            image_id: id or name of the image in its dataset; None if it has none.

        Raises:
            DatasetError: the file lists images, and this one is not among them; or the file name
                stands for several images; or the image has no name.
        """
        names = [
            os.fspath(name) for name in (image_path, image_id) if isinstance(name, str) and name
        ]
        if self.ids is None:
            return self._of_results(names, image_id)
        return self._of_listed(names, image_id)

    def _of_results(self, names: list[str], image_id: Any) -> list[MaskEntry]:
        keys: list[Id] = [] if image_id is None or isinstance(image_id, str) else [image_id]
        for name in names:
            file = PurePath(name)
            keys += [name, file.name, file.stem]
            keys += [int(file.stem)] if file.stem.isascii() and file.stem.isdigit() else []
        if not keys:
            raise DatasetError(
                f"{self.path}: masks are found by the image's file name or id, and this image has "
                "neither; pass the image as a file"
            )
        for key in keys:
            if key in self.entries:
                return self.entries[key]
        print_log(
            f"{self.path}: no masks for image {printable(keys[0])}",
            logger="current",
            level=logging.WARNING,
        )
        return []

    def _of_listed(self, names: list[str], image_id: Any) -> list[MaskEntry]:
        assert self.ids is not None
        for name in names:
            parts = PurePath(name).parts
            for first in range(len(parts)):
                end = "/".join(parts[first:])
                if end in self.repeated:
                    raise DatasetError(
                        f"{self.path}: several images are called {printable(end)}; name them with "
                        "their folders, in the file and on disk"
                    )
                if end in self.ids:
                    return self.entries.get(self.ids[end], [])
        name = printable(names[0]) if names else f"image id {shown(image_id)}"
        raise DatasetError(
            f"{self.path}: {name} is not in the list `images`; are these the masks of another "
            "dataset?"
        )


def read_masks(path: str | os.PathLike[str]) -> MaskFile:
    """Read masks in one of COCO's formats. Classes are ignored.

    - A list of results: objects with ``image_id``, ``segmentation`` (run lengths) and optionally
      ``score``.
    - A dataset of instances: an object with ``images``, ``annotations`` and ``categories``.
      Polygons are allowed, and so is a ``score`` of an annotation.

    Args:
        path: path of the JSON file.

    Raises:
        DatasetError: the file is missing, not JSON or in neither of the formats, or an entry is
            incomplete or has a damaged mask. The message names the file and the entry.
    """
    file = regular_file(path, DatasetError, WHAT)
    try:
        with open(file, "rb") as stream:
            first = stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    except OSError as err:
        raise DatasetError(f"{printable(file)}: cannot be read ({err.strerror or err})") from err
    return _read_dataset(file) if first == b"{" else _read_results(file)


def to_array(entry: MaskEntry) -> np.ndarray:
    """Decode a mask: (height, width) bool."""
    return mask_utils.decode(entry.rle).astype(bool)


def _read_results(path: os.PathLike[str]) -> MaskFile:
    rows = read_json(path, DatasetError, WHAT)
    name = printable(os.fspath(path))
    if not isinstance(rows, list):
        raise DatasetError(
            f"{name}: not a {WHAT}: expected a list of COCO's results, or an object with "
            "`images`, `annotations` and `categories`"
        )
    entries: dict[Id, list[MaskEntry]] = {}
    for place, row in enumerate(rows):
        entry = f"entry {place + 1} of the list"
        problem = (
            fault(row, "image_id", ID) or _fault_of_score(row)
            if isinstance(row, dict)
            else f"is {shown(row)}, not an object"
        )
        if problem:
            raise DatasetError(f"{name}: {entry} {problem}")
        entry = f"{entry} (image id {shown(row['image_id'])})"
        mask = _mask_of_result(row, f"{name}: {entry}")
        found = MaskEntry(entry, mask, float(row.get("score", 1.0)))
        entries.setdefault(row["image_id"], []).append(found)
    return MaskFile(name, entries)


def _mask_of_result(row: dict, where: str) -> Rle:
    mask = row.get("segmentation")
    if isinstance(mask, list):
        raise DatasetError(
            f"{where}: its mask is a polygon, and a list of results does not contain the image's "
            "size; write run lengths, or a dataset with `images`, `annotations` and `categories`"
        )
    size = mask.get("size") if isinstance(mask, dict) else None
    pair = isinstance(size, list) and len(size) == 2
    if not pair or not all(type(side) is int and side > 0 for side in size):
        raise DatasetError(f"{where}: its mask has no `size` of two whole numbers (height, width)")
    try:
        clean_mask(mask, tuple(size))
    except DatasetError as err:
        raise DatasetError(f"{where}: {err}") from err
    return to_rle(mask, tuple(size))


def _read_dataset(path: os.PathLike[str]) -> MaskFile:
    content = read_annotations(path, "instance", boxes=False)
    entries: dict[Id, list[MaskEntry]] = {}
    for place, row in enumerate(content.annotations):
        entry = (
            f"annotation {shown(row['id'])}" if "id" in row else f"annotation number {place + 1}"
        )
        problem = _fault_of_score(row)
        if problem:
            raise DatasetError(f"{content.path}: {entry} {problem}")
        image = content.images[row["image_id"]]
        rle = to_rle(row["segmentation"], (image["height"], image["width"]))
        found = MaskEntry(entry, rle, float(row.get("score", 1.0)))
        entries.setdefault(row["image_id"], []).append(found)
    ids: dict[str, Id] = {}
    repeated: set[str] = set()
    for id_, name in _names(content.images.items(), content.path):
        for key in {name, PurePath(name).name}:
            if ids.setdefault(key, id_) != id_:
                repeated.add(key)
    return MaskFile(content.path, entries, ids, repeated)


def _names(images: Iterable[tuple[Id, dict]], path: str) -> list[tuple[Id, str]]:
    try:
        return [(id_, image_name(image)) for id_, image in images]
    except DatasetError as err:
        raise DatasetError(f"{path}: {err}") from err


def _fault_of_score(row: dict) -> str | None:
    return fault(row, "score", SCORE, required=False)
