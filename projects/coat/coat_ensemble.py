"""CLIP-conditioned objectness, COAT (arXiv 2603.21386), as an ensemble plugin."""

from collections.abc import Sequence

from torch import Tensor

from odise_mm.models import ClassPrediction, GeometricEnsemble
from odise_mm.registry import MODELS
from odise_mm.utils.settings import check_weight


@MODELS.register_module()
class CoatEnsemble(GeometricEnsemble):
    """A mask that CLIP is sure about is less probably none of the names.

    ``p_void <- p_void * (1 - coat_lambda * max_c p_clip(c))``. The classes share what void loses,
    in the proportions of equation 10, so that rows still sum to 1.

    Args:
        coat_lambda: how far CLIP's confidence is trusted, 0 (plain GeometricEnsemble) to 1.
        alpha, beta, train_vocabulary: see :class:`~odise_mm.models.GeometricEnsemble`.
    """

    def __init__(
        self,
        coat_lambda: float = 0.5,
        alpha: float = 0.3,
        beta: float = 0.7,
        train_vocabulary: str = "coco",
    ) -> None:
        super().__init__(alpha, beta, train_vocabulary)
        check_weight("coat_lambda", coat_lambda)
        self.coat_lambda = coat_lambda

    def void_probability(self, class_predictions: Sequence[ClassPrediction]) -> Tensor:
        """The model's p_void, lowered where CLIP is confident: (B, Q) float32.

        Raises:
            ValueError: there is no second prediction, whose confidence is what this is about.
        """
        if len(class_predictions) != 2:
            raise ValueError(
                "CoatEnsemble needs CLIP's prediction beside the model's own: give the model two "
                "classifiers, such as OpenVocabClassifier and MaskCLIPClassifier"
            )
        confidence = class_predictions[1].logits.float().softmax(-1).amax(-1)
        return super().void_probability(class_predictions) * (1 - self.coat_lambda * confidence)
