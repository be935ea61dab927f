"""Text embeddings that are adapted to the image before they are compared with its masks."""

from collections.abc import Callable

import torch.nn.functional as F
from mmdet.models.layers import SinePositionalEncoding
from torch import Tensor, nn

from odise_mm.registry import MODELS
from odise_mm.utils.precision import full_precision
from odise_mm.utils.settings import check_choice, check_flag, check_whole

Embed = Callable[[Tensor], Tensor]


class TextAdapter(nn.Module):
    """Base of text adapters."""

    def forward(self, text: Tensor, features: Tensor, embed: Embed) -> Tensor:
        """Adapt the embeddings of all names to each image.

        Args:
            text: (S, C), L2-normalized.
            features: of the last stage of CLIP's image tower, (B, C', h, w).
            embed: from features (B, N, C') to embeddings (B, N, C), not normalized.

        Returns:
            (B, S, C), to be used as they are: they need not have unit norm.
        """
        raise NotImplementedError


@MODELS.register_module()
class ContentDependentTransfer(TextAdapter):
    """One cross-attention from names to image positions (MAFT+, arXiv 2408.00744, section 3.3).

    Keys carry a sine position, values do not. With t the text and a the attention's output, the
    result is ``t + LN(MLP(a))`` (``form="panoptic"``) or ``LN(t + MLP(a))`` (``"semantic"``); the
    published panoptic and semantic checkpoints each need their own form.

    Args:
        embed_dim: width of CLIP's embeddings.
        num_heads: of the attention.
        form: see above.
        align: the published code reshapes the feature map (C', h, w) to (h * w, C') without moving
            the channels to the end. So what it takes for the features of a position are values of
            one channel, or a few, at many positions. The published weights were trained this way.
            True embeds the features of each position; for models that are trained anew.
    """

    def __init__(
        self, embed_dim: int, num_heads: int = 8, form: str = "panoptic", align: bool = False
    ) -> None:
        super().__init__()
        check_whole("embed_dim", embed_dim)
        check_whole("num_heads", num_heads)
        check_choice("form", form, ("panoptic", "semantic"))
        check_flag("align", align)
        self.form, self.align = form, align
        self.attention = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(embed_dim)
        self.mlp = nn.Linear(embed_dim, embed_dim)
        self.position = SinePositionalEncoding(embed_dim // 2, normalize=True)
        if form == "panoptic":  # starts as the identity
            for parameter in (*self.mlp.parameters(), self.norm.bias):
                nn.init.zeros_(parameter)

    def forward(self, text: Tensor, features: Tensor, embed: Embed) -> Tensor:
        """See :meth:`TextAdapter.forward`."""
        batch, channels, height, width = features.shape
        if self.align:
            rows = features.flatten(2).transpose(1, 2)
        else:
            # One reshape would do, but ties the programs of torch.export to some image sizes.
            rows = features.flatten(1).unflatten(1, (height * width, channels))
        values = embed(rows)
        with full_precision(values):
            position = self.position(values.new_zeros(batch, height, width).bool())
            keys = values + position.flatten(2).transpose(1, 2)
            text = text.float().expand(batch, -1, -1)
            change = self.mlp(self.attention(text, keys, values, need_weights=False)[0])
            if self.form == "panoptic":
                return text + self.norm(change)
            return self.norm(text + change)


@MODELS.register_module()
class PseudoText(TextAdapter):
    """One cross-attention from names to image embeddings (MaskCLIP++, arXiv 2412.11464).

    With t the text and a the attention's output, the result is ``LN(t + a)``. Keys and values are a
    linear map of the normalized embeddings of all positions.

    Args:
        embed_dim: width of CLIP's embeddings.
        num_heads: of the attention.
    """

    def __init__(self, embed_dim: int, num_heads: int = 8) -> None:
        super().__init__()
        check_whole("embed_dim", embed_dim)
        check_whole("num_heads", num_heads)
        self.image_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.attention = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, text: Tensor, features: Tensor, embed: Embed) -> Tensor:
        """See :meth:`TextAdapter.forward`."""
        embeddings = embed(features.flatten(2).transpose(1, 2))
        with full_precision(embeddings):
            image = self.image_proj(F.normalize(embeddings, dim=-1))
            text = text.float().expand(len(image), -1, -1)
            return self.norm(text + self.attention(text, image, image, need_weights=False)[0])
