"""Interface of losses in addition to Mask2Former's: ``auxiliary_losses`` of the segmentor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from mmengine.structures import InstanceData
from torch import Tensor, nn

from odise_mm.errors import ConfigError
from odise_mm.models.classifiers.base import ClassPrediction
from odise_mm.models.heads.mask2former_head import MaskPrediction
from odise_mm.models.losses.mask_points import Matches
from odise_mm.vocabulary import Vocabulary


@dataclass(frozen=True)
class TrainingOutputs:
    """What a model has computed for a batch of B images in training, for auxiliary losses.

    Attributes:
        images: padded images, (B, 3, H, W) in [0, 1], RGB.
        pyramid: feature maps of strides 4, 8, 16, 32, each (B, C_i, H_i, W_i). They have gradients
            if backbone or neck are trained, also if the head does not pass any back to them.
        prediction: the last decoder layer's masks and embeddings of Q queries.
        targets: for every image, ``labels`` (N,) and ``masks`` (N, H, W) of the padded image.
        matches: for every image, the indices of the matched queries of the last decoder layer, and
            the indices of their targets, both (M,).
        vocabulary: the K classes.
        classify: computes ``class_predictions``.
    """

    images: Tensor
    pyramid: Sequence[Tensor]
    prediction: MaskPrediction
    targets: Sequence[InstanceData]
    matches: Sequence[Matches]
    vocabulary: Vocabulary
    classify: Callable[[], list[ClassPrediction]]

    @cached_property
    def class_predictions(self) -> list[ClassPrediction]:
        """Predictions of all classifiers, as in inference; computed on first use."""
        return self.classify()

    def class_logits(self, classifier: int) -> Tensor:
        """Return the class logits of a classifier, (B, Q, K) float32.

        Args:
            classifier: its index in the segmentor's ``classifiers``.

        Raises:
            ConfigError: there is no such classifier.
        """
        if not 0 <= classifier < len(self.class_predictions):
            raise ConfigError(
                f"auxiliary_losses: classifier={classifier}, but the model has classifiers 0 to "
                f"{len(self.class_predictions) - 1}"
            )
        return self.class_predictions[classifier].logits.float()


class AuxiliaryLoss(nn.Module):
    """Base class of auxiliary losses.

    A loss reads :class:`TrainingOutputs` and must not change them. It is called once per training
    step, and not in inference.

    Attributes:
        name: name of the loss in logs; must contain "loss", and differ from the model's others.
        needs_labels: whether the loss reads the labels of the targets, which only label supervision
            has.
    """

    name: str
    needs_labels = False

    def forward(self, outputs: TrainingOutputs) -> Tensor:
        """Compute the weighted loss, a scalar."""
        raise NotImplementedError


def check_auxiliary_losses(losses: Sequence[nn.Module], with_labels: bool) -> None:
    """Check the auxiliary losses of a model.

    Args:
        losses: the losses.
        with_labels: whether the model is trained with labels.

    Raises:
        ConfigError: a part is not an auxiliary loss, two have the same name, or one needs labels
            that the supervision does not have.
    """
    names: set[str] = set()
    for loss in losses:
        kind = type(loss).__name__
        if not isinstance(loss, AuxiliaryLoss):
            raise ConfigError(f"auxiliary_losses: {kind} is not an AuxiliaryLoss")
        if loss.name in names:
            raise ConfigError(f"auxiliary_losses: two losses are named {loss.name!r}; remove one")
        if loss.needs_labels and not with_labels:
            raise ConfigError(
                f"auxiliary_losses: {kind} needs labels, but the model is trained with captions or "
                "with masks alone: remove the loss, or grounding and objectness"
            )
        names.add(loss.name)
