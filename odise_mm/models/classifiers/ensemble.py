"""The ensemble of class predictions (ODISE, section 3.6, equation 10)."""

import copy
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from odise_mm.models.classifiers.base import ClassPrediction, NameTensors
from odise_mm.registry import MODELS
from odise_mm.utils.settings import check_flag, check_weight
from odise_mm.vocabulary import Vocabulary


@MODELS.register_module()
class GeometricEnsemble(nn.Module):
    """Weighted geometric mean of the model's own class prediction and CLIP's.

    ODISE, equation 10: ``p ~ p_own^(1 - w) * p_clip^w``. A class is a base class if it shares a
    name with the training vocabulary, and else a novel class. The weight w is ``alpha`` for base
    classes and ``beta`` for novel classes. The mean is computed with logarithms, so the result
    stays finite where probabilities underflow. The published code's logits become infinite in this
    case.

    Args:
        alpha: weight of CLIP's prediction for base classes. Published: 0.3 (trained with labels),
            0.35 (captions).
        beta: weight of CLIP's prediction for novel classes. Published: 0.7 (labels), 0.65
            (captions).
        train_vocabulary: name or file of the vocabulary that the model was trained on. The
            segmentor fills it in if the config leaves it out.
        valid_masks_only: whether CLIP's prediction counts only for masks that cover a position of
            its feature map (``ClassPrediction.valid``), as in FC-CLIP's models with ResNets.
        drop_void: whether void competes with the classes, so that a mask that is more likely void
            than any class is left out of panoptic results. False: void only lowers the
            probabilities of the classes, for masks that were selected by their scores before.

    Raises:
        ConfigError: a weight is not a number from 0 to 1.
        VocabularyError: the training vocabulary is unknown.
    """

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        train_vocabulary: str = "coco",
        valid_masks_only: bool = False,
        drop_void: bool = True,
    ) -> None:
        super().__init__()
        check_weight("alpha", alpha)
        check_weight("beta", beta)
        check_flag("valid_masks_only", valid_masks_only)
        check_flag("drop_void", drop_void)
        self.valid_masks_only = valid_masks_only
        self.drop_void = drop_void
        self.alpha, self.beta = alpha, beta
        self.train_vocabulary = (
            train_vocabulary
            if isinstance(train_vocabulary, Vocabulary)
            else Vocabulary.load(train_vocabulary)
        )

    def with_exponents(self, alpha: float | None, beta: float | None) -> "GeometricEnsemble":
        """Return a copy with other weights of CLIP's prediction; None keeps a weight.

        Raises:
            ConfigError: a weight is not a number from 0 to 1.
        """
        changed = copy.copy(self)
        for name, value in (("alpha", alpha), ("beta", beta)):
            if value is not None:
                check_weight(name, value)
                setattr(changed, name, value)
        return changed

    def forward(
        self, class_predictions: Sequence[ClassPrediction], vocabulary: Vocabulary
    ) -> Tensor:
        """Compute class probabilities.

        Args:
            class_predictions: the model's own, which must have ``p_void``, and optionally CLIP's.
            vocabulary: the K classes of the predictions.

        Returns:
            (B, Q, K + 1) float32; the last column is void. Rows sum to 1; without ``drop_void``,
            the last column is 0, and rows sum to 1 - p_void.

        Raises:
            ValueError: not one or two predictions, or the first has no ``p_void``.
        """
        if not 1 <= len(class_predictions) <= 2 or class_predictions[0].p_void is None:
            raise ValueError(
                "GeometricEnsemble needs one or two predictions, the first with p_void; got "
                f"{len(class_predictions)}. Void is predicted by the first classifier "
                "(null_class=True) or by the head (objectness=True)"
            )
        joined = self.ensemble_logits(class_predictions, vocabulary).softmax(-1)
        p_void = self.void_probability(class_predictions)[..., None]
        void = p_void if self.drop_void else torch.zeros_like(p_void)
        return torch.cat([joined * (1 - p_void), void], dim=-1)

    def void_probability(self, class_predictions: Sequence[ClassPrediction]) -> Tensor:
        """Return the model's own probability of void, (B, Q) float32."""
        return class_predictions[0].p_void.float()

    def ensemble_logits(
        self, class_predictions: Sequence[ClassPrediction], vocabulary: Vocabulary
    ) -> Tensor:
        """Compute the logarithm of equation 10, without void: (B, Q, K) float32, finite."""
        own = class_predictions[0].logits.float().log_softmax(-1)
        if len(class_predictions) == 1:
            return own
        if isinstance(vocabulary, NameTensors):
            base = vocabulary.base
        else:
            base = torch.tensor(_is_base(vocabulary, self.train_vocabulary), device=own.device)
        weight = torch.where(base, self.alpha, self.beta)
        valid = class_predictions[1].valid
        if self.valid_masks_only and valid is not None:
            weight = weight * valid[..., None]
        return (1 - weight) * own + weight * class_predictions[1].logits.float().log_softmax(-1)


@lru_cache(maxsize=16)
def _is_base(vocabulary: Vocabulary, train_vocabulary: Vocabulary) -> tuple[bool, ...]:
    return vocabulary.overlap(train_vocabulary)
