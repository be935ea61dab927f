"""Ground truth of one image, read from the files that a test sample's metainfo names.

Metrics read it themselves, one image at a time, so that samples carry no label maps and an
evaluation's memory does not grow with the dataset.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from mmengine.logging import print_log

from odise_mm.annotations.label_maps import IGNORED, class_indices, ignored_value, read_label_map
from odise_mm.annotations.panoptic_io import read_panoptic_png
from odise_mm.errors import DatasetError, PanopticFileError
from odise_mm.utils.display import printable
from odise_mm.utils.image import turned_hint


class TruthSegment(NamedTuple):
    """One annotated segment of a panoptic map.

    Unlike a :class:`~odise_mm.structures.Segment`, which was found, it may be a crowd region, and
    its area is what a JSON file claims, if anything. It has neither a score nor a name.
    """

    id: int
    label: int
    """Class index."""
    is_thing: bool
    is_crowd: bool
    area: float | None = None
    """Pixels, as the JSON file says; None where it does not."""


class PanopticTruth(NamedTuple):
    """Annotated segments of one image; every one has pixels, every pixel but void has one."""

    path: str
    """The PNG file, for messages."""
    ids: np.ndarray
    """(H, W) int32, 0 where void."""
    segments: tuple[TruthSegment, ...]
    pixels: tuple[int, ...] = ()
    """Pixels of every segment in the map."""

    @property
    def wrong_areas(self) -> list[tuple[TruthSegment, int]]:
        """Segments, crowd regions aside, whose JSON file says another area, and their pixels."""
        pairs = zip(self.segments, self.pixels, strict=False)
        return [(s, n) for s, n in pairs if not s.is_crowd and s.area is not None and s.area != n]


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
            int(info["id"]),
            int(info["label"]),
            bool(info["is_thing"]),
            bool(info["is_crowd"]),
            info.get("area"),
        )
        for info in infos
    )
    described = {segment.id for segment in segments}
    values, counts = count_values(ids)
    pixels_of = dict(zip(values.tolist(), counts.tolist(), strict=True))
    drawn = pixels_of.keys() - {0}
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
    return PanopticTruth(str(path), ids, segments, tuple(pixels_of[s.id] for s in segments))


def read_semantic_truth(sample: Mapping[str, Any], num_classes: int) -> tuple[np.ndarray, str]:
    """Class of every pixel: from ``sem_seg_path``, or else from the panoptic ground truth.

    In a label file, 255 (in 16 bits: 65535) is ignored; with ``reduce_zero_label`` also 0, and
    classes count from 1. A warning names, once for every folder, a file in which 0 is the only
    number beside it, or in which nothing counts. From a panoptic map all segments take their
    class, crowd regions included, as in the semantic ground truth that COCO's own converter makes
    of it; void is ignored.

    Args:
        sample: metainfo.
        num_classes: of the vocabulary.

    Returns:
        (H, W) int32 class indices or :data:`IGNORED`, and the file's path for messages.

    Raises:
        DatasetError: the file is missing or no label map, has a class beyond the vocabulary, or
            one that its bits cannot tell from "ignored".
    """
    path = sample.get("sem_seg_path")
    if path is None:
        truth = read_panoptic_truth(sample, num_classes)
        values = np.array([0, *(segment.id for segment in truth.segments)])
        labels = np.array([IGNORED, *(s.label for s in truth.segments)], np.int32)
        order = np.argsort(values)
        return labels[order][np.searchsorted(values[order], truth.ids)], truth.path
    numbers = read_label_map(path)
    from_one = bool(sample.get("reduce_zero_label", False))
    labels = class_indices(numbers, path, num_classes, from_one)
    _warn_of_odd_map(path, numbers, labels)
    return labels, str(path)


_warned: set[tuple[str, str]] = set()


def _warn_of_odd_map(path: str | os.PathLike[str], numbers: np.ndarray, labels: np.ndarray) -> None:
    """Say, once for every folder, where a label map hardly can be what was meant."""
    ignored, values = ignored_value(numbers), set(count_values(numbers)[0].tolist())
    if ignored not in values and (labels != IGNORED).any():
        return
    if (labels == IGNORED).all():
        said = (
            f"every pixel is ignored (it holds {', '.join(map(str, sorted(values)))}): the image "
            "counts for nothing"
        )
        what = "all"
    elif values == {0, ignored}:
        said = (
            f"holds 0 and {ignored} alone, and {ignored} means 'ignored': class 0 is all that "
            f"counts. If {ignored} is meant to be a class (black and white masks), write 1 instead"
        )
        what = "two"
    else:
        return
    folder = os.path.dirname(os.fspath(path))
    if (folder, what) not in _warned:
        _warned.add((folder, what))
        print_log(
            f"{printable(path)}: {said}. Further label maps like this in this folder are not named",
            logger="current",
            level=logging.WARNING,
        )


def check_size(
    path: str,
    truth: tuple[int, ...],
    result: tuple[int, ...],
    picture: str | os.PathLike[str] | None = None,
) -> None:
    """Compare the height and width of ground truth and result.

    Args:
        path: of the ground truth, for messages.
        truth, result: height and width.
        image: the image's file, where it is known.

    Raises:
        DatasetError: they differ.
    """
    if tuple(truth) != tuple(result):
        raise DatasetError(
            f"{path}: the ground truth has {truth[0]} x {truth[1]} pixels (height x width), the "
            f"image's result {result[0]} x {result[1]}: it belongs to another version of the image"
            + turned_hint(truth, result, picture)
        )


def name_of(sample: Mapping[str, Any]) -> str:
    """The image's path, or what else tells it from others, for messages."""
    return str(sample.get("img_path") or f"image {sample.get('img_id', 'of unknown id')}")


def _check_label(path: str, label: int, num_classes: int) -> None:
    if not label < num_classes:
        raise DatasetError(
            f"{path}: class index {label}, but the vocabulary has {num_classes} classes (from 0); "
            "the dataset needs its own vocabulary, and reduce_zero_label if its classes count "
            "from 1"
        )
