"""Panoptic results in COCO's format: one JSON file and a folder of PNG files.

A PNG pixel stores the segment id as ``R + 256 G + 256^2 B``, or 0 for no segment. In the JSON file,
``category_id`` is the class index + 1, as many programs take 0 for "no category". Other ids can be
given, e.g. those of a dataset, so that its own tools can score the file. In addition to COCO's
fields, segments have a ``score``, categories have ``synonyms``, and annotations have ``ids_sha256``
(:func:`digest_of` their map), with which maps of another run are detected.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from odise_mm.errors import PanopticFileError
from odise_mm.structures import Segment, SegmentationResult
from odise_mm.utils.display import printable
from odise_mm.utils.files import atomic_writer, path_inside, read_json, write_json
from odise_mm.utils.image import MAX_LABEL_PIXELS, open_image
from odise_mm.utils.outputs import write_marked_png

MAX_SEGMENT_ID = 256**3 - 1


class VocabularyLike(Protocol):
    """The part of a vocabulary that is needed to describe categories."""

    @property
    def synonyms(self) -> tuple[tuple[str, ...], ...]:
        """Names of each class."""

    @property
    def is_thing(self) -> tuple[bool, ...]:
        """Thing flag of each class."""


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Convert segment ids (H, W), integers in [0, 2^24), to RGB colors (H, W, 3) uint8.

    Raises:
        ValueError: If an id does not fit into three bytes.
    """
    if ids.size and (ids.min() < 0 or ids.max() > MAX_SEGMENT_ID):
        raise ValueError(
            f"segment ids from {ids.min()} to {ids.max()} do not fit into a panoptic PNG file, "
            f"which stores 0 to {MAX_SEGMENT_ID}"
        )
    rgb = np.empty((*ids.shape, 3), np.uint8)
    for channel in range(3):  # one at a time: large maps need little more memory than their colors
        rgb[..., channel] = (ids >> 8 * channel) & 255
    return rgb


def write_panoptic_png(path: str | os.PathLike, panoptic: np.ndarray) -> None:
    """Write segment ids (H, W) to a PNG file and create its folder if necessary."""
    with atomic_writer(path, durable=False) as file:
        Image.fromarray(ids_to_rgb(panoptic)).save(file, format="PNG")


def digest_of(panoptic: np.ndarray) -> str:
    """Return the SHA-256 of a map's size and segment ids (H, W), which links a JSON entry to it."""
    height, width = panoptic.shape
    digest = hashlib.sha256(f"{height} {width} ".encode())
    digest.update(np.ascontiguousarray(panoptic, dtype="<i4"))
    return digest.hexdigest()


def read_panoptic_png(path: str | os.PathLike) -> np.ndarray:
    """Read the segment ids (H, W) int32 of a panoptic PNG file.

    Raises:
        PanopticFileError: If the file is missing, unreadable or not an RGB image.
    """
    limits = dict(formats=("PNG",), max_pixels=MAX_LABEL_PIXELS)
    with open_image(path, **limits, error=PanopticFileError, what="panoptic PNG") as image:
        if image.mode not in ("RGB", "RGBA"):
            raise PanopticFileError(
                f"{printable(path)}: a panoptic PNG must be RGB, not {image.mode}; segment ids are "
                "R + 256 G + 65536 B"
            )
        # Four bytes per pixel, as Pillow stores it: little-endian numbers without arithmetic.
        pixels = image.tobytes("raw", "RGBX" if image.mode == "RGB" else "RGBA")
    numbers = np.frombuffer(pixels, "<i4").reshape(image.height, image.width)
    return np.bitwise_and(numbers, MAX_SEGMENT_ID, dtype=np.int32)


def describe_categories(
    vocabulary: VocabularyLike, category_ids: Sequence[int] | None = None
) -> list[dict]:
    """Return COCO's ``categories``: id, name, isthing (0 or 1) and all synonyms of each class."""
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
    panoptic: np.ndarray, segments: Iterable[Segment], category_ids: Sequence[int]
) -> list[dict]:
    """Return COCO's ``segments_info``, with area and bbox (x, y, width, height) from the map.

    Args:
        panoptic: (H, W) segment ids.
        segments: Segments to describe; those without pixels in the map are skipped.
        category_ids: Category ids by class index.
    """
    infos = []
    for segment in segments:
        mask = panoptic == segment.id
        if mask.any():
            infos.append(segment.to_coco(category_ids[segment.label], mask))
    return infos


def describe_result(
    result: SegmentationResult,
    map_name: str,
    category_ids: Sequence[int],
    image_name: str | None = None,
) -> tuple[dict, dict]:
    """Return the entries of ``images`` and ``annotations`` for a result, without the image id.

    Args:
        result: Result with a panoptic map.
        map_name: Name of its PNG file.
        category_ids: Category ids by class index.
        image_name: Name of the image file; it may contain folders. By default, the result's,
            without folders.
    """
    height, width = result.panoptic.shape
    if image_name is None:
        image_name = os.path.basename(result.image_path or result.image_name)
    image = dict(file_name=image_name, height=height, width=width)
    annotation = dict(
        file_name=map_name,
        ids_sha256=digest_of(result.panoptic),
        segments_info=describe_segments(result.panoptic, result.segments, category_ids),
    )
    return image, annotation


class CocoPanopticWriter:
    """Writer for results: each PNG file is written immediately, the JSON file when closed.

    Used as a context manager, it also writes the JSON file after an error, so that the images
    processed so far are not lost.

    Args:
        json_path: Path of the JSON file.
        vocabulary: Vocabulary that defines the categories.
        png_dir: Folder for the PNG files. By default, ``json_path`` without its extension, as in
            COCO.
        category_ids: Category ids by class index, see the module docstring.
        info: Content of the ``info`` field of the JSON file.
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

    def __len__(self) -> int:
        return len(self._content["images"])

    def add(
        self,
        result: SegmentationResult,
        stem: str,
        *,
        image_id: int | str | None = None,
        image_name: str | None = None,
    ) -> Path:
        """Write the PNG file of a result and add it to the JSON content.

        Args:
            result: Result with a panoptic map.
            stem: Name of the PNG file without extension. It may contain folders: "a/1".
            image_id: Id of the image. By default, images are numbered from 1.
            image_name: See :func:`describe_result`.

        Returns:
            Path of the PNG file.

        Raises:
            ValueError: If the result has no panoptic map.
        """
        if result.panoptic is None:
            raise ValueError(f"{result.image_name}: no panoptic map to write")
        path = self.png_dir / f"{stem}.png"
        write_marked_png(path, ids_to_rgb(result.panoptic))
        described = describe_result(result, f"{stem}.png", self.category_ids, image_name)
        self.note(*described, image_id)
        return path

    def note(self, image: dict, annotation: dict, image_id: int | str | None = None) -> None:
        """Add the output of :func:`describe_result`, for a map that already exists."""
        image_id = len(self) + 1 if image_id is None else image_id
        self._content["images"].append(dict(id=image_id, **image))
        self._content["annotations"].append(dict(image_id=image_id, **annotation))

    def last(self) -> tuple[dict, dict]:
        """Return the last added entries, in the form of :func:`describe_result`."""
        image, annotation = (self._content[key][-1] for key in ("images", "annotations"))
        return (
            {key: value for key, value in image.items() if key != "id"},
            {key: value for key, value in annotation.items() if key != "image_id"},
        )

    def close(self) -> None:
        """Write the JSON file; an existing one is replaced only when the new one is complete."""
        write_json(self.json_path, self._content)

    def __enter__(self) -> CocoPanopticWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def read_coco_panoptic(
    json_path: str | os.PathLike, png_dir: str | os.PathLike | None = None
) -> list[SegmentationResult]:
    """Read panoptic files, written by this package or any other program, in COCO's format.

    Areas are counted in the maps. If those in the JSON file differ, a warning is issued.

    Args:
        json_path: Path of the JSON file.
        png_dir: Folder of the PNG files. By default, ``json_path`` without its extension.

    Returns:
        One result per annotation. Labels are indices into the file's ``categories``. Missing scores
        (as in ground truth) are 1. Ids that ``segments_info`` does not list become 0.

    Raises:
        PanopticFileError: If a file is missing or has no panoptic annotations, a field is missing
            or has a wrong type, or the JSON file does not match the maps, e.g. because a later run
            into the same folder was interrupted.
    """
    return list(iterate_coco_panoptic(json_path, png_dir))


def iterate_coco_panoptic(
    json_path: str | os.PathLike, png_dir: str | os.PathLike | None = None
) -> Iterator[SegmentationResult]:
    """Yield what :func:`read_coco_panoptic` returns, with one map in memory at a time."""
    json_path = Path(json_path)
    png_dir = Path(png_dir) if png_dir is not None else json_path.with_suffix("")
    shown = printable(json_path)
    journal = json_path.with_suffix(".journal")
    if journal.is_file() and not json_path.exists():
        raise PanopticFileError(
            f"{shown}: not written yet, as the run into this folder is incomplete; run its command "
            f"again to continue from {printable(journal.name)} and write the file"
        )
    content = read_json(json_path, PanopticFileError, "COCO panoptic JSON file")
    for key in ("images", "categories", "annotations"):
        if not isinstance(content, dict) or key not in content:
            raise PanopticFileError(f"{shown}: not a COCO panoptic JSON file, `{key}` is missing")
    index = _Index(_Entry(content, shown))
    for annotation in index.annotations:
        yield index.read(annotation, png_dir)
    index.warn_of_areas(json_path)


_REQUIRED = object()


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


# Description of a kind of value -> check of a value.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "a list": lambda value: isinstance(value, list),
    "text": lambda value: isinstance(value, str) and bool(value.strip()),
    "a whole number or text": lambda value: _is_whole(value) or isinstance(value, str),
    "a whole number from 1": lambda value: _is_whole(value) and value >= 1,
    f"a whole number from 1 to {MAX_SEGMENT_ID}": (
        lambda value: _is_whole(value) and 1 <= value <= MAX_SEGMENT_ID
    ),
    "a number from 0": lambda value: _is_number(value) and value >= 0,
    "a number from 0 to 1": lambda value: _is_number(value) and 0 <= value <= 1,
    "0 or 1": lambda value: isinstance(value, int) and value in (0, 1),
    "four numbers": (
        lambda value: isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))
    ),
}


class _Entry:
    """An object of a JSON file whose fields are checked when they are read.

    Args:
        content: The parsed object.
        file: Path of the JSON file, for messages.
        place: Position of the object in the file, for messages; "" for the whole file.

    Raises:
        PanopticFileError: If the content is not an object.
    """

    def __init__(self, content: Any, file: str, place: str = "") -> None:
        self.content = content
        self.file = file
        self.place = place
        if not isinstance(content, dict):
            raise self.error(f"is {_shown(content)}, not an object")

    def error(self, what: str) -> PanopticFileError:
        """Return an error whose message starts with the file and the position."""
        place = f" {self.place}" if self.place else ""
        return PanopticFileError(f"{self.file}:{place} {what}")

    def get(self, key: str, kind: str, default: Any = _REQUIRED) -> Any:
        """Return a field of a kind in ``_KINDS``, or ``default`` if it is missing.

        Raises:
            PanopticFileError: If it is missing without a default, or of another kind.
        """
        if key not in self.content and default is not _REQUIRED:
            return default
        if key not in self.content:
            raise self.error(f"has no `{key}` ({kind})")
        value = self.content[key]
        if not _KINDS[kind](value):
            raise self.error(f"has `{key}` {_shown(value)}, not {kind}")
        return value

    def items(self, key: str) -> list[_Entry]:
        """Return the objects of a list.

        Raises:
            PanopticFileError: If the field is missing or not a list of objects.
        """
        start = f"{self.place}, {key}" if self.place else key
        rows = enumerate(self.get(key, "a list"))
        return [_Entry(row, self.file, f"{start}[{i}]") for i, row in rows]

    def by_id(self, key: str) -> dict[int | str, _Entry]:
        """Return the objects of a list by their ``id``.

        Raises:
            PanopticFileError: As for :meth:`items`, or if an id is missing or duplicate.
        """
        rows: dict[int | str, _Entry] = {}
        for row in self.items(key):
            id_ = row.get("id", "a whole number or text")
            if id_ in rows:
                raise row.error(f"has the id {_shown(id_)} of {rows[id_].place}")
            rows[id_] = row
        return rows


def _shown(value: Any) -> str:
    """Return a value as shortened JSON, so that 1 and "1" look different."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return printable(json.dumps(value, ensure_ascii=False), limit=60)


class _Index:
    """The checked content of a COCO panoptic JSON file, and reader of its maps."""

    def __init__(self, content: _Entry) -> None:
        self.annotations = content.items("annotations")
        self.images = content.by_id("images")
        self.categories = content.by_id("categories")
        self.label_of = {id_: label for label, id_ in enumerate(self.categories)}
        self.names = tuple(c.get("name", "text") for c in self.categories.values())
        self.is_thing = [bool(c.get("isthing", "0 or 1")) for c in self.categories.values()]
        self._seen: set[int | str] = set()
        self._other_areas: list[str] = []

    def read(self, annotation: _Entry, png_dir: Path) -> SegmentationResult:
        """Return the result of an annotation and its map."""
        if "segments_info" not in annotation.content and "segmentation" in annotation.content:
            raise annotation.error(
                "has `segmentation` but no `segments_info`, so it is an annotation of single "
                "instances; pass the panoptic JSON file instead"
            )
        file_name = annotation.get("file_name", "text")
        where = f"{annotation.file}: `file_name` of {annotation.place}"
        path = path_inside(png_dir, file_name, PanopticFileError, where)
        annotation.place += f" ({printable(file_name)})"
        image = self._image_of(annotation)
        ids = read_panoptic_png(path)
        digest = annotation.get("ids_sha256", "text", default=None)
        if digest is not None and digest != digest_of(ids):
            raise annotation.error(
                f"does not match the map {printable(path)}: one of them is from another run or was "
                "changed; repeat the command that wrote them"
            )
        _check_size(ids, image, path)
        found = _count(ids)
        segments: dict[int, Segment] = {}
        for info in annotation.items("segments_info"):
            segment = self._segment(info, found)
            if segment.id in segments:
                raise info.error(f"has the id {segment.id} of an earlier segment")
            segments[segment.id] = segment
        ids = np.where(np.isin(ids, list(segments)), ids, 0).astype(np.int32)
        return SegmentationResult(
            image_name=image.get("file_name", "text", default=file_name),
            height=ids.shape[0],
            width=ids.shape[1],
            panoptic=ids,
            segments=list(segments.values()),
            class_names=self.names,
            files=dict(panoptic=str(path)),
        )

    def _image_of(self, annotation: _Entry) -> _Entry:
        image_id = annotation.get("image_id", "a whole number or text")
        if image_id not in self.images:
            raise annotation.error(
                f"belongs to image {_shown(image_id)}, which `images` does not list"
            )
        if image_id in self._seen:
            raise annotation.error(f"is the second annotation of image {_shown(image_id)}")
        self._seen.add(image_id)
        return self.images[image_id]

    def _segment(self, info: _Entry, found: dict[int, int]) -> Segment:
        id_ = info.get("id", f"a whole number from 1 to {MAX_SEGMENT_ID}")
        category = info.get("category_id", "a whole number or text")
        if category not in self.label_of:
            raise info.error(f"has category {_shown(category)}, which `categories` does not list")
        area = info.get("area", "a number from 0")
        info.get("iscrowd", "0 or 1", default=0)
        info.get("bbox", "four numbers", default=None)
        if id_ not in found:
            raise info.error(f"has the id {id_}, which has no pixels in the map")
        if area != found[id_]:
            self._other_areas.append(f"{info.place} has {found[id_]} pixels and `area` {area}")
        label = self.label_of[category]
        return Segment(
            id=id_,
            label=label,
            name=self.names[label],
            score=float(info.get("score", "a number from 0 to 1", default=1.0)),
            area=found[id_],
            is_thing=self.is_thing[label],
        )

    def warn_of_areas(self, json_path: Path) -> None:
        """Warn about areas that differ from the maps, with their number and the first one."""
        if self._other_areas:
            warnings.warn(
                f"{printable(json_path)}: `area` differs from the number of pixels in the map, "
                f"which is used instead (segments: {len(self._other_areas)}; first: "
                f"{self._other_areas[0]})",
                stacklevel=3,
            )


def _count(ids: np.ndarray) -> dict[int, int]:
    """Return the number of pixels of every id in a map."""
    values, counts = np.unique(ids, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _check_size(ids: np.ndarray, image: _Entry, path: Path) -> None:
    height, width = ids.shape
    given = [image.get(key, "a whole number from 1", default=None) for key in ("width", "height")]
    if given != [width, height] and None not in given:
        raise image.error(
            f"is {given[0]} x {given[1]} pixels, but its map {printable(path)} is "
            f"{width} x {height}"
        )
