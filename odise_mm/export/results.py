"""Panoptic segments from the outputs of an exported model. Needs only NumPy.

`odise-mm export` copies this file beside the model. The README there shows how to use it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def input_size(size: tuple[int, int], description: dict[str, Any]) -> tuple[int, int]:
    """Return the size to which an image has to be resized for the model.

    Args:
        size: height and width of the image.
        description: content of ``model.json``.

    Returns:
        ``image_size`` of the description. If that is null, the height and width as during testing,
        with the aspect ratio of the image.
    """
    if description["image_size"] is not None:
        return tuple(description["image_size"])
    if description["scale"] is None:
        return size
    long, short = description["scale"]
    factor = min(long / max(size), short / min(size))
    height, width = (max(int(side * factor + 0.5), 1) for side in size)
    return height, width


def prepare(image: NDArray, description: dict[str, Any]) -> NDArray:
    """Convert an image to the input of the model, with padding at bottom and right.

    Resize the image to :func:`input_size` before, with the library of your choice. The published
    models were tested on images that Pillow had resized bilinearly.

    Args:
        image: (height, width, 3) uint8, RGB.
        description: content of ``model.json``.

    Returns:
        (1, 3, H, W) float32 in [0, 1].

    Raises:
        ValueError: the image has the wrong type or size.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected (height, width, 3) uint8, got {image.shape} {image.dtype}")
    size, wanted = image.shape[:2], description["image_size"]
    if wanted is not None and list(size) != list(wanted):
        raise ValueError(f"the model takes images of {wanted[0]} x {wanted[1]} pixels, not {size}")
    divisor = description["divisor"]
    padded = [-(-side // divisor) * divisor for side in size]
    out = np.empty((1, 3, *padded), np.float32)
    out[:] = np.array(description["pad_color"], np.float32).reshape(1, 3, 1, 1)
    out[0, :, : size[0], : size[1]] = np.moveaxis(image, 2, 0).astype(np.float32) / np.float32(255)
    return out


def panoptic(
    masks: NDArray,
    probabilities: NDArray,
    description: dict[str, Any],
    size: tuple[int, int],
    image_size: tuple[int, int] | None = None,
) -> tuple[NDArray, list[dict[str, Any]]]:
    """Merge the masks of one image into a map without overlaps.

    The rules are those of ``odise_mm.models.postprocess.panoptic_inference`` (Mask2Former, arXiv
    2112.01527).

    Args:
        masks: mask logits of the padded image, (Q, h, w).
        probabilities: of the K classes and void, (Q, K + 1).
        description: content of ``model.json``. ``classes`` and ``settings`` may be changed.
        size: height and width of the result.
        image_size: height and width of the image that was passed to :func:`prepare`; needed if
            the description has none.

    Returns:
        (height, width) int32 map of segment ids, 0 for void; and the segments, with ``id``,
        ``label``, ``name``, ``is_thing``, ``score`` and ``area``, in order of their ids.

    Raises:
        ValueError: shapes do not match, or a size is missing.
    """
    classes, settings = description["classes"], description["settings"]
    if len(masks) != len(probabilities) or probabilities.shape[1] != len(classes) + 1:
        raise ValueError(
            f"masks {masks.shape}, probabilities {probabilities.shape} and {len(classes)} classes "
            "do not match"
        )
    inside_size = description["mask_frame"] or image_size or description["image_size"]
    if inside_size is None:
        raise ValueError("pass image_size: this model takes images of any size")
    if description["mask_frame"]:
        padded, inside_size = inside_size
    else:
        divisor = description["divisor"]
        padded = [-(-side // divisor) * divisor for side in inside_size]
    scores, labels = probabilities.max(1), probabilities.argmax(1)
    kept = np.flatnonzero((labels < len(classes)) & (scores > settings["score_threshold"]))
    best = np.full(size, -1, np.float32)
    winner = np.zeros(size, np.int64)
    inside = np.zeros(size, bool)
    own = np.zeros(len(kept) + 1, np.int64)
    for index, query in enumerate(kept, start=1):
        mask = masks[query].astype(np.float32)
        if settings["mask_resize"] == "probability":
            mask = _sigmoid(mask)
        mask = resize(resize(mask, padded)[: inside_size[0], : inside_size[1]], size)
        if settings["mask_resize"] != "probability":
            mask = _sigmoid(mask)
        own[index] = (mask >= 0.5).sum()
        score = scores[query] * mask
        better = score > best
        best[better], winner[better], inside[better] = score[better], index, mask[better] >= 0.5
    won = np.bincount(winner.ravel(), minlength=len(kept) + 1)
    visible = np.bincount(winner[inside], minlength=len(kept) + 1)

    segments: list[dict[str, Any]] = []
    stuff: dict[int, dict[str, Any]] = {}
    own_segments: dict[int, dict[str, Any]] = {}
    for index, query in enumerate(kept, start=1):
        area, label, score = int(visible[index]), int(labels[query]), float(scores[query])
        if area == 0 or won[index] / own[index] < settings["overlap_threshold"]:
            continue
        is_thing = classes[label]["is_thing"]
        if not is_thing and label in stuff:
            first = stuff[label]
            total = first["area"] + area
            first["score"] = (first["score"] * first["area"] + score * area) / total
            first["area"] = total
            own_segments[index] = first
            continue
        segment = dict(
            id=0,
            label=label,
            name=classes[label]["name"],
            is_thing=is_thing,
            score=score,
            area=area,
        )
        segments.append(segment)
        own_segments[index] = segment
        if not is_thing:
            stuff[label] = segment
    segments = [segment for segment in segments if segment["area"] >= settings["min_area"]]
    for number, segment in enumerate(segments, start=1):
        segment["id"] = number
    segment_of = np.zeros(len(kept) + 1, np.int32)
    for index, segment in own_segments.items():
        segment_of[index] = segment["id"]
    return segment_of[np.where(inside, winner, 0)], segments


def resize(values: NDArray, size: tuple[int, int] | list[int]) -> NDArray:
    """Resize a map (h, w) float32: bilinear, half-pixel centers, without antialiasing."""
    for axis, length in enumerate(size):
        count = values.shape[axis]
        if count == length:
            continue
        ratio = np.float32(count) / np.float32(length)
        where = (np.arange(length, dtype=np.float32) + np.float32(0.5)) * ratio - np.float32(0.5)
        where = np.clip(where, 0, None)
        low = np.minimum(where.astype(np.int64), count - 1)
        high = np.minimum(low + 1, count - 1)
        part = np.expand_dims((where - low).astype(np.float32), 1 - axis)
        values = values.take(low, axis) * (1 - part) + values.take(high, axis) * part
    return values


def _sigmoid(values: NDArray) -> NDArray:
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the result is 0
        return 1 / (1 + np.exp(-values))
