"""Auxiliary losses for fine-tuning CLIP; test_published_families.py compares recorded values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor, nn

from odise_mm.errors import ConfigError
from odise_mm.models import (
    AuxiliaryLoss,
    CLIPCrossEntropyLoss,
    GramDistillationLoss,
    MaskAwareLoss,
    MaskPrediction,
    RepresentationCompensationLoss,
    TrainingOutputs,
)
from odise_mm.models.classifiers.base import ClassPrediction
from odise_mm.models.frozen import FrozenModule
from odise_mm.models.losses.auxiliary_loss import check_auxiliary_losses
from odise_mm.models.losses.clip_losses import scaled_to_one, soft_iou
from odise_mm.registry import MODELS
from odise_mm.vocabulary import Vocabulary
from tests.support.training import make_batch, make_model

VOCABULARY = Vocabulary.parse("a; b; c")


@MODELS.register_module()
class Doubled(FrozenModule):
    """Frozen backbone with one map of stride 4: the doubled first channel of the image."""

    def __init__(self, frozen: bool = True, stride: int = 4) -> None:
        super().__init__()
        self.weight, self.stride = nn.Parameter(torch.tensor(2.0)), stride
        if frozen:
            self.freeze()

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images[:, :1, :: self.stride, :: self.stride] * self.weight]


TEACHER = dict(type="Doubled")


def outputs_of(
    logits: Tensor,
    labels: list[list[int]],
    masks: Tensor | None = None,
    segments: list[Tensor] | None = None,
    matches: list[list[int]] | None = None,
    pyramid: Any = (),
    images: Tensor | None = None,
) -> TrainingOutputs:
    segments = segments or [torch.zeros(len(row), 8, 8).bool() for row in labels]
    matches = matches or [list(range(len(row))) for row in labels]
    return TrainingOutputs(
        images=torch.zeros(len(labels), 3, 8, 8) if images is None else images,
        pyramid=pyramid,
        prediction=MaskPrediction(masks, logits),
        targets=[
            InstanceData(labels=torch.tensor(row, dtype=torch.long), masks=m)
            for row, m in zip(labels, segments, strict=True)
        ],
        matches=[
            (torch.tensor(q, dtype=torch.long), torch.arange(len(row)))
            for q, row in zip(matches, labels, strict=True)
        ],
        vocabulary=VOCABULARY,
        classify=lambda: [ClassPrediction(logits * 0), ClassPrediction(logits)],
    )


def test_cross_entropy_of_matched_masks() -> None:
    logits = torch.randn(2, 4, 3, requires_grad=True)
    outputs = outputs_of(logits, [[2, 0], [1]], matches=[[3, 1], [0]])
    rows = torch.stack([logits[0, 3], logits[0, 1], logits[1, 0]])
    labels = torch.tensor([2, 0, 1])
    once = CLIPCrossEntropyLoss(0.5, twice=False)(outputs)
    torch.testing.assert_close(once, 0.5 * F.cross_entropy(rows, labels))
    twice = CLIPCrossEntropyLoss(0.5)(outputs)
    torch.testing.assert_close(twice, 0.5 * F.cross_entropy(rows.softmax(-1), labels))
    assert float(CLIPCrossEntropyLoss(1.0, classifier=0, twice=False)(outputs)) == pytest.approx(
        math.log(3)
    )


def test_applied_twice_a_perfect_prediction_has_a_loss() -> None:
    outputs = outputs_of(100 * torch.eye(3)[None], [[0, 1, 2]])
    assert float(CLIPCrossEntropyLoss(1.0, twice=False)(outputs)) == 0
    assert float(CLIPCrossEntropyLoss(1.0)(outputs)) == pytest.approx(math.log(1 + 2 / math.e))


@pytest.mark.parametrize("loss", [CLIPCrossEntropyLoss(), MaskAwareLoss()])
def test_without_segments_losses_are_zero_and_keep_the_graph(loss: AuxiliaryLoss) -> None:
    """Distributed training needs a gradient on every process."""
    logits = torch.randn(1, 2, 3, requires_grad=True)
    value = loss(outputs_of(logits, [[]], masks=torch.randn(1, 2, 2, 2)))
    value.backward()
    assert float(value.detach()) == 0 and not logits.grad.any()


def test_ranking_of_masks() -> None:
    """The probability of the class should be the scaled IoU of the mask."""
    segments = torch.zeros(2, 8, 8, dtype=torch.bool)
    segments[0, :4], segments[1, :, :2] = True, True
    masks = 50.0 * torch.stack(
        [segments[0].float() * 2 - 1, segments[1].float() * 2 - 1, -1 + 0 * segments[0]]
    )
    iou = soft_iou(masks, segments)
    expected = torch.tensor([[1, 8 / 40, 0], [8 / 40, 1, 0]])
    torch.testing.assert_close(iou, expected)
    assert torch.equal(scaled_to_one(torch.tensor([[2.0, 3.0, 6.0]])), torch.tensor([[0, 0.25, 1]]))
    assert not scaled_to_one(torch.zeros(1, 3)).any()

    logits = torch.randn(1, 3, 3, requires_grad=True)
    outputs = outputs_of(logits, [[2, 0]], masks=masks[None], segments=[segments])
    found = logits[0].softmax(-1)[:, [2, 0]].T
    loss = MaskAwareLoss(2.0)(outputs)
    torch.testing.assert_close(loss, 2 * F.smooth_l1_loss(found, expected))


def test_ranking_resizes_probabilities_not_logits() -> None:
    masks, segments = torch.tensor([[[-90.0, 90.0]]]), torch.ones(1, 1, 4).bool()
    torch.testing.assert_close(soft_iou(masks, segments), torch.tensor([[0.5]]))


def compensation_outputs(height: int, width: int) -> TrainingOutputs:
    images = torch.rand(2, 3, height * 4, width * 4)
    student = images[:, :1, ::4, ::4].clone().requires_grad_()
    return outputs_of(torch.zeros(2, 1, 3), [[], []], pyramid=[student], images=images)


def pooled_sums(maps: Tensor, window: int) -> list[Tensor]:
    return [
        s
        for k in (1, 2, 4)
        for p in [F.avg_pool2d(maps, window // k)]
        for s in (p.sum(2).flatten(1), p.sum(3).flatten(1))
    ]


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (4, 8), (8, 4)])
def test_compensation(size: tuple[int, int], align: bool) -> None:
    """Windows come from the width, or from the square that the map is resized to."""
    outputs = compensation_outputs(*size)
    square = F.interpolate(outputs.pyramid[0], (8, 8), mode="bilinear")
    window = 8 if align else size[1]
    student = torch.cat(pooled_sums(square, window), 1)
    loss = RepresentationCompensationLoss(TEACHER, 0.1, align=align)(outputs)
    torch.testing.assert_close(loss, 0.1 * F.smooth_l1_loss(student, 2 * student))
    loss.backward()
    assert outputs.pyramid[0].grad.any()


def test_negative_features_do_not_count() -> None:
    outputs = compensation_outputs(4, 4)
    outputs.images.neg_()
    outputs.pyramid[0].data.neg_()
    assert float(RepresentationCompensationLoss(TEACHER)(outputs).detach()) == 0
    # Gram matrices do not change if all channels are scaled.
    assert float(GramDistillationLoss(TEACHER)(outputs).detach()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MaskAwareLoss(loss_weight=-1), "loss_weight"),
        (lambda: CLIPCrossEntropyLoss(twice=1), "twice"),
        (lambda: RepresentationCompensationLoss("ViT-B-32"), "teacher='ViT-B-32' must be"),
        (lambda: RepresentationCompensationLoss(TEACHER, align=1), "align"),
    ],
)
def test_settings_are_checked(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_teachers_that_do_not_fit_are_refused() -> None:
    outputs = compensation_outputs(4, 4)
    with pytest.raises(ConfigError, match="Doubled must be a frozen backbone"):
        RepresentationCompensationLoss(dict(type="Doubled", frozen=False))(outputs)
    with pytest.raises(ConfigError, match=r"\(2, 1, 8, 8\).*\(2, 1, 4, 4\) differ in shape"):
        GramDistillationLoss(dict(type="Doubled", stride=2))(outputs)


def test_a_classifier_that_does_not_exist_is_refused() -> None:
    outputs = outputs_of(torch.zeros(1, 1, 3), [[0]])
    with pytest.raises(ConfigError, match="classifier=2, but the model has classifiers 0 to 1"):
        CLIPCrossEntropyLoss(classifier=2)(outputs)


def test_losses_of_a_model_are_checked() -> None:
    with pytest.raises(ConfigError, match="Linear is not an AuxiliaryLoss"):
        check_auxiliary_losses([nn.Linear(1, 1)], with_labels=True)
    with pytest.raises(ConfigError, match="two losses are named 'loss_ranking'"):
        check_auxiliary_losses([MaskAwareLoss(), MaskAwareLoss()], with_labels=True)
    with pytest.raises(ConfigError, match="needs labels.*trained with captions"):
        check_auxiliary_losses([MaskAwareLoss()], with_labels=False)


class Seen(AuxiliaryLoss):
    """Keeps what it was called with."""

    name = "loss_seen"

    def forward(self, outputs: TrainingOutputs) -> Tensor:
        self.outputs = outputs
        return sum(level.sum() for level in outputs.pyramid)


@pytest.mark.parametrize("detach", [False, True])
def test_a_model_calls_its_auxiliary_losses(detach: bool) -> None:
    """Any model can have them; here one of ODISE, whose neck is trained."""
    seen = Seen()
    model = make_model(False, auxiliary_losses=[seen], detach_features=detach)
    batch = make_batch(model, (3, 2))
    losses = model(**batch, mode="loss")
    outputs = seen.outputs
    shapes = [tuple(level.shape[-2:]) for level in outputs.pyramid]
    assert shapes == [(32, 32), (16, 16), (8, 8), (4, 4)]
    assert [p.logits.shape[:2] for p in outputs.class_predictions] == [
        (2, model.head.num_queries)
    ] * 2
    for (queries, index), target, count in zip(
        outputs.matches, outputs.targets, (3, 2), strict=True
    ):
        assert len(set(queries.tolist())) == count == len(target.labels)
        assert sorted(index.tolist()) == list(range(count))
    seen_loss = losses.pop("loss_seen")
    assert "loss_cls" in losses
    weights = list(model.neck.parameters())
    found = torch.autograd.grad(sum(losses.values()), weights, allow_unused=True, retain_graph=True)
    assert any(g is not None and g.any() for g in found) is not detach
    found = torch.autograd.grad(seen_loss, weights, allow_unused=True)
    assert any(g is not None and g.any() for g in found)
