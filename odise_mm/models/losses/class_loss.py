"""The class loss of matched masks, for any number of classes."""

from mmdet.models.losses import CrossEntropyLoss
from mmdet.utils import reduce_mean
from torch import Tensor

from odise_mm.registry import MODELS
from odise_mm.utils.settings import check_number


@MODELS.register_module()
class OpenVocabCrossEntropyLoss(CrossEntropyLoss):
    """mmdet's cross entropy whose last class is void, however many classes come before it.

    The sum over queries is divided by their class weights, averaged over processes, so that
    several processes have the gradients of one with the joined batch. The published code divides by
    the weights on each process: a (tiny) difference.

    Args:
        loss_weight: factor on the loss (published: 2).
        void_weight: weight of void; that of every other class is 1 (published: 0.1).
        class_weight: None; mmdet's head wants to find this argument.
    """

    def __init__(
        self, loss_weight: float = 2.0, void_weight: float = 0.1, class_weight: None = None
    ) -> None:
        check_number("loss_weight", loss_weight)
        check_number("void_weight", void_weight)
        super().__init__(loss_weight=loss_weight)
        self.void_weight = void_weight

    def weights(self, num_classes: int) -> list[float]:
        """Weights of ``num_classes`` classes and of void."""
        return [1.0] * num_classes + [self.void_weight]

    def forward(
        self, cls_score: Tensor, label: Tensor, weight: Tensor, avg_factor: Tensor
    ) -> Tensor:
        """Weighted cross entropy.

        Args:
            cls_score: logits, (N, K + 1); the last is void's.
            label: (N,) from 0 to K.
            weight: of each row, (N,).
            avg_factor: sum of the rows' class weights on this process, a scalar.
        """
        self.class_weight = self.weights(cls_score.shape[-1] - 1)
        return super().forward(cls_score, label, weight, reduce_mean(avg_factor))
