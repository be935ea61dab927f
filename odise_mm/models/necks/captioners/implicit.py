"""The implicit captioner and the empty prompt (ODISE, section 3.3).

A captioner computes a :class:`~odise_mm.models.backbones.diffusion.condition.Condition` from tiles
(N, 3, S, S) in [0, 1] and, if known, the captions of their images.
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
    """Check that a captioner got the arguments that a diffusion backbone provides.

    Args:
        captioner: the captioner.
        **provided: values of the arguments; None if the backbone does not provide them.

    Raises:
        ValueError: an argument is None.
    """
    missing = [name for name, value in provided.items() if value is None]
    if missing:
        raise ValueError(
            f"{type(captioner).__name__} needs {' and '.join(missing)} of a diffusion model, which "
            "the config's backbone does not provide; use DiffusionBackbone, or captioner=None "
            "(DiTBackbone works with ImplicitCaptioner and EmptyCaptioner)"
        )


class _Projection(nn.Module):
    """Linear projection of the image embedding, plus a learned vector for every token."""

    def __init__(self, in_dim: int, tokens: int, out_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim)
        self.positional_embedding = nn.Parameter(torch.empty(1, tokens, out_dim))
        nn.init.trunc_normal_(self.positional_embedding, std=0.02)

    def forward(self, embedding: Tensor) -> Tensor:
        """Map (N, in_dim) to (N, tokens, out_dim)."""
        return self.linear(embedding)[:, None] + self.positional_embedding


@MODELS.register_module()
class ImplicitCaptioner(nn.Module):
    """Projects CLIP's image embedding v into the space of the text condition.

    ODISE, equation 3 (MLP): ``c = c_empty + tanh(a) * (Linear(v) + P)``. The time embedding of each
    diffusion step is changed in the same way, by ``tanh(a_t) * (Linear_t(v) + P_t)``. The gates a
    and a_t start at 0, so training starts with the empty prompt. The captioner has no other trained
    parameters unless the diffusion step is learned (paper, ablation of the steps). In this case,
    the step is 999 * sigmoid(r) with a learned scalar r, which keeps it within the schedule.

    Args:
        clip: a :class:`~odise_mm.models.clip.frozen_clip.FrozenCLIP` or its config.
        empty_context: embedding of the empty prompt, (1, tokens, context width).
        time_width: width of the diffusion model's time embedding.
        num_steps: number of the backbone's diffusion steps.
        learned_step: initial value of the learned diffusion step, strictly between 0 and 999. The
            learned step replaces the backbone's only step. None uses the backbone's steps.

    Raises:
        ConfigError: the initial step is out of range.
        ValueError: a learned step with a backbone that uses several steps, or a backbone that is
            not a diffusion model.
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
            raise ConfigError(f"learned_step={learned_step!r} must be inside (0, {LAST_STEP})")
        check_whole("num_steps", num_steps)
        check_whole("time_width", time_width)
        if learned_step is not None and num_steps != 1:
            raise ValueError(
                f"learned_step replaces the backbone's only step, but the backbone has {num_steps} "
                "steps; set steps=(0,) in the backbone"
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
        """Learned diffusion step, a scalar tensor in [0, 999]; None if it is not learned."""
        return None if self.step_logit is None else LAST_STEP * self.step_logit.sigmoid()

    def forward(self, tiles: Tensor, captions: Sequence[str | None] | None = None) -> Condition:
        """Compute the condition of tiles (N, 3, S, S) in [0, 1]; ``captions`` is ignored."""
        return self.condition(self.clip.encode_image(tiles))

    def condition(self, embedding: Tensor) -> Condition:
        """Compute the condition from unnormalized CLIP embeddings, (N, ``clip.embed_dim``)."""
        context = self.empty_context + self.context_gate.tanh() * self.context(embedding)
        return Condition(context, self.time_gate.tanh() * self.time(embedding), self.step)


@MODELS.register_module()
class EmptyCaptioner(nn.Module):
    """Uses the empty prompt for every image (ODISE, captioner ablation).

    Args:
        empty_context: embedding of the empty prompt, (1, tokens, context width), provided by a
            diffusion backbone.

    Raises:
        ValueError: ``empty_context`` is None.
    """

    def __init__(self, empty_context: Tensor | None = None) -> None:
        super().__init__()
        check_provided(self, empty_context=empty_context)
        self.register_buffer("empty_context", empty_context, persistent=False)

    def forward(self, tiles: Tensor, captions: Sequence[str | None] | None = None) -> Condition:
        """Return the same condition for every tile."""
        return Condition(self.empty_context.expand(len(tiles), -1, -1))
