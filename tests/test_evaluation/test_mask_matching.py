"""Curves of one class: equal to those of pycocotools' COCOeval in every number."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from odise_mm.evaluation.mask_matching import match_class

SIDE = 128


def box(rng: np.random.Generator) -> dict:
    """Draw a box; half of them are one of two places, so that many overlap."""
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    size = int(rng.choice([8, 60, 110]))
    top, left = (0, 5) if rng.random() < 0.5 else rng.integers(0, SIDE - size, 2)
    mask[top : top + size, left : left + size - rng.integers(0, 4)] = 1
    code = coco_mask.encode(mask)
    return dict(segmentation=code, area=float(mask.sum()))


@pytest.mark.parametrize("seed", range(6))
def test_curves_equal_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, max_dets = 12, int(rng.choice([3, 100]))
    truths = {
        image: [box(rng) | dict(iscrowd=int(rng.random() < 0.2)) for _ in range(rng.integers(1, 5))]
        for image in range(images)
        if rng.random() < 0.7
    }
    results = {
        # few scores, so that many are equal
        image: [
            box(rng) | dict(score=float(rng.integers(4)) / 4) for _ in range(rng.integers(1, 6))
        ]
        for image in range(images)
        if rng.random() < 0.7
    }
    rows = [
        [dict(one, image_id=image, category_id=1, id=number) for number, (image, one) in enumerate(
            ((image, one) for image, some in sorted(kind.items()) for one in some), start=1
        )]
        for kind in (truths, results)
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dict(
            images=[dict(id=i, height=SIDE, width=SIDE) for i in range(images)],
            annotations=[row | dict(bbox=[0, 0, 1, 1]) for row in rows[0]],
            categories=[dict(id=1)],
        )
        truth.createIndex()
        engine = COCOeval(truth, truth.loadRes(rows[1]), "segm")
        engine.params.maxDets = [max_dets]
        engine.evaluate()
        engine.accumulate()
    curves = match_class(truths, results, max_dets)
    for found, wanted in (
        (curves.precision, engine.eval["precision"][:, :, 0, :, 0]),
        (curves.recall, engine.eval["recall"][:, 0, :, 0]),
    ):
        assert np.array_equal(np.nan_to_num(found, nan=-1), wanted)
    assert 0 < curves.precision[0, :, 0].mean() < 1
