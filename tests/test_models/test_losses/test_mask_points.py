"""Matching and losses at points: equality with mmdet's method, which copies more."""

from __future__ import annotations

import pytest
import torch
from mmcv.ops import point_sample
from torch import Tensor

from odise_mm.analysis.loss_cost import mmdets_losses, random_predictions, random_targets
from odise_mm.models.heads.mask2former_head import OpenVocabMask2FormerHead
from odise_mm.models.losses.mask_points import Matches, sample_each, sample_matched, sample_shared
from odise_mm.registry import MODELS
from tests.support.parts import head_config

CLASSES = 5


def both_ways(
    counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[dict, list[Tensor]]]:
    """Losses and gradients of images with so many targets: of this package, and of mmdet."""
    head = MODELS.build(head_config(in_channels=[64] * 4))
    targets = [random_targets(count, 64, CLASSES, seed) for seed, count in enumerate(counts)]
    predictions, logits = random_predictions(2, len(counts), head.num_queries, 16, CLASSES)
    inputs = [*logits, *(prediction.masks for prediction in predictions)]
    found = []
    for method in (None, mmdets_losses):
        if method is not None:
            monkeypatch.setattr(OpenVocabMask2FormerHead, "_loss_by_feat_single", method)
        torch.manual_seed(3)
        losses = head.losses(predictions, logits, targets)
        found.append((losses, list(torch.autograd.grad(sum(losses.values()), inputs))))
    return found


@pytest.mark.parametrize("counts", [[4], [3, 7], [2, 0, 1], [0, 0], [30, 2]], ids=str)
def test_losses_and_gradients_equal_mmdets(
    counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same random numbers; the last case has more targets than queries."""
    (ours, gradients), (theirs, wanted) = both_ways(counts, monkeypatch)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    for one, other in zip(gradients, wanted, strict=True):
        assert torch.equal(one, other)


def test_points_equal_mmdets() -> None:
    maps, points = torch.randn(5, 9, 13), torch.rand(5, 40, 2)
    wanted = point_sample(maps[:, None], points)[:, 0]
    assert torch.equal(sample_each(maps, points), wanted)
    together = point_sample(maps[:, None], points[:1].repeat(5, 1, 1))[:, 0]
    torch.testing.assert_close(sample_shared(maps, points[0]), together)
    assert sample_shared(maps[:0], points[0]).shape == (0, 40)


@pytest.mark.parametrize("targets", [[2, 0, 4, 1, 3], [3, 1]])
def test_points_of_matched_targets(targets: list[int]) -> None:
    maps, places = torch.randn(5, 9, 13), torch.tensor(targets)
    points = torch.rand(len(targets), 40, 2)
    found = sample_matched(maps, Matches(places, places), points)
    assert torch.equal(found, sample_each(maps[places], points))
