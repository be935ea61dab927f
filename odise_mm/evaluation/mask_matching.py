"""Precision and recall of masks, computed class by class with pycocotools' COCOeval.

COCOeval visits every image for every class, which takes hours and tens of gigabytes with LVIS's
1,203 classes and 20,000 images. Here only the images with objects or results of a class are
visited.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

import numpy as np
from pycocotools.cocoeval import COCOeval

IOU_50, IOU_75 = 0, 5
ALL, SMALL, MEDIUM, LARGE = range(4)


class ClassCurves(NamedTuple):
    """Precision and recall of one class.

    The axes are 10 IoU thresholds from 0.5 to 0.95, 101 recalls from 0 to 1, and 4 ranges of area:
    all, below 32^2, up to 96^2, above. Values are NaN where there are no objects.
    """

    precision: np.ndarray
    """(10, 101, 4)."""
    recall: np.ndarray
    """(10, 4), maximum recall."""


class _OneClass(COCOeval):
    """COCOeval on objects in memory instead of files.

    Args:
        truths: image -> dicts of segmentation (run-length code), area and iscrowd.
        results: image -> dicts of segmentation, area and score.
        max_dets: maximum number of results per image; those with the highest scores are used.
        incomplete: images in which only some objects are annotated. Their results without a match
            are ignored (LVIS).
    """

    def __init__(
        self,
        truths: Mapping[int, list[dict]],
        results: Mapping[int, list[dict]],
        max_dets: int,
        incomplete: Container[int],
    ) -> None:
        super().__init__(iouType="segm")
        self.params.imgIds = sorted(truths.keys() | results.keys())
        self.params.catIds = [0]
        self.params.maxDets = [max_dets]
        self._incomplete = incomplete
        for given, kept in ((truths, self._gts), (results, self._dts)):
            number = 0
            for image, masks in given.items():
                for mask in masks:
                    number += 1  # ids start at 1: COCOeval interprets 0 as "no match"
                    kept[image, 0].append(mask | dict(id=number))
        for masks in self._gts.values():
            for mask in masks:
                mask["ignore"] = mask["iscrowd"]

    def _prepare(self) -> None:
        """Do nothing: the constructor sets the objects."""

    def evaluateImg(self, imgId: int, catId: int, aRng: list, maxDet: int) -> dict[str, Any] | None:
        found = super().evaluateImg(imgId, catId, aRng, maxDet)
        if found is not None and imgId in self._incomplete:
            found["dtIgnore"] = found["dtIgnore"] | (found["dtMatches"] == 0)
        return found


def match_class(
    truths: Mapping[int, list[dict]],
    results: Mapping[int, list[dict]],
    max_dets: int,
    incomplete: Container[int] = (),
) -> ClassCurves:
    """Match the results of one class to its objects, in all images.

    Args:
        truths: image -> dicts of segmentation (run-length code), area and iscrowd.
        results: image -> dicts of segmentation, area and score.
        max_dets: maximum number of results per image; those with the highest scores are used.
        incomplete: images in which only some objects are annotated. Their results without a match
            are ignored (LVIS).
    """
    engine = _OneClass(truths, results, max_dets, incomplete)
    with contextlib.redirect_stdout(io.StringIO()):
        engine.evaluate()
        engine.accumulate()
    precision = engine.eval["precision"][:, :, 0, :, 0]
    recall = engine.eval["recall"][:, 0, :, 0]
    return ClassCurves(
        np.where(precision < 0, np.nan, precision), np.where(recall < 0, np.nan, recall)
    )


def average_precision(curves: ClassCurves) -> dict[str, float]:
    """Compute the average precision of one class, in percent; NaN if there are no objects.

    Returns:
        ``AP`` (mean over IoU 0.5 to 0.95), ``AP50`` and ``AP75``; ``APs``, ``APm`` and ``APl`` of
        small, medium and large objects.
    """
    precision = curves.precision
    parts = dict(
        AP=precision[:, :, ALL],
        AP50=precision[IOU_50, :, ALL],
        AP75=precision[IOU_75, :, ALL],
        APs=precision[:, :, SMALL],
        APm=precision[:, :, MEDIUM],
        APl=precision[:, :, LARGE],
    )
    return {name: 100 * float(part.mean()) for name, part in parts.items()}
