"""CLIP-conditioned objectness, COAT (arXiv 2603.21386)."""

from collections.abc import Sequence

from torch import Tensor

from odise_mm.models.classifiers.base import ClassPrediction
from odise_mm.models.classifiers.ensemble import MEMORY_ALPHA, MEMORY_BETA, GeometricEnsemble
from odise_mm.registry import MODELS
from odise_mm.utils.settings import check_weight


@MODELS.register_module()
class CoatEnsemble(GeometricEnsemble):
    """Ensemble that lowers the void probability of masks that CLIP recognizes.

    ``p_void <- p_void * (1 - coat_lambda * max_c p_clip(c))``. The probability taken from void is
    distributed over the classes in the proportions of equation 10, so that rows still sum to 1.

    Args:
        coat_lambda: weight of CLIP's confidence, from 0 (plain GeometricEnsemble) to 1
            (published: 0.5).
        alpha: see :class:`~odise_mm.models.GeometricEnsemble`.
        beta: see :class:`~odise_mm.models.GeometricEnsemble`.
        train_vocabulary: see :class:`~odise_mm.models.GeometricEnsemble`.
        valid_masks_only: see :class:`~odise_mm.models.GeometricEnsemble`.
        memory_alpha, memory_beta: see :class:`~odise_mm.models.GeometricEnsemble`.
    """

    def __init__(
        self,
        coat_lambda: float = 0.5,
        alpha: float = 0.3,
        beta: float = 0.7,
        train_vocabulary: str = "coco",
        valid_masks_only: bool = False,
        memory_alpha: float = MEMORY_ALPHA,
        memory_beta: float = MEMORY_BETA,
    ) -> None:
        super().__init__(
            alpha,
            beta,
            train_vocabulary,
            valid_masks_only,
            memory_alpha=memory_alpha,
            memory_beta=memory_beta,
        )
        check_weight("coat_lambda", coat_lambda)
        self.coat_lambda = coat_lambda

    def void_probability(self, class_predictions: Sequence[ClassPrediction]) -> Tensor:
        """Return the model's p_void, lowered where CLIP is confident.

        Args:
            class_predictions: Predictions of the model's own classifier and of CLIP.

        Returns:
            (B, Q) float32.

        Raises:
            ValueError: CLIP's prediction is missing.
        """
        if len(class_predictions) != 2:
            raise ValueError(
                "CoatEnsemble needs CLIP's prediction in addition to the model's own; configure "
                "two classifiers, such as OpenVocabClassifier and MaskCLIPClassifier"
            )
        confidence = class_predictions[1].logits.float().softmax(-1).amax(-1)
        return super().void_probability(class_predictions) * (1 - self.coat_lambda * confidence)
