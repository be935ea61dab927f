"""Ground truth of one image, read from the files that a test sample's metainfo names.

Metrics read it themselves, one image at a time, so that samples carry no label maps and an
evaluation's memory does not grow with the data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from odise_mm.errors import DatasetError, PanopticFileError
from odise_mm.utils.image import DECODER_ERRORS
from odise_mm.utils.panoptic_io import read_panoptic_png

IGNORED = -1
"""Class of pixels that do not count, in the maps of :func:`read_semantic_truth`."""


class TruthSegment(NamedTuple):
    """One annotated segment of a panoptic map."""

    id: int
    label: int
    """Class index."""
    is_thing: bool
    is_crowd: bool


class PanopticTruth(NamedTuple):
    """Annotated segments of one image; every one has pixels, every pixel but void has one."""

    path: str
    """The PNG file, for messages."""
    ids: np.ndarray
    """(H, W) int32, 0 where void."""
    segments: tuple[TruthSegment, ...]


def count_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``np.unique(values, return_counts=True)``, 10 times as fast on label maps.

    Neighbouring pixels are mostly equal, so that only the runs need to be sorted.

    Args:
        values: integers of any shape.

    Returns:
        Sorted values and their counts (int64).
    """
    flat = values.reshape(-1)
    if not len(flat):
        return flat, np.zeros(0, np.int64)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=len(flat))
    found, place = np.unique(flat[starts], return_inverse=True)
    # Weights are float64, exact for any number of pixels that fits in memory.
    return found, np.bincount(place, weights=lengths).astype(np.int64)


def read_panoptic_truth(sample: Mapping[str, Any], num_classes: int) -> PanopticTruth:
    """Read ``seg_map_path`` and check it against ``segments_info``.

    Args:
        sample: metainfo with ``seg_map_path`` and ``segments_info``, see ``PanopticDataset``.
        num_classes: of the vocabulary.

    Raises:
        DatasetError: the sample names no panoptic ground truth, the file is missing or no
            panoptic PNG, or it contradicts ``segments_info`` or the vocabulary.
    """
    path, infos = sample.get("seg_map_path"), sample.get("segments_info")
    if path is None or infos is None:
        raise DatasetError(
            f"{name_of(sample)}: no panoptic ground truth (seg_map_path and segments_info); the "
            "metric needs a PanopticDataset, or an ann_file where it takes one"
        )
    try:
        ids = read_panoptic_png(path)
    except PanopticFileError as err:
        raise DatasetError(f"ground truth: {err}") from err
    segments = tuple(
        TruthSegment(
            int(info["id"]), int(info["label"]), bool(info["is_thing"]), bool(info["is_crowd"])
        )
        for info in infos
    )
    described = {segment.id for segment in segments}
    drawn = set(count_values(ids)[0].tolist()) - {0}
    if len(described) < len(segments):
        raise DatasetError(f"{path}: segments_info has two segments of the same id")
    if drawn - described:
        raise DatasetError(
            f"{path}: segment {min(drawn - described)} is not in the JSON file's segments_info"
        )
    if described - drawn:
        raise DatasetError(
            f"{path}: segment {min(described - drawn)} of the JSON file has no pixel here"
        )
    for segment in segments:
        _check_label(path, segment.label, num_classes)
    return PanopticTruth(str(path), ids, segments)


def read_semantic_truth(sample: Mapping[str, Any], num_classes: int) -> tuple[np.ndarray, str]:
    """Class of every pixel: from ``sem_seg_path``, or else from the panoptic ground truth.

    In a label file, 255 (in 16 bits: 65535) is ignored; with ``reduce_zero_label`` also 0, and
    classes count from 1. From a panoptic map all segments take their class, crowd regions
    included, as in the semantic ground truth that COCO's own converter makes of it; void is
    ignored.

    Args:
        sample: metainfo.
        num_classes: of the vocabulary.

    Returns:
        (H, W) int32 class indices or :data:`IGNORED`, and the file's path for messages.

    Raises:
        DatasetError: the file is missing or no label map, or has a class beyond the vocabulary.
    """
    path = sample.get("sem_seg_path")
    if path is None:
        truth = read_panoptic_truth(sample, num_classes)
        values = np.array([0, *(segment.id for segment in truth.segments)])
        labels = np.array([IGNORED, *(s.label for s in truth.segments)], np.int32)
        order = np.argsort(values)
        return labels[order][np.searchsorted(values[order], truth.ids)], truth.path
    try:
        with Image.open(path) as image:
            mode, raw = image.mode, np.asarray(image)
    except DECODER_ERRORS as err:
        raise DatasetError(f"{path}: not a readable label map ({err})") from err
    if mode not in ("L", "P") and not mode.startswith("I"):
        raise DatasetError(f"{path}: a label map has one channel of 8 or 16 bits, this is {mode}")
    ignored = 255 if mode in ("L", "P") else 65535
    labels = np.where(raw == ignored, IGNORED, raw.astype(np.int32)).astype(np.int32)
    if sample.get("reduce_zero_label", False):
        labels = np.where(labels > 0, labels - 1, IGNORED).astype(np.int32)
    _check_label(path, int(labels.max(initial=0)), num_classes)
    return labels, str(path)


def check_size(path: str, truth: tuple[int, ...], result: tuple[int, ...]) -> None:
    """Compare the height and width of ground truth and result.

    Raises:
        DatasetError: they differ.
    """
    if tuple(truth) != tuple(result):
        raise DatasetError(
            f"{path}: the ground truth has {truth[0]} x {truth[1]} pixels (height x width), the "
            f"image's result {result[0]} x {result[1]}: it belongs to another version of the image"
        )


def name_of(sample: Mapping[str, Any]) -> str:
    """The image's path, or what else tells it from others, for messages."""
    return str(sample.get("img_path") or f"image {sample.get('img_id', 'of unknown id')}")


def _check_label(path: str, label: int, num_classes: int) -> None:
    if not label < num_classes:
        raise DatasetError(
            f"{path}: class index {label}, but the vocabulary has {num_classes} classes (from 0); "
            "the data set needs its own vocabulary, and reduce_zero_label if its classes count "
            "from 1"
        )
