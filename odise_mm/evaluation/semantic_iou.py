"""Mean intersection over union, equal to mmseg's but with exact pixel counts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmseg.evaluation.metrics import IoUMetric

from odise_mm.annotations.ground_truth import check_size, read_semantic_truth
from odise_mm.annotations.label_maps import IGNORED
from odise_mm.evaluation.base import DatasetMetric, Numbers, check_labels, result_of, to_numpy
from odise_mm.registry import METRICS


def count_areas(result: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of each class in the intersection, the result and the ground truth.

    The counts are integers. mmseg uses float32, which cannot count beyond 2^24 pixels; a single
    large sky of Mapillary Vistas, or one class in a few hundred images, exceeds that.

    Args:
        result: (H, W) class indices in [0, K).
        truth: (H, W) class indices or :data:`IGNORED`; ignored pixels are not counted anywhere.
        num_classes: K.

    Returns:
        (3, K) int64: intersection, result, ground truth.
    """
    known = truth != IGNORED
    result, truth = result[known], truth[known]
    areas = (result[result == truth], result, truth)
    return np.stack([np.bincount(labels, minlength=num_classes) for labels in areas])


@METRICS.register_module()
class SemanticIoU(DatasetMetric):
    """mIoU, mean class accuracy and pixel accuracy.

    The ground truth is ``sem_seg_path`` of the samples, or else their panoptic ground truth, see
    :func:`read_semantic_truth`. Memory does not grow with the dataset. As in mmseg, mIoU is the
    mean over classes in the ground truth or the results, and mean accuracy is the mean over classes
    in the ground truth.
    """

    task = "semantic"
    default_prefix = "semantic"
    class_means = dict(IoU="mIoU", Acc="mAcc")

    def add_image(self, sample: Mapping[str, Any]) -> None:
        """Count the pixels of an image's ``pred_sem_seg``.

        Raises:
            DatasetError: see :func:`read_semantic_truth`; or the sizes differ.
            ConfigError: the model made no semantic result, or used another vocabulary.
        """
        num_classes = len(self.vocabulary)
        result = to_numpy(result_of(sample, "pred_sem_seg", self)["sem_seg"])[0]
        check_labels(sample, result, num_classes)
        truth, path = read_semantic_truth(sample, num_classes)
        check_size(path, truth.shape, result.shape, sample.get("img_path"))
        if not self.results:
            self.results.append(np.zeros((3, num_classes), np.int64))
        self.results[0] += count_areas(result, truth, num_classes)

    def compute(self, results: list[np.ndarray]) -> tuple[Numbers, list[Numbers | None]]:
        """Compute ``mIoU``, ``mAcc`` and ``aAcc``, and ``IoU`` and ``Acc`` of each class.

        ``Acc`` is NaN for classes that are not in the ground truth.
        """
        both, result, truth = torch.from_numpy(sum(results)).double()
        if not truth.any():
            print_log(
                f"{self.prefix}: all ground truth pixels are ignored, so the results are NaN",
                logger="current",
                level=logging.WARNING,
            )
        union = result + truth - both
        found = IoUMetric.total_area_to_metrics(both, union, result, truth)
        numbers = {
            name: 100 * (float(np.nanmean(values)) if np.isfinite(values).any() else np.nan)
            for name, values in (
                ("mIoU", found["IoU"]), ("mAcc", found["Acc"]), ("aAcc", found["aAcc"])
            )
        }  # fmt: skip
        pairs = zip((100 * found["IoU"]).tolist(), (100 * found["Acc"]).tolist(), strict=True)
        per_class = [
            dict(IoU=iou, Acc=acc) if area else None
            for (iou, acc), area in zip(pairs, union.tolist(), strict=True)
        ]
        return numbers, per_class
