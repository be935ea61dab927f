"""Teaching by examples: regions of images are embedded and added to the model's memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from mmengine.logging import print_log

from odise_mm.errors import ConfigError
from odise_mm.models.segmentors.regions import EmbeddedRegions
from odise_mm.structures import SegmentationResult
from odise_mm.structures.geometry import box_of
from odise_mm.utils.display import printable
from odise_mm.utils.thumbnails import thumbnail

if TYPE_CHECKING:
    from odise_mm.models import Region, RegionMemory

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels, the latter exclusive."""
_FITS = 0.5  # intersection over union of a box and the box of a mask
_SEEN = 0.5  # intersection over union of a region and one of the model's masks


@dataclass(frozen=True)
class Example:
    """A region of an image, given as one of three.

    Attributes:
        name: class name.
        mask: (H, W) bool, of the image's size.
        box: left, top, right, bottom in pixels. The region is the model's mask that fits it, or all
            its pixels if none does.
        point: x and y in pixels. The region is the model's segment there, or its most certain mask.
        is_thing: whether the class is a thing.
    """

    name: str
    mask: np.ndarray | None = None
    box: Sequence[float] | None = None
    point: Sequence[float] | None = None
    is_thing: bool = True


@dataclass(frozen=True)
class Taught:
    """What became of an example.

    Attributes:
        region: the region in the memory; None if it was there already.
        mask: its pixels, (H, W) bool.
        origin: where the mask is from: ``given``, ``box``, or ``model``.
        overlap: largest intersection over union with a mask of the model. If it is low, the model
            will hardly find such regions, whatever their name.
    """

    region: Region | None
    mask: np.ndarray
    origin: str
    overlap: float


def teach(
    memory: RegionMemory,
    image: str,
    pixels: np.ndarray,
    examples: Sequence[Example],
    segment: Callable[[], SegmentationResult],
    embed: Callable[[np.ndarray], EmbeddedRegions],
    pictures: bool = True,
) -> list[Taught]:
    """Add the regions of one image to a memory.

    Args:
        memory: the memory.
        image: name of the image.
        pixels: the image, (H, W, 3) uint8 BGR.
        examples: the regions.
        segment: returns a result of the image with its queries; called if a mask must be found.
        embed: embeds masks, (R, H, W) bool.
        pictures: whether the memory keeps small pictures of the regions.

    Raises:
        ConfigError: an example is not exactly one of mask, box and point, is empty or outside the
            image, or the model has no mask at a point.
    """
    size = (int(pixels.shape[0]), int(pixels.shape[1]))
    for example in examples:
        _check(example, size)
    found = None
    if any(example.mask is None for example in examples):
        found = segment()
    pairs = [_mask_of(example, size, found) for example in examples]
    masks = np.stack([mask for mask, _ in pairs])
    embedded = embed(masks)
    regions = memory.add(
        embedded.embeddings,
        [example.name for example in examples],
        [image] * len(examples),
        [box_of(mask) for mask in masks],
        [example.is_thing for example in examples],
        embedded.backgrounds.tolist(),
        [thumbnail(pixels, mask) for mask in masks] if pictures else None,
        embedded.surroundings,
    )
    overlaps = embedded.overlap.tolist()
    taught = [
        Taught(region, mask, origin, overlap)
        for region, (mask, origin), overlap in zip(regions, pairs, overlaps, strict=True)
    ]
    unseen = sum(overlap < _SEEN for overlap in overlaps)
    if unseen:
        print_log(
            f"{printable(image)}: the model makes no mask like {unseen} of {len(taught)} regions, "
            "so it may not find such regions",
            logger="current",
            level=logging.WARNING,
        )
    return taught


def _check(example: Example, size: tuple[int, int]) -> None:
    height, width = size
    where = f"example of {printable(example.name)!r}"
    given = [name for name in ("mask", "box", "point") if getattr(example, name) is not None]
    if len(given) != 1:
        raise ConfigError(
            f"{where}: give exactly one of mask, box and point, not {given or 'none'}"
        )
    if example.mask is not None:
        mask = np.asarray(example.mask)
        if mask.shape != size or not mask.any():
            raise ConfigError(
                f"{where}: the mask has the shape {mask.shape}; it must have that of the image, "
                f"{size}, and at least one pixel"
            )
        return
    values = (example.box if example.point is None else example.point) or ()
    count = 4 if example.point is None else 2
    if len(values) != count or not np.isfinite(np.asarray(values, float)).all():
        raise ConfigError(f"{where}: {given[0]}={values!r} must be {count} numbers")
    x, y = values[:2]
    right, bottom = values[2:] if count == 4 else (x + 1, y + 1)
    if not (0 <= x < right <= width and 0 <= y < bottom <= height):
        raise ConfigError(
            f"{where}: {given[0]}={tuple(values)} must lie inside the image, {width} x {height} "
            "pixels (left, top, right, bottom, or x, y)"
        )


def _mask_of(
    example: Example, size: tuple[int, int], found: SegmentationResult | None
) -> tuple[np.ndarray, str]:
    if example.mask is not None:
        return np.asarray(example.mask).astype(bool), "given"
    assert found is not None
    if example.box is not None:
        return _in_box(example.box, size, found)
    return _at_point(example, found), "model"


def _in_box(
    box: Sequence[float], size: tuple[int, int], found: SegmentationResult
) -> tuple[np.ndarray, str]:
    queries = found.require_queries()
    best, chosen = _FITS, None
    for query in range(len(queries)):
        mask = queries.mask(query) >= 0.5
        if mask.any() and (overlap := _box_overlap(box_of(mask), box)) >= best:
            best, chosen = overlap, mask
    if chosen is not None:
        return chosen, "model"
    mask = np.zeros(size, bool)
    left, top, right, bottom = (round(value) for value in box)
    mask[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    return mask, "box"


def _box_overlap(first: Sequence[float], second: Sequence[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / max(sum(areas) - shared, 1)


def _at_point(example: Example, found: SegmentationResult) -> np.ndarray:
    assert example.point is not None
    x, y = (int(value) for value in example.point)
    id_ = found.require_panoptic()[y, x]
    if id_:
        return found.panoptic == id_
    queries = found.require_queries()
    best, chosen = 0.0, None
    for query in range(len(queries)):
        probability = queries.mask(query)
        if probability[y, x] >= 0.5:
            inside = probability >= 0.5
            certainty = float(probability[inside].mean() * probability[y, x])
            if certainty > best:
                best, chosen = certainty, inside
    if chosen is None:
        raise ConfigError(
            f"example of {printable(example.name)!r}: the model has no mask at point "
            f"{tuple(example.point)}; give a box or a mask"
        )
    return chosen
