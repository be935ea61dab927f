"""Panoptic results in COCO's format: one JSON file and a folder of PNG files.

A PNG pixel holds the segment's id as ``R + 256 G + 256^2 B``, 0 where there is none. In the JSON,
``category_id`` is the class index + 1 unless other ids are given (those of a data set, so that its
own tools can score the file): 0 means "nothing" to many readers. Beyond COCO's fields, segments
carry ``score`` and categories carry ``synonyms``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from odise_mm.errors import PanopticFileError
from odise_mm.structures import NamedSegment, SegmentationResult
from odise_mm.utils.image import DECODER_ERRORS

MAX_SEGMENT_ID = 256**3 - 1


class VocabularyLike(Protocol):
    """What is needed of a vocabulary to describe categories."""

    synonyms: tuple[tuple[str, ...], ...]
    is_thing: tuple[bool, ...]


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Segment ids (H, W), integers in [0, 2^24), to colours (H, W, 3) uint8 in RGB order.

    Raises:
        ValueError: an id does not fit in three bytes.
    """
    if ids.size and (ids.min() < 0 or ids.max() > MAX_SEGMENT_ID):
        raise ValueError(
            f"segment ids from {ids.min()} to {ids.max()} do not fit a PNG's 0 to {MAX_SEGMENT_ID}"
        )
    ids = ids.astype(np.uint32)
    return np.stack([ids & 255, (ids >> 8) & 255, ids >> 16], axis=-1).astype(np.uint8)


def rgb_to_ids(rgb: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3) uint8 in RGB order to segment ids (H, W) int32."""
    rgb = rgb.astype(np.int32)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def write_panoptic_png(path: str | os.PathLike, panoptic: np.ndarray) -> None:
    """Write segment ids (H, W) to a PNG file, its folder being made where missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids_to_rgb(panoptic)).save(path, format="PNG")


def read_panoptic_png(path: str | os.PathLike) -> np.ndarray:
    """Segment ids (H, W) int32 of a panoptic PNG file.

    Raises:
        PanopticFileError: missing, unreadable or not an RGB image.
    """
    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.asarray(image)
    except DECODER_ERRORS as err:
        raise PanopticFileError(f"{path}: not a readable panoptic PNG ({err})") from err
    if mode not in ("RGB", "RGBA"):
        raise PanopticFileError(
            f"{path}: a panoptic PNG is RGB, this one is {mode}; segment ids are "
            "R + 256 G + 65536 B"
        )
    return rgb_to_ids(pixels[..., :3])


def describe_categories(
    vocabulary: VocabularyLike, category_ids: Sequence[int] | None = None
) -> list[dict]:
    """COCO's ``categories``: id, name, isthing (0 or 1) and all synonyms of each class."""
    ids = _category_ids(len(vocabulary.is_thing), category_ids)
    return [
        dict(id=id_, name=names[0], isthing=int(thing), synonyms=list(names))
        for id_, names, thing in zip(ids, vocabulary.synonyms, vocabulary.is_thing, strict=True)
    ]


def _category_ids(n_classes: int, category_ids: Sequence[int] | None) -> list[int]:
    if category_ids is None:
        return list(range(1, n_classes + 1))
    if len(category_ids) != n_classes or len(set(category_ids)) != n_classes:
        raise ValueError(
            f"{n_classes} classes need as many different category ids, got {list(category_ids)}"
        )
    return [int(i) for i in category_ids]


def describe_segments(
    panoptic: np.ndarray, segments: Iterable[NamedSegment], category_ids: Sequence[int]
) -> list[dict]:
    """COCO's ``segments_info``; area in pixels and bbox as x, y, width, height, from the map.

    Args:
        panoptic: (H, W) segment ids.
        segments: the segments to describe; those without a pixel in the map are left out.
        category_ids: of every class, by class index.
    """
    infos = []
    for segment in segments:
        mask = panoptic == segment.id
        rows = np.flatnonzero(mask.any(axis=1))
        if not len(rows):
            continue
        columns = np.flatnonzero(mask.any(axis=0))
        x, y = int(columns[0]), int(rows[0])
        infos.append(
            dict(
                id=int(segment.id),
                category_id=int(category_ids[segment.label]),
                iscrowd=0,
                bbox=[x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
                area=int(mask.sum()),
                score=round(float(segment.score), 5),
            )
        )
    return infos


class CocoPanopticWriter:
    """Writes results one by one: a PNG file at once, the JSON file when closed.

    With ``with`` around it, the JSON file is also written when something fails in between, so that
    the pictures done so far are not lost.

    Args:
        json_path: the JSON file; the PNG files go to ``png_dir``, by default a folder of the JSON
            file's name without extension (COCO's own arrangement).
        vocabulary: describes the categories.
        category_ids: ids of the classes, see the module's docstring.
        info: anything that goes to the JSON file's ``info`` field.
    """

    def __init__(
        self,
        json_path: str | os.PathLike,
        vocabulary: VocabularyLike,
        *,
        png_dir: str | os.PathLike | None = None,
        category_ids: Sequence[int] | None = None,
        info: dict | None = None,
    ) -> None:
        self.json_path = Path(json_path)
        self.png_dir = Path(png_dir) if png_dir is not None else self.json_path.with_suffix("")
        self.category_ids = _category_ids(len(vocabulary.is_thing), category_ids)
        self._content = dict(
            info=dict(info or {}),
            images=[],
            annotations=[],
            categories=describe_categories(vocabulary, self.category_ids),
        )

    def add(
        self, result: SegmentationResult, stem: str, *, image_id: int | str | None = None
    ) -> Path:
        """Write one result's PNG file and note it for the JSON file.

        Args:
            result: with a panoptic map.
            stem: name of the PNG file without extension.
            image_id: by default counted from 1.

        Returns:
            The PNG file's path.

        Raises:
            ValueError: the result has no panoptic map.
        """
        if result.panoptic is None:
            raise ValueError(f"{result.image_name}: no panoptic map to write")
        path = self.png_dir / f"{stem}.png"
        write_panoptic_png(path, result.panoptic)
        image_id = len(self._content["images"]) + 1 if image_id is None else image_id
        height, width = result.panoptic.shape
        original = result.image_path or result.image_name
        self._content["images"].append(
            dict(id=image_id, file_name=os.path.basename(original), height=height, width=width)
        )
        self._content["annotations"].append(
            dict(
                image_id=image_id,
                file_name=path.name,
                segments_info=describe_segments(
                    result.panoptic, result.segments, self.category_ids
                ),
            )
        )
        return path

    def close(self) -> None:
        """Write the JSON file."""
        self.json_path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._content, ensure_ascii=False)
        self.json_path.write_text(text, encoding="utf-8")

    def __enter__(self) -> CocoPanopticWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def read_coco_panoptic(
    json_path: str | os.PathLike, png_dir: str | os.PathLike | None = None
) -> list[SegmentationResult]:
    """Read panoptic files back, ours or any in COCO's format.

    Args:
        json_path: the JSON file.
        png_dir: the PNG files' folder; by default the JSON file's name without extension.

    Returns:
        One result per annotation. Labels index the JSON's ``categories`` in their order there;
        scores that are missing (ground truth) are 1; ids absent from ``segments_info`` become 0.

    Raises:
        PanopticFileError: a file is missing or does not hold panoptic annotations.
    """
    json_path = Path(json_path)
    png_dir = Path(png_dir) if png_dir is not None else json_path.with_suffix("")
    try:
        content = json.loads(json_path.read_text(encoding="utf-8"))
        categories = content["categories"]
        images = {image["id"]: image for image in content["images"]}
        annotations = content["annotations"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise PanopticFileError(f"{json_path}: not a COCO panoptic JSON file ({err!r})") from err
    names = tuple(category["name"] for category in categories)
    index_of = {category["id"]: index for index, category in enumerate(categories)}
    results = []
    for annotation in annotations:
        ids = read_panoptic_png(png_dir / annotation["file_name"])
        segments = []
        for info in annotation["segments_info"]:
            index = index_of.get(info["category_id"])
            if index is None:
                raise PanopticFileError(
                    f"{json_path}: {annotation['file_name']} has category "
                    f"{info['category_id']}, which `categories` does not list"
                )
            segments.append(
                NamedSegment(
                    id=info["id"],
                    label=index,
                    name=names[index],
                    score=info.get("score", 1.0),
                    area=info["area"],
                    is_thing=bool(categories[index]["isthing"]),
                )
            )
        ids = np.where(np.isin(ids, [s.id for s in segments]), ids, 0).astype(np.int32)
        image = images.get(annotation["image_id"], {})
        results.append(
            SegmentationResult(
                image_name=image.get("file_name", annotation["file_name"]),
                height=ids.shape[0],
                width=ids.shape[1],
                panoptic=ids,
                segments=segments,
                class_names=names,
            )
        )
    return results
