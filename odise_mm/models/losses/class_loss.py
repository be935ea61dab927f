"""The class loss of matched masks, for any number of classes."""

from mmdet.models.losses import CrossEntropyLoss
from mmdet.utils import reduce_mean
from torch import Tensor

from odise_mm.registry import MODELS
from odise_mm.utils.settings import check_number


@MODELS.register_module()
class OpenVocabCrossEntropyLoss(CrossEntropyLoss):
    """mmdet's cross entropy for any number of classes and void, which is the last class.

    The sum over queries is divided by the sum of their class weights, averaged over processes. The
    gradients of several processes are therefore those of one process with the whole batch. The
    published code divides by the sum on each process, which makes a tiny difference.

    Args:
        loss_weight: factor on the loss (published: 2).
        void_weight: weight of void (published: 0.1); all other classes have weight 1.
        class_weight: unused; mmdet's head requires this argument.

    Raises:
        ConfigError: a weight is not a number of at least 0.
    """

    def __init__(
        self, loss_weight: float = 2.0, void_weight: float = 0.1, class_weight: None = None
    ) -> None:
        check_number("loss_weight", loss_weight)
        check_number("void_weight", void_weight)
        super().__init__(loss_weight=loss_weight)
        self.void_weight = void_weight

    def weights(self, num_classes: int) -> list[float]:
        """Return the weights of ``num_classes`` classes and void."""
        return [1.0] * num_classes + [self.void_weight]

    def forward(
        self, cls_score: Tensor, label: Tensor, weight: Tensor, avg_factor: Tensor
    ) -> Tensor:
        """Compute the weighted cross entropy, a scalar.

        Args:
            cls_score: class logits, (N, K + 1), void last.
            label: class indices from 0 to K, (N,).
            weight: weights of the rows, (N,).
            avg_factor: sum of the rows' class weights on this process, a scalar.
        """
        self.class_weight = self.weights(cls_score.shape[-1] - 1)
        return super().forward(cls_score, label, weight, reduce_mean(avg_factor))
