"""Which features of a diffusion model are taken, and what need not exist for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from odise_mm.errors import ConfigError
from odise_mm.utils.settings import is_whole


class Taps(NamedTuple):
    """Residual blocks whose *input* is a feature, counted from 0 in the order they are run.

    Attributes:
        vae_encoder: of the encoder, two per level (Stable Diffusion: 0 to 7).
        unet: of the UNet's up-sampling half, three per level (Stable Diffusion: 0 to 11, SDXL: 0 to
            8); the skip connection is concatenated already.
        vae_decoder: of the decoder, which is run on the clean latent, three per level (Stable
            Diffusion: 0 to 11).
    """

    vae_encoder: tuple[int, ...] = ()
    unet: tuple[int, ...] = ()
    vae_decoder: tuple[int, ...] = ()


PAPER_TAPS = Taps(vae_encoder=(5, 7), unet=(2, 5, 8, 11), vae_decoder=(2, 5))


def as_taps(taps: Taps | dict | Sequence[Sequence[int]]) -> Taps:
    if isinstance(taps, dict):
        unknown = set(taps) - set(Taps._fields)
        if unknown:
            raise ValueError(
                f"taps of {', '.join(sorted(unknown))}: there are only {', '.join(Taps._fields)}"
            )
        taps = Taps(**taps)
    for name, blocks in zip(Taps._fields, taps, strict=False):
        listed = isinstance(blocks, Sequence) and not isinstance(blocks, str)
        if not listed or not all(map(is_whole, blocks)):
            raise ConfigError(f"taps.{name}={blocks!r}: a list of whole numbers")
    taps = Taps(*(tuple(sorted(blocks)) for blocks in taps))
    if not any(taps):
        raise ValueError("taps: name at least one residual block")
    return taps


def keep_before(levels: nn.ModuleList, tap: int) -> nn.ModuleList:
    """The layers that are run before residual block ``tap``."""
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
