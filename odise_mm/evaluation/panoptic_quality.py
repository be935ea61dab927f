"""Panoptic quality (Kirillov et al., arXiv 1801.00868), with crowd and void as in panopticapi.

The results equal panopticapi's if the annotated areas are correct: panopticapi reads the area of
segments from the JSON file, while this module counts their pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from mmengine.logging import print_log

from odise_mm.annotations.ground_truth import (
    PanopticTruth,
    TruthSegment,
    check_size,
    count_pairs,
    name_of,
    read_panoptic_truth,
)
from odise_mm.evaluation.base import DatasetMetric, Numbers, check_labels, result_of, to_numpy
from odise_mm.registry import METRICS
from odise_mm.utils.display import printable


class PanopticCounts(NamedTuple):
    """Counts from which panoptic quality is computed, summed over images."""

    tp: np.ndarray
    """(K,) int64, number of matched segments per class."""
    fp: np.ndarray
    """(K,) int64, number of predicted segments without a match."""
    fn: np.ndarray
    """(K,) int64, number of annotated segments without a match."""
    iou: np.ndarray
    """(K,) float64, sum of the IoU of matched segments."""

    @classmethod
    def zeros(cls, num_classes: int) -> PanopticCounts:
        """Return zero counts of K classes."""
        tp, fp, fn = np.zeros((3, num_classes), np.int64)
        return cls(tp, fp, fn, np.zeros(num_classes))

    def add(self, other: PanopticCounts) -> None:
        """Add other counts in place."""
        for total, part in zip(self, other, strict=True):
            total += part


def match_segments(
    truth_ids: np.ndarray,
    truth_segments: Sequence[TruthSegment],
    result_ids: np.ndarray,
    result_labels: Mapping[int, int],
    num_classes: int,
) -> PanopticCounts:
    """Match the segments of one image.

    A pair matches if both segments have the same class and their IoU is above 0.5, with void
    excluded from the union. Crowd regions are neither matched nor missed. An unmatched result
    segment is not counted if more than half of it is void or a crowd region of its class (if there
    are several such regions, the last one, as in panopticapi).

    Args:
        truth_ids: (H, W) integers in [0, 2^24), 0 for void.
        truth_segments: all segments of the map; pixels of other ids match nothing.
        result_ids: (H, W) integers in [0, 2^24), 0 for no segment.
        result_labels: segment id -> class index, for exactly the ids in ``result_ids``.
        num_classes: K.

    Raises:
        ValueError: ``result_ids`` and ``result_labels`` do not have the same ids.
    """
    pairs, areas = count_pairs(truth_ids, result_ids)
    keys = zip((pairs >> 32).tolist(), (pairs & 0xFFFFFFFF).tolist(), strict=True)
    overlap = dict(zip(keys, areas.tolist(), strict=True))
    truth_area: dict[int, int] = {}
    result_area: dict[int, int] = {}
    for (truth, result), area in overlap.items():
        truth_area[truth] = truth_area.get(truth, 0) + area
        result_area[result] = result_area.get(result, 0) + area
    result_area.pop(0, None)
    if result_area.keys() != result_labels.keys():
        odd = min(result_area.keys() ^ result_labels.keys())
        where = "segments_info" if odd in result_area else "the map"
        raise ValueError(f"segment {odd} of the result is not in {where}")

    counts = PanopticCounts.zeros(num_classes)
    segments = {segment.id: segment for segment in truth_segments}
    matched_truth, matched_result = set(), set()
    for (truth, result), area in overlap.items():
        segment, label = segments.get(truth), result_labels.get(result)
        if segment is None or segment.is_crowd or segment.label != label:
            continue
        union = truth_area[truth] + result_area[result] - area - overlap.get((0, result), 0)
        if area / union > 0.5:
            counts.tp[label] += 1
            counts.iou[label] += area / union
            matched_truth.add(truth)
            matched_result.add(result)

    crowd_of = {segment.label: segment.id for segment in truth_segments if segment.is_crowd}
    for segment in truth_segments:
        if not segment.is_crowd and segment.id not in matched_truth:
            counts.fn[segment.label] += 1
    for result, label in result_labels.items():
        if result in matched_result:
            continue
        excused = overlap.get((0, result), 0)
        if label in crowd_of:
            excused += overlap.get((crowd_of[label], result), 0)
        if not excused / result_area[result] > 0.5:
            counts.fp[label] += 1
    return counts


def panoptic_quality(
    counts: PanopticCounts, is_thing: Sequence[bool]
) -> tuple[Numbers, list[Numbers | None]]:
    """Compute PQ, SQ and RQ in percent.

    Means are taken over the classes that occur in the ground truth or the results.

    Args:
        counts: sum of the counts of all images.
        is_thing: K flags.

    Returns:
        ``PQ``, ``SQ`` and ``RQ`` of all classes, with the suffix ``_th`` of things and ``_st`` of
        stuff (NaN if no such class occurs); and a list with the values of each class, None for
        classes that do not occur.
    """
    occurs = counts.tp + counts.fp + counts.fn > 0
    weight = np.maximum(counts.tp + 0.5 * counts.fp + 0.5 * counts.fn, 0.5)
    values = dict(
        PQ=100 * counts.iou / weight,
        SQ=100 * counts.iou / np.maximum(counts.tp, 1),
        RQ=100 * counts.tp / weight,
    )
    things = np.asarray(is_thing, bool)
    numbers = {
        name + suffix: float(value[occurs & group].mean()) if (occurs & group).any() else np.nan
        for suffix, group in (("", things | True), ("_th", things), ("_st", ~things))
        for name, value in values.items()
    }
    per_class = [
        {name: float(value[k]) for name, value in values.items()} if occurs[k] else None
        for k in range(len(things))
    ]
    return numbers, per_class


@dataclass
class _Totals:
    """Sums over images."""

    counts: PanopticCounts
    segments: int = 0
    """Number of annotated segments, without crowd regions."""
    wrong_areas: int = 0
    """Number of these whose area differs between the JSON file and the map."""
    example: str = ""
    """Description of the first such segment."""

    def note_areas(self, truth: PanopticTruth) -> None:
        self.segments += sum(not segment.is_crowd for segment in truth.segments)
        wrong = truth.wrong_areas
        self.wrong_areas += len(wrong)
        if wrong and not self.example:
            segment, pixels = wrong[0]
            self.example = (
                f"{truth.path}, segment {segment.id}: {segment.area} in the JSON file, {pixels} "
                "pixels in the map"
            )


@METRICS.register_module()
class PanopticQuality(DatasetMetric):
    """PQ, SQ and RQ of all classes, things and stuff.

    The ground truth is ``seg_map_path`` and ``segments_info`` of the samples; see
    :func:`match_segments` and :func:`panoptic_quality`. Memory does not grow with the dataset.
    Areas are counted in the maps. If those in the JSON file differ, a warning says how many, since
    panopticapi uses them and its results differ in that case.
    """

    task = "panoptic"
    default_prefix = "panoptic"
    class_means = dict(PQ="PQ", SQ="SQ", RQ="RQ")

    def add_image(self, sample: Mapping[str, Any]) -> None:
        """Match the segments of an image's ``pred_panoptic_seg``.

        Raises:
            DatasetError: see :func:`read_panoptic_truth`; or the sizes differ.
            ConfigError: the model made no panoptic result, or used another vocabulary.
            ValueError: the result is inconsistent.
        """
        num_classes = len(self.vocabulary)
        result = result_of(sample, "pred_panoptic_seg", self)
        ids = to_numpy(result["sem_seg"])[0]
        labels = {int(s["id"]): int(s["category_id"]) for s in result["segments_info"]}
        if len(labels) < len(result["segments_info"]):
            raise ValueError(f"{name_of(sample)}: two segments of the result have the same id")
        check_labels(sample, np.array(list(labels.values())), num_classes)
        truth = read_panoptic_truth(sample, num_classes)
        check_size(truth.path, truth.ids.shape, ids.shape, sample.get("img_path"))
        if not self.results:
            self.results.append(_Totals(PanopticCounts.zeros(num_classes)))
        totals: _Totals = self.results[0]
        totals.counts.add(match_segments(truth.ids, truth.segments, ids, labels, num_classes))
        totals.note_areas(truth)

    def compute(self, results: list[_Totals]) -> tuple[Numbers, list[Numbers | None]]:
        """Sum the counts and compute the metrics, see :func:`panoptic_quality`."""
        total = PanopticCounts.zeros(len(self.vocabulary))
        for part in results:
            total.add(part.counts)
        wrong = sum(part.wrong_areas for part in results)
        if wrong:
            print_log(
                f"{self.prefix}: {wrong} of {sum(part.segments for part in results)} annotated "
                "segments have a different area in the JSON file than in their map (the first: "
                f"{printable(next(part.example for part in results if part.example))}). This "
                "metric counts pixels; panopticapi uses the JSON file, so its results differ",
                logger="current",
                level=logging.WARNING,
            )
        return panoptic_quality(total, self.vocabulary.is_thing)
