"""Masks and the words of captions, without knowing which belong together (ODISE, section 3.5)."""

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

    :meth:`similarity` says how well each caption's words are found among each image's masks;
    an image should be closer to its own caption than to the others, and a caption to its own image.
    The batch is that of all processes together.

    Args:
        loss_weight: factor on the loss (published: 1).
        softmax: what the softmax in the similarity runs over. ``"masks"``: for every word over the
            image's masks, as in the published code, with which the published numbers were made.
            ``"words"``: for every mask over the caption's words, as equation 7 is written.

    Raises:
        ConfigError: another ``softmax``.
    """

    def __init__(self, loss_weight: float = 1.0, softmax: str = "masks") -> None:
        super().__init__()
        if softmax not in ("masks", "words"):
            raise ConfigError(f"GroundingLoss(softmax={softmax!r}): it is 'masks' or 'words'")
        check_number("loss_weight", loss_weight)
        self.loss_weight = loss_weight
        self.softmax = softmax

    def forward(
        self, mask_embeddings: Tensor, word_embeddings: Tensor, valid: Tensor, scale: Tensor
    ) -> Tensor:
        """Equation 8, of the batch of all processes.

        Every process gets the loss of the joined batch. Gradients come back through the gathering,
        so that with gradients averaged over processes, as DistributedDataParallel does, all are
        those of one process with the joined batch.

        Args:
            mask_embeddings: (B, Q, C), any length; B is the same on every process.
            word_embeddings: (B, K, C), any length.
            valid: (B, K) bool, False for what stands in the place of a missing word. A caption
                without any valid word is left out: nothing is asked of it or of its image. It
                stays among the wrong answers for the others, as in the published code.
            scale: factor on the cosine, a scalar.

        Returns:
            A scalar, float32.
        """
        with full_precision(mask_embeddings):
            masks = _gather(F.normalize(mask_embeddings.float(), dim=-1))
            words = _gather(F.normalize(word_embeddings.float(), dim=-1))
            has_words = _gather(valid.any(-1).to(masks.dtype))
            similarity = self.similarity(masks, words, scale)
            targets = torch.arange(len(masks), device=masks.device)
            # The two directions differ where captions are missing: image to caption is averaged
            # over the captions that there are, caption to image over the whole batch. Where there
            # is none at all the first asks for the pairs as they come. All this is as published.
            weights = has_words if has_words.any() else None
            of_images = F.cross_entropy(similarity, targets, weights)
            of_captions = F.cross_entropy(similarity.T, targets, reduction="none")
            return self.loss_weight * (of_images + (of_captions * has_words).mean()) / 2

    def of_layers(
        self,
        mask_embeddings: Sequence[Tensor],
        words: Sequence[Sequence[str]],
        embed: Callable[[Sequence[Sequence[str]]], Tensor],
        scale: Tensor,
    ) -> dict[str, Tensor]:
        """:meth:`forward` after every decoder layer; the words are embedded once.

        Args:
            mask_embeddings: of every layer, (B, Q, C).
            words: of one caption of every image, K or none.
            embed: from B lists of K words to (B, K, C).
            scale: factor on the cosine, a scalar.

        Returns:
            ``loss_grounding`` of the last layer, ``d0.loss_grounding`` and so on of the others.
        """
        device = mask_embeddings[0].device
        longest = torch.tensor(max(map(len, words)), device=device)
        all_reduce(longest, op="max")  # the embeddings of all processes are joined
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
        """Equation 7: the mean over words of what the masks that answer to a word score with it.

        Args:
            masks: (B, Q, C), normalized.
            words: (B', K, C), normalized.
            scale: factor on the cosine.

        Returns:
            (B, B'): image i and caption j.
        """
        scores = torch.einsum("iqc,jkc->ijqk", masks, words) * scale
        attention = scores.softmax(2 if self.softmax == "masks" else 3)
        return (attention * scores).sum(2).mean(2)


def _gather(tensor: Tensor) -> Tensor:
    """Joined along the first axis over all processes, with gradient."""
    return _Gather.apply(tensor) if get_world_size() > 1 else tensor


class _Gather(torch.autograd.Function):
    """What torch's own does, which with gloo scrambles gradients that are not contiguous."""

    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor) -> Tensor:
        return torch.cat(all_gather(tensor.contiguous()))

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        all_reduce(gradient)
        return gradient.chunk(get_world_size())[get_rank()]
