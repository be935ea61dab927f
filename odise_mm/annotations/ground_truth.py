"""Ground truth of one image, read from the files named in a test sample's metainfo.

Metrics read it one image at a time. Samples therefore contain no label maps, and the memory of an
evaluation does not grow with the dataset.
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

    Unlike a predicted :class:`~odise_mm.structures.Segment`, it may be a crowd region, has neither
    a score nor a name, and its area is the one in the JSON file, if any.
    """

    id: int
    label: int
    """Class index."""
    is_thing: bool
    is_crowd: bool
    area: float | None = None
    """Area in pixels according to the JSON file; None if it has no area."""


class PanopticTruth(NamedTuple):
    """The annotated segments of one image.

    Every segment has pixels, and every pixel that is not void belongs to a segment.
    """

    path: str
    """Path of the PNG file, for messages."""
    ids: np.ndarray
    """(H, W) int32, segment ids, 0 for void."""
    segments: tuple[TruthSegment, ...]
    pixels: tuple[int, ...] = ()
    """Number of pixels of every segment in the map."""

    @property
    def wrong_areas(self) -> list[tuple[TruthSegment, int]]:
        """Non-crowd segments whose area in the JSON file is wrong, with their pixel counts."""
        pairs = zip(self.segments, self.pixels, strict=False)
        return [(s, n) for s, n in pairs if not s.is_crowd and s.area is not None and s.area != n]


def count_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count values like ``np.unique(values, return_counts=True)``, 10 times faster on label maps.

    Neighboring pixels are mostly equal, so sorting the runs is enough.

    Args:
        values: Integers of any shape.

    Returns:
        Sorted values and their counts (int64).
    """
    flat = values.reshape(-1)
    if not len(flat):
        return flat, np.zeros(0, np.int64)
    return _count_runs(flat, flat[1:] != flat[:-1])


def count_pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the pairs of values that two maps have at the same pixel.

    Args:
        first: Integers from 0 to 2^31 - 1.
        second: Integers in the same range and shape.

    Returns:
        Sorted pairs as int64, ``first * 2^32 + second``, and their counts (int64).
    """
    one, other = first.reshape(-1), second.reshape(-1)
    if not len(one):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    # Pairs are made once for each run; 64-bit maps of whole images would take most of the time.
    changes = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    return _count_runs((one, other), changes)


def _count_runs(
    values: np.ndarray | tuple[np.ndarray, np.ndarray], changes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count values, given where they differ from the value before."""
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    lengths = np.diff(starts, append=len(changes) + 1)
    if isinstance(values, tuple):
        one, other = (part[starts].astype(np.int64) for part in values)
        runs = one << 32 | other
    else:
        runs = values[starts]
    found = np.unique(runs)
    place = np.searchsorted(found, runs)  # unique's own inverse sorts the places as well
    # bincount's weights are float64, which is exact for any image that fits in memory.
    return found, np.bincount(place, weights=lengths).astype(np.int64)


def read_panoptic_truth(sample: Mapping[str, Any], num_classes: int) -> PanopticTruth:
    """Read ``seg_map_path`` and check it against ``segments_info``.

    Args:
        sample: Metainfo with ``seg_map_path`` and ``segments_info``, see ``PanopticDataset``.
        num_classes: Number of classes of the vocabulary.

    Raises:
        DatasetError: If the sample names no panoptic ground truth, the file is missing or not a
            panoptic PNG, or it contradicts ``segments_info`` or the vocabulary.
    """
    path, infos = sample.get("seg_map_path"), sample.get("segments_info")
    if path is None or infos is None:
        raise DatasetError(
            f"{name_of(sample)}: no panoptic ground truth (seg_map_path and segments_info); use a "
            "PanopticDataset, or set the metric's ann_file if it has one"
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
        raise DatasetError(f"{path}: segments_info has two segments with the same id")
    if drawn - described:
        raise DatasetError(
            f"{path}: segment {min(drawn - described)} is not in the JSON file's segments_info"
        )
    if described - drawn:
        raise DatasetError(
            f"{path}: segment {min(described - drawn)} of the JSON file has no pixels in this file"
        )
    for segment in segments:
        _check_label(path, segment.label, num_classes)
    return PanopticTruth(str(path), ids, segments, tuple(pixels_of[s.id] for s in segments))


def read_semantic_truth(sample: Mapping[str, Any], num_classes: int) -> tuple[np.ndarray, str]:
    """Read the class of every pixel from ``sem_seg_path``, or else from the panoptic map.

    In a label map, 255 (with 16 bits, 65535) is ignored. With ``reduce_zero_label``, 0 is ignored
    too, and classes are numbered from 1. A warning, once per folder, names a file in which every
    pixel is ignored, or in which 0 is the only other value. In a panoptic map, all segments keep
    their class, including crowd regions, as in the output of COCO's own converter; void is ignored.

    Args:
        sample: Metainfo.
        num_classes: Number of classes of the vocabulary.

    Returns:
        (H, W) int32, class indices or :data:`IGNORED`, and the path of the file for messages.

    Raises:
        DatasetError: If the file is missing or not a label map, or has a value that is not a class
            of the vocabulary or is both a class and "ignored".
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
    """Warn, once per folder, about a label map that is probably wrong."""
    ignored, values = ignored_value(numbers), set(count_values(numbers)[0].tolist())
    if ignored not in values and (labels != IGNORED).any():
        return
    if (labels == IGNORED).all():
        problem = (
            f"every pixel is ignored (values: {', '.join(map(str, sorted(values)))}), so the image "
            "has no effect on the results"
        )
        what = "all"
    elif values == {0, ignored}:
        problem = (
            f"the only values are 0 and {ignored}, and {ignored} means 'ignored', so only class 0 "
            f"counts. If {ignored} is meant to be a class (black and white masks), use 1 instead"
        )
        what = "two"
    else:
        return
    folder = os.path.dirname(os.fspath(path))
    if (folder, what) not in _warned:
        _warned.add((folder, what))
        print_log(
            f"{printable(path)}: {problem}. Further label maps like this in this folder are not "
            "reported",
            logger="current",
            level=logging.WARNING,
        )


def check_size(
    path: str,
    truth: tuple[int, ...],
    result: tuple[int, ...],
    image: str | os.PathLike[str] | None = None,
) -> None:
    """Check that ground truth and result have the same height and width.

    Args:
        path: Path of the ground truth, for messages.
        truth: Height and width of the ground truth.
        result: Height and width of the result.
        image: Path of the image file, if known.

    Raises:
        DatasetError: If they differ.
    """
    if tuple(truth) != tuple(result):
        raise DatasetError(
            f"{path}: the ground truth has {truth[0]} x {truth[1]} pixels (height x width), but "
            f"the image's result has {result[0]} x {result[1]}; it belongs to another version of "
            "the image" + turned_hint(truth, result, image)
        )


def name_of(sample: Mapping[str, Any]) -> str:
    """Return the name of a sample for messages: the path of its image, or else its id."""
    return str(sample.get("img_path") or f"image {sample.get('img_id', 'of unknown id')}")


def _check_label(path: str, label: int, num_classes: int) -> None:
    if not label < num_classes:
        raise DatasetError(
            f"{path}: class index {label}, but the vocabulary has {num_classes} classes (counted "
            "from 0); use the dataset's own vocabulary, and reduce_zero_label if its classes are "
            "numbered from 1"
        )
