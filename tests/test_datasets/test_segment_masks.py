"""Masks in one map: equality with mmdet's BitmapMasks, and transfer between processes."""

from __future__ import annotations

import copy
import io
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData

from odise_mm.datasets.segment_masks import SegmentMasks


def pair(chosen: list[int], largest: int = 9) -> tuple[SegmentMasks, BitmapMasks]:
    numbers = np.random.default_rng(0).integers(0, 9, (12, 17)).astype(np.int32)
    numbers[0, 0] = largest
    wanted = np.array(chosen)
    stack = (numbers == wanted[:, None, None]).astype(np.uint8)
    return SegmentMasks(numbers, wanted), BitmapMasks(stack, 12, 17)


@pytest.mark.parametrize("largest", [9, 255, 256, 40_000])
@pytest.mark.parametrize("chosen", [[3, 1, 7], [5], []], ids=str)
def test_masks_equal_mmdets(chosen: list[int], largest: int) -> None:
    ours, theirs = pair([*chosen, *([largest] if chosen else [])], largest)
    assert len(ours) == len(theirs)
    assert ours.masks.dtype == np.uint8 and np.array_equal(ours.masks, theirs.masks)
    for dtype in (torch.bool, torch.float32, torch.uint8):
        found, wanted = ours.to_tensor(dtype, "cpu"), theirs.to_tensor(dtype, "cpu")
        assert found.dtype == dtype and torch.equal(found, wanted)


def test_other_methods_equal_mmdets() -> None:
    ours, theirs = pair([3, 1, 7])
    for found, wanted in (
        (ours[np.array([2, 0])], theirs[np.array([2, 0])]),
        (ours[1], theirs[1]),
        (ours[np.array([True, False, True])], theirs[np.array([True, False, True])]),
        (ours.flip(), theirs.flip()),
        (ours.crop(np.array([2, 1, 9, 8])), theirs.crop(np.array([2, 1, 9, 8]))),
        (ours.pad((20, 20)), theirs.pad((20, 20))),
        (copy.deepcopy(ours), theirs),
    ):
        assert np.array_equal(found.to_ndarray(), wanted.to_ndarray())
    assert [mask.sum() for mask in ours] == [mask.sum() for mask in theirs]
    assert np.array_equal(ours.areas, theirs.areas)
    boxes = [masks.get_bboxes(HorizontalBoxes).tensor for masks in (ours, theirs)]
    assert torch.equal(*boxes)
    instances = InstanceData(labels=torch.arange(3), masks=ours)
    assert len(instances[torch.tensor([True, False, True])]) == 2


def test_a_worker_sends_the_map_once() -> None:
    numbers = np.random.default_rng(0).integers(0, 200, (400, 400))
    masks = SegmentMasks(numbers, np.arange(1, 200))
    sent = io.BytesIO()
    ForkingPickler(sent).dump(masks)
    assert sent.tell() < 2000  # the map itself is in shared memory
    arrived = ForkingPickler.loads(sent.getvalue())
    assert np.array_equal(arrived.masks, masks.masks)
