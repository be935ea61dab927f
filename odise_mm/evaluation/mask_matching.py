"""Precision and recall of masks, computed class by class with pycocotools' COCOeval.

COCOeval visits every image for every class, which takes hours and tens of gigabytes with LVIS's
1,203 classes and 20,000 images. Here only the images with objects or results of a class are
visited.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Container, Mapping, Sequence
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
        ious = self.ious[imgId, catId]
        possible = len(ious) and ious.max(initial=0) >= self.params.iouThrs[0]
        evaluate = super().evaluateImg if possible else self._without_matches
        found = evaluate(imgId, catId, aRng, maxDet)
        if found is not None and imgId in self._incomplete:
            found["dtIgnore"] = found["dtIgnore"] | (found["dtMatches"] == 0)
        return found

    def _without_matches(
        self, image: int, category: int, areas: Sequence[float], max_dets: int
    ) -> dict[str, Any]:
        """Return what COCOeval's ``evaluateImg`` does if no result overlaps enough with an object.

        This is so in most images, which COCOeval searches for all thresholds and ranges of area.
        """
        low, high = areas
        truths = self._gts[image, category]
        results = sorted(self._dts[image, category], key=lambda one: -one["score"])[:max_dets]
        shape = len(self.params.iouThrs), len(results)
        outside = [not low <= one["area"] <= high for one in results]
        return dict(
            dtMatches=np.zeros(shape),
            dtIgnore=np.array([outside] * shape[0], bool).reshape(shape),
            dtScores=[one["score"] for one in results],
            gtIgnore=np.array([one["ignore"] or not low <= one["area"] <= high for one in truths]),
        )

    def accumulate(self, p: Any = None) -> None:
        """Compute what COCOeval's method does, for all thresholds of a range of area at once."""
        thresholds, recalls = self.params.iouThrs, self.params.recThrs
        ranges = len(self.params.areaRng)
        precision = -np.ones((len(thresholds), len(recalls), 1, ranges, 1))
        recall = -np.ones((len(thresholds), 1, ranges, 1))
        images = len(self.params.imgIds)
        for area in range(ranges):
            found = self.evalImgs[area * images : (area + 1) * images]
            objects = np.count_nonzero(np.concatenate([one["gtIgnore"] for one in found]) == 0)
            if not objects:
                continue
            scores = np.concatenate([one["dtScores"] for one in found])
            order = np.argsort(-scores, kind="stable")
            matches, ignored = (
                np.concatenate([one[key] for one in found], axis=1)[:, order].astype(bool)
                for key in ("dtMatches", "dtIgnore")
            )
            hits = np.cumsum(matches & ~ignored, axis=1).astype(float)
            misses = np.cumsum(~matches & ~ignored, axis=1)
            recall[:, 0, area, 0] = hits[:, -1] / objects if len(scores) else 0
            # The highest precision at this recall or a higher one; 0 for recalls out of reach.
            highest = hits / (misses + hits + np.spacing(1))
            highest = np.maximum.accumulate(highest[:, ::-1], axis=1)[:, ::-1]
            highest = np.pad(highest, ((0, 0), (0, 1)))
            for place, values in enumerate(hits / objects):
                reached = np.searchsorted(values, recalls)
                precision[place, :, 0, area, 0] = highest[place, reached]
        self.eval = dict(precision=precision, recall=recall)


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
