"""Panoptic quality (Kirillov et al., arXiv 1801.00868), with crowd and void as in COCO's own tool.

Numbers agree with panopticapi's where the annotations' areas are right: panopticapi takes the area
of annotated segments from the JSON file, here their pixels are counted. Pure functions first, then
the metric on top of them.
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
    count_values,
    name_of,
    read_panoptic_truth,
)
from odise_mm.evaluation.base import DatasetMetric, Numbers, check_labels, result_of, to_numpy
from odise_mm.registry import METRICS
from odise_mm.utils.display import printable


class PanopticCounts(NamedTuple):
    """What panoptic quality is made of; sums over any number of images."""

    tp: np.ndarray
    """(K,) int64, matched segments of every class."""
    fp: np.ndarray
    """(K,) int64, predicted segments without a match."""
    fn: np.ndarray
    """(K,) int64, annotated segments without a match."""
    iou: np.ndarray
    """(K,) float64, sum of the matched segments' IoU."""

    @classmethod
    def zeros(cls, num_classes: int) -> PanopticCounts:
        """Of no image."""
        counts = (np.zeros(num_classes, np.int64) for _ in range(3))
        return cls(*counts, np.zeros(num_classes))

    def add(self, other: PanopticCounts) -> None:
        """Add in place."""
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

    A pair matches if it has one class and an IoU above 0.5, void left out of the union. Crowd
    regions are never matched or missed. An unmatched result segment does not count where more
    than half of it is void or crowd of its class (of several such regions the last, as in
    panopticapi).

    Args:
        truth_ids: (H, W) integers in [0, 2^24), 0 where void.
        truth_segments: all of the map; others' pixels match nothing.
        result_ids: (H, W) integers in [0, 2^24), 0 for none.
        result_labels: segment id -> class index, of exactly the ids in ``result_ids``.
        num_classes: K.

    Raises:
        ValueError: ``result_ids`` and ``result_labels`` do not have the same ids.
    """
    pairs, areas = count_values(truth_ids.astype(np.int64) << 32 | result_ids.astype(np.int64))
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
        raise ValueError(f"the result's segment {odd} is not in {where}")

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
    """PQ, SQ and RQ in percent, means over the classes that occur in ground truth or results.

    Args:
        counts: of all images.
        is_thing: K flags.

    Returns:
        ``PQ``, ``SQ``, ``RQ`` of all classes, and with ``_th`` and ``_st`` of things and stuff
        (NaN where no such class occurs); and those of every class, None where it never occurs.
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
class _Walked:
    """What is kept of any number of images."""

    counts: PanopticCounts
    segments: int = 0
    """Annotated ones, crowd regions aside."""
    wrong_areas: int = 0
    """Of these, how many have another area in the JSON file than in the map."""
    example: str = ""
    """The first of these."""

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
    """PQ, SQ, RQ of all classes, things and stuff; memory does not grow with the dataset.

    Ground truth: ``seg_map_path`` and ``segments_info`` of the samples. See
    :func:`match_segments` and :func:`panoptic_quality`. Areas are those of the maps; where the
    JSON file says others, a warning tells how many, as panopticapi believes them and comes to other
    numbers.
    """

    task = "panoptic"
    default_prefix = "panoptic"
    class_means = dict(PQ="PQ", SQ="SQ", RQ="RQ")

    def add_image(self, sample: Mapping[str, Any]) -> None:
        """Match one image's ``pred_panoptic_seg``.

        Raises:
            DatasetError: see :func:`read_panoptic_truth`, or the sizes differ.
            ConfigError: the model made no panoptic result, or one with another vocabulary.
            ValueError: the result contradicts itself.
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
            self.results.append(_Walked(PanopticCounts.zeros(num_classes)))
        kept: _Walked = self.results[0]
        kept.counts.add(match_segments(truth.ids, truth.segments, ids, labels, num_classes))
        kept.note_areas(truth)

    def compute(self, results: list[_Walked]) -> tuple[Numbers, list[Numbers | None]]:
        """See :func:`panoptic_quality`."""
        total = PanopticCounts.zeros(len(self.vocabulary))
        for part in results:
            total.add(part.counts)
        wrong = sum(part.wrong_areas for part in results)
        if wrong:
            print_log(
                f"{self.prefix}: {wrong} of {sum(part.segments for part in results)} annotated "
                "segments have another area in the JSON file than in their map (the first: "
                f"{printable(next(part.example for part in results if part.example))}). Pixels are "
                "counted here; panopticapi believes the JSON file, and its numbers differ",
                logger="current",
                level=logging.WARNING,
            )
        return panoptic_quality(total, self.vocabulary.is_thing)
