"""Captioners: the image becomes the diffusion model's conditioning (ODISE, section 3.3).

A captioner maps tiles (N, 3, S, S) in [0, 1], and the captions of the pictures that they were cut
from where there are any, to a :class:`~odise_mm.models.backbones.diffusion.Condition`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from odise_mm.models.backbones.diffusion import Condition
from odise_mm.models.clip import FrozenCLIP
from odise_mm.registry import MODELS
from odise_mm.utils.frozen import build_part


class _Projection(nn.Module):
    """A linear map of the image embedding plus one learned vector per token."""

    def __init__(self, in_dim: int, tokens: int, out_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim)
        self.positional_embedding = nn.Parameter(torch.empty(1, tokens, out_dim))
        nn.init.trunc_normal_(self.positional_embedding, std=0.02)

    def forward(self, embedding: Tensor) -> Tensor:
        """(N, in_dim) to (N, tokens, out_dim)."""
        return self.linear(embedding)[:, None] + self.positional_embedding


@MODELS.register_module()
class ImplicitCaptioner(nn.Module):
    """CLIP's image embedding v, mapped into the space of the text conditioning.

    ODISE, equation 3 (MLP): ``c = c_empty + tanh(a) * (Linear(v) + P)``, and the same for the time
    embedding of each diffusion step, ``tanh(a_t) * (Linear_t(v) + P_t)``. The gates a and a_t start
    at 0: training begins at the empty prompt. These are all the captioner's trained parameters.

    Args:
        clip: a :class:`~odise_mm.models.clip.FrozenCLIP` or its config.
        empty_context: embedding of the empty prompt, (1, tokens, context width).
        time_width: width of the diffusion model's time embedding.
        num_steps: diffusion steps that the backbone uses.
    """

    def __init__(
        self,
        clip: FrozenCLIP | dict,
        empty_context: Tensor,
        time_width: int,
        num_steps: int = 1,
    ) -> None:
        super().__init__()
        self.clip = build_part(clip, MODELS)
        _, tokens, width = empty_context.shape
        self.register_buffer("empty_context", empty_context, persistent=False)
        self.context = _Projection(self.clip.embed_dim, tokens, width)
        self.context_gate = nn.Parameter(torch.zeros(1, tokens, width))
        self.time = _Projection(self.clip.embed_dim, num_steps, time_width)
        self.time_gate = nn.Parameter(torch.zeros(time_width))

    def forward(self, tiles: Tensor, captions: Sequence[str | None] | None = None) -> Condition:
        """Conditioning of a batch of tiles, (N, 3, S, S) in [0, 1]; captions are not looked at."""
        return self.condition(self.clip.encode_image(tiles))

    def condition(self, embedding: Tensor) -> Condition:
        """Conditioning from CLIP image embeddings, (N, ``clip.embed_dim``), not normalised."""
        context = self.empty_context + self.context_gate.tanh() * self.context(embedding)
        return Condition(context, self.time_gate.tanh() * self.time(embedding))


@MODELS.register_module()
class EmptyCaptioner(nn.Module):
    """The empty prompt for every image (ODISE, captioner ablation)."""

    def __init__(self, empty_context: Tensor) -> None:
        super().__init__()
        self.register_buffer("empty_context", empty_context, persistent=False)

    def forward(self, tiles: Tensor, captions: Sequence[str | None] | None = None) -> Condition:
        """The same conditioning for every tile."""
        return Condition(self.empty_context.expand(len(tiles), -1, -1))
