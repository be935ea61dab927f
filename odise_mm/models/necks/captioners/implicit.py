"""Captioners: the image becomes the diffusion model's conditioning (ODISE, section 3.3).

A captioner maps tiles (N, 3, S, S) in [0, 1], and the captions of the images that they were cut
from where there are any, to a :class:`~odise_mm.models.backbones.diffusion.condition.Condition`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odise_mm.config.building import build_part
from odise_mm.errors import ConfigError
from odise_mm.models.backbones.diffusion.condition import Condition
from odise_mm.models.clip.frozen_clip import FrozenCLIP
from odise_mm.registry import MODELS
from odise_mm.utils.settings import check_whole, is_number

LAST_STEP = 999


def check_provided(captioner: nn.Module, **provided: Any) -> None:
    """Refuse a captioner without what a diffusion model lends.

    Raises:
        ValueError: one of ``lent`` is None.
    """
    missing = [name for name, value in provided.items() if value is None]
    if missing:
        raise ValueError(
            f"{type(captioner).__name__} needs {' and '.join(missing)} of a diffusion model, which "
            "DiffusionBackbone lends and the config's backbone does not: take a DiffusionBackbone, "
            "or captioner=None"
        )


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
    at 0: training begins at the empty prompt. These are all the captioner's trained parameters,
    unless the diffusion step is learned as well (paper, ablation of the steps): then a scalar r, of
    which the step is 999 * sigmoid(r), so that it stays on the schedule.

    Args:
        clip: a :class:`~odise_mm.models.clip.frozen_clip.FrozenCLIP` or its config.
        empty_context: embedding of the empty prompt, (1, tokens, context width).
        time_width: width of the diffusion model's time embedding.
        num_steps: diffusion steps that the backbone uses.
        learned_step: where the learned diffusion step starts, inside (0, 999); it takes the place
            of the backbone's one step. None: the step is the backbone's.

    Raises:
        ValueError: a start outside, a learned step for a backbone with several, or a backbone
            that is no diffusion model.
    """

    def __init__(
        self,
        clip: FrozenCLIP | dict,
        empty_context: Tensor | None = None,
        time_width: int | None = None,
        num_steps: int = 1,
        learned_step: float | None = None,
    ) -> None:
        super().__init__()
        check_provided(self, empty_context=empty_context, time_width=time_width)
        if learned_step is not None and not (
            is_number(learned_step) and 0 < learned_step < LAST_STEP
        ):
            raise ConfigError(f"learned_step={learned_step!r}: begin inside (0, {LAST_STEP})")
        check_whole("num_steps", num_steps)
        check_whole("time_width", time_width)
        if learned_step is not None and num_steps != 1:
            raise ValueError(
                f"learned_step takes the place of the backbone's step, and it has {num_steps}: "
                "give it steps=(0,)"
            )
        self.clip = build_part(clip, MODELS)
        _, tokens, width = empty_context.shape
        self.register_buffer("empty_context", empty_context, persistent=False)
        self.context = _Projection(self.clip.embed_dim, tokens, width)
        self.context_gate = nn.Parameter(torch.zeros(1, tokens, width))
        self.time = _Projection(self.clip.embed_dim, num_steps, time_width)
        self.time_gate = nn.Parameter(torch.zeros(time_width))
        self.register_parameter("step_logit", None)
        if learned_step is not None:
            self.step_logit = nn.Parameter(torch.tensor(learned_step / LAST_STEP).logit())

    @property
    def step(self) -> Tensor | None:
        """The learned diffusion step, a tensor without axes in [0, 999]; None: not learned."""
        return None if self.step_logit is None else LAST_STEP * self.step_logit.sigmoid()

    def forward(self, tiles: Tensor, captions: Sequence[str | None] | None = None) -> Condition:
        """Conditioning of a batch of tiles, (N, 3, S, S) in [0, 1]; captions are not looked at."""
        return self.condition(self.clip.encode_image(tiles))

    def condition(self, embedding: Tensor) -> Condition:
        """Conditioning from CLIP image embeddings, (N, ``clip.embed_dim``), not normalized."""
        context = self.empty_context + self.context_gate.tanh() * self.context(embedding)
        return Condition(context, self.time_gate.tanh() * self.time(embedding), self.step)


@MODELS.register_module()
class EmptyCaptioner(nn.Module):
    """The empty prompt for every image (ODISE, captioner ablation).

    Raises:
        ValueError: there is no ``empty_context``, which a diffusion backbone lends.
    """

    def __init__(self, empty_context: Tensor | None = None) -> None:
        super().__init__()
        check_provided(self, empty_context=empty_context)
        self.register_buffer("empty_context", empty_context, persistent=False)

    def forward(self, tiles: Tensor, captions: Sequence[str | None] | None = None) -> Condition:
        """The same conditioning for every tile."""
        return Condition(self.empty_context.expand(len(tiles), -1, -1))
