"""pycocotools' COCOeval, class by class: precision and recall of masks that are kept in memory.

COCOeval looks at every image for every class, which with LVIS's 1,203 classes and 20,000 images
takes hours and tens of gigabytes. Here a class sees the images that have it.
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
    """Of one class; NaN where no object counts. 10 IoU thresholds from 0.5 to 0.95, 101 recalls
    from 0 to 1, 4 ranges of area: all, below 32^2, up to 96^2, above."""

    precision: np.ndarray
    """(10, 101, 4)."""
    recall: np.ndarray
    """(10, 4), the highest one reached."""


class _OneClass(COCOeval):
    """COCOeval on objects that are given instead of files.

    Args:
        truths: image -> dicts of segmentation (run-length code), area and iscrowd.
        results: image -> dicts of segmentation, area and score.
        max_dets: only so many results of an image count, the best.
        incomplete: images where not all objects are annotated: there a result without a match is
            ignored (LVIS).
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
                    number += 1  # from 1: COCOeval takes an id of 0 for no match
                    kept[image, 0].append(mask | dict(id=number))
        for masks in self._gts.values():
            for mask in masks:
                mask["ignore"] = mask["iscrowd"]

    def _prepare(self) -> None:
        """Nothing to read."""

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
    """Match results with objects of one class in all images; see :class:`_OneClass`."""
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
    """``AP`` (mean of IoU 0.5 to 0.95), ``AP50``, ``AP75``, and of small, medium, large objects.

    In percent, NaN where no object counts.
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
