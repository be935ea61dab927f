"""The loss between masks and the words of captions (ODISE, section 3.5)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, all_reduce, get_rank, get_world_size
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from odise_mm.errors import ConfigError
from odise_mm.registry import MODELS
from odise_mm.utils.precision import full_precision
from odise_mm.utils.settings import check_number


@MODELS.register_module()
class GroundingLoss(nn.Module):
    """Contrastive loss between the images and the captions of a batch (ODISE, equations 7 and 8).

    :meth:`similarity` measures how well the words of a caption match the masks of an image. The
    loss makes an image more similar to its own caption than to the other captions, and a caption
    more similar to its own image than to the other images. The batch is that of all processes.

    Args:
        loss_weight: factor on the loss (published: 1).
        softmax: axis of the softmax in the similarity. ``"masks"``: for every word, over the
            image's masks, as in the published code and for the published numbers. ``"words"``: for
            every mask, over the caption's words, as in equation 7.

    Raises:
        ConfigError: unknown ``softmax``, or a ``loss_weight`` that is not a number of at least 0.
    """

    def __init__(self, loss_weight: float = 1.0, softmax: str = "masks") -> None:
        super().__init__()
        if softmax not in ("masks", "words"):
            raise ConfigError(f"GroundingLoss: softmax={softmax!r} must be 'masks' or 'words'")
        check_number("loss_weight", loss_weight)
        self.loss_weight = loss_weight
        self.softmax = softmax

    def forward(
        self, mask_embeddings: Tensor, word_embeddings: Tensor, valid: Tensor, scale: Tensor
    ) -> Tensor:
        """Compute equation 8 for the batch of all processes.

        Every process returns the loss of the whole batch. Gradients flow back through the
        gathering. After DistributedDataParallel has averaged them, they are the gradients of one
        process with the whole batch.

        Args:
            mask_embeddings: (B, Q, C), not normalized; B is the same on every process.
            word_embeddings: (B, K, C), not normalized.
            valid: (B, K) bool, False for the placeholder of a missing word. A caption without any
                valid word, and its image, have no loss. They remain negatives for the other images
                and captions, as in the published code.
            scale: factor on the cosine, a scalar.

        Returns:
            A float32 scalar.
        """
        with full_precision(mask_embeddings):
            masks = _gather(F.normalize(mask_embeddings.float(), dim=-1))
            words = _gather(F.normalize(word_embeddings.float(), dim=-1))
            has_words = _gather(valid.any(-1).to(masks.dtype))
            similarity = self.similarity(masks, words, scale)
            targets = torch.arange(len(masks), device=masks.device)
            # If captions are missing, the two directions differ, as in the published code: image to
            # caption is averaged over the existing captions, caption to image over the whole
            # batch. If there are no captions at all, the first direction uses all pairs.
            weights = has_words if has_words.any() else None
            image_loss = F.cross_entropy(similarity, targets, weights)
            caption_losses = F.cross_entropy(similarity.T, targets, reduction="none")
            return self.loss_weight * (image_loss + (caption_losses * has_words).mean()) / 2

    def of_layers(
        self,
        mask_embeddings: Sequence[Tensor],
        words: Sequence[Sequence[str]],
        embed: Callable[[Sequence[Sequence[str]]], Tensor],
        scale: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the loss of every decoder layer; the words are embedded only once.

        Args:
            mask_embeddings: mask embeddings of every layer, (B, Q, C).
            words: the words of one caption of every image, either K words or none.
            embed: function of B lists of K words that returns (B, K, C).
            scale: factor on the cosine, a scalar.

        Returns:
            ``loss_grounding`` of the last layer. The losses of the other layers have prefixes, as
            in ``d0.loss_grounding``.
        """
        device = mask_embeddings[0].device
        longest = torch.tensor(max(map(len, words)), device=device)
        all_reduce(longest, op="max")  # gathering needs the same K on all processes
        count = max(int(longest), 1)
        valid = torch.tensor([[bool(caption)] * count for caption in words], device=device)
        text = embed([list(caption) or [""] * count for caption in words])
        layers = len(mask_embeddings)
        names = [f"d{i}.loss_grounding" for i in range(layers - 1)] + ["loss_grounding"]
        return {
            name: self(layer, text, valid, scale)
            for name, layer in zip(names, mask_embeddings, strict=True)
        }

    def similarity(self, masks: Tensor, words: Tensor, scale: Tensor | float) -> Tensor:
        """Compute equation 7: the attention-weighted similarity, averaged over words.

        Args:
            masks: mask embeddings, (B, Q, C), normalized.
            words: word embeddings, (B', K, C), normalized.
            scale: factor on the cosine.

        Returns:
            (B, B'); entry (i, j) is the similarity of image i and caption j.
        """
        scores = torch.einsum("iqc,jkc->ijqk", masks, words) * scale
        attention = scores.softmax(2 if self.softmax == "masks" else 3)
        return (attention * scores).sum(2).mean(2)


def _gather(tensor: Tensor) -> Tensor:
    """Concatenate the tensors of all processes along the first axis, with gradient."""
    return _Gather.apply(tensor) if get_world_size() > 1 else tensor


class _Gather(torch.autograd.Function):
    """Differentiable all_gather; torch's own breaks non-contiguous gradients with gloo."""

    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor) -> Tensor:
        return torch.cat(all_gather(tensor.contiguous()))

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        all_reduce(gradient)
        return gradient.chunk(get_world_size())[get_rank()]
