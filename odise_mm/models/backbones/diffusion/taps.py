"""Selection of the features of a diffusion model, and of the layers needed to compute them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from odise_mm.errors import ConfigError
from odise_mm.utils.settings import is_whole


class Taps(NamedTuple):
    """Residual blocks whose *inputs* are features, counted from 0 in the order of execution.

    Attributes:
        vae_encoder: blocks of the encoder, two per level (Stable Diffusion: 0 to 7).
        unet: blocks of the UNet's upsampling half, three per level (Stable Diffusion: 0 to 11,
            SDXL: 0 to 8). Features include the concatenated skip connection.
        vae_decoder: blocks of the decoder, which runs on the clean latent, three per level (Stable
            Diffusion: 0 to 11).
    """

    vae_encoder: tuple[int, ...] = ()
    unet: tuple[int, ...] = ()
    vae_decoder: tuple[int, ...] = ()


PAPER_TAPS = Taps(vae_encoder=(5, 7), unet=(2, 5, 8, 11), vae_decoder=(2, 5))


def as_taps(taps: Taps | dict | Sequence[Sequence[int]]) -> Taps:
    """Convert the ``taps`` of a config to :class:`Taps` with sorted blocks.

    Raises:
        ValueError: unknown key, or no block at all.
        ConfigError: blocks that are not a list of integers.
    """
    if isinstance(taps, dict):
        unknown = set(taps) - set(Taps._fields)
        if unknown:
            raise ValueError(
                f"unknown keys in taps: {', '.join(sorted(unknown))}; the keys are "
                f"{', '.join(Taps._fields)}"
            )
        taps = Taps(**taps)
    for name, blocks in zip(Taps._fields, taps, strict=False):
        listed = isinstance(blocks, Sequence) and not isinstance(blocks, str)
        if not listed or not all(map(is_whole, blocks)):
            raise ConfigError(f"taps.{name}={blocks!r} must be a list of integers")
    taps = Taps(*(tuple(sorted(blocks)) for blocks in taps))
    if not any(taps):
        raise ValueError("taps must contain at least one residual block")
    return taps


def keep_before(levels: nn.ModuleList, tap: int) -> nn.ModuleList:
    """Return the layers that run before residual block ``tap``."""
    kept = []
    first = 0
    for level in levels:
        count = min(tap - first, len(level.resnets))
        complete = count == len(level.resnets)
        first += len(level.resnets)
        if complete and tap >= first:
            kept.append(level)
            continue
        if count > 0:
            level.resnets = level.resnets[:count]
            if hasattr(level, "attentions") and len(level.attentions) > count:
                level.attentions = level.attentions[:count]
            level.upsamplers = None
            kept.append(level)
        break
    return nn.ModuleList(kept)
