"""Several predictions on a mask become one (ODISE, section 3.6, equation 10)."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from odise_mm.models.classifiers.base import ClassPrediction
from odise_mm.registry import MODELS
from odise_mm.utils.settings import check_weight
from odise_mm.vocabulary import Vocabulary


@MODELS.register_module()
class GeometricEnsemble(nn.Module):
    """Geometric mean of the model's own prediction and CLIP's, CLIP weighs more on unseen
    classes.

    ODISE, equation 10: ``p ~ p_own^(1 - w) * p_clip^w`` with w = ``alpha`` for a class that shares
    a name with the training vocabulary and ``beta`` for any other. Computed with logarithms:
    probabilities that underflow, which make the published code's logits infinite, stay finite.

    Args:
        alpha, beta: weights of the second prediction on seen and unseen classes; published:
            0.3 / 0.7 (trained with labels), 0.35 / 0.65 (captions).
        train_vocabulary: what the model was trained on: a vocabulary's name or file. Segmentors
            fill it in where a config leaves it out.

    Raises:
        ConfigError: a weight that is no number from 0 to 1.
        VocabularyError: no vocabulary of that name.
    """

    def __init__(
        self, alpha: float = 0.3, beta: float = 0.7, train_vocabulary: str = "coco"
    ) -> None:
        super().__init__()
        check_weight("alpha", alpha)
        check_weight("beta", beta)
        self.alpha, self.beta = alpha, beta
        self.train_vocabulary = (
            train_vocabulary
            if isinstance(train_vocabulary, Vocabulary)
            else Vocabulary.load(train_vocabulary)
        )

    def forward(
        self, class_predictions: Sequence[ClassPrediction], vocabulary: Vocabulary
    ) -> Tensor:
        """Class probabilities.

        Args:
            class_predictions: the model's own, which must know p_void, and at most one more.
            vocabulary: the K classes of the predictions.

        Returns:
            (B, Q, K + 1) float32; the last column is void; rows sum to 1.

        Raises:
            ValueError: no prediction, more than two, or none on void.
        """
        if not 1 <= len(class_predictions) <= 2 or class_predictions[0].p_void is None:
            raise ValueError(
                "GeometricEnsemble joins one or two predictions, and the first needs p_void"
            )
        joined = self.ensemble_logits(class_predictions, vocabulary).softmax(-1)
        p_void = self.void_probability(class_predictions)[..., None]
        return torch.cat([joined * (1 - p_void), p_void], dim=-1)

    def void_probability(self, class_predictions: Sequence[ClassPrediction]) -> Tensor:
        """That a mask is none of the classes: the model's own view, (B, Q) float32."""
        return class_predictions[0].p_void.float()

    def ensemble_logits(
        self, class_predictions: Sequence[ClassPrediction], vocabulary: Vocabulary
    ) -> Tensor:
        """Equation 10 in logarithms, void left out: (B, Q, K) float32, finite."""
        own = class_predictions[0].logits.float().log_softmax(-1)
        if len(class_predictions) == 1:
            return own
        seen = torch.tensor(_seen(vocabulary, self.train_vocabulary), device=own.device)
        weight = torch.where(seen, self.alpha, self.beta)
        return (1 - weight) * own + weight * class_predictions[1].logits.float().log_softmax(-1)


@lru_cache(maxsize=16)
def _seen(vocabulary: Vocabulary, trained: Vocabulary) -> tuple[bool, ...]:
    """Which classes were seen in training, found out once for many images."""
    return vocabulary.overlap(trained)
