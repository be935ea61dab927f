"""Blocks of diffusers' VAEs and UNets that need less memory and time without gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from odise_mm.models.fast_layers import is_traced, linear, uses_onednn

_FEW_POSITIONS = 64 * 64
_SMALL_MAP = 256  # positions; measured: 512 are faster as a convolution
_CHUNK = 2**18  # values of a map that a thread computes at a time


class FrozenResnet(ResnetBlock2D):
    """Residual block that changes its own intermediate maps in place.

    Large maps are not stored in a CPU's caches, and the system has to clear each new one, so an
    operation in place takes less than half the time.
    """

    def forward(
        self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **options: Any
    ) -> Tensor:
        """Compute the block; see the base class."""
        if torch.is_grad_enabled() or not self._is_plain():
            return super().forward(input_tensor, temb, *args, **options)
        hidden = self.conv1(_norm_and_silu(self.norm1, input_tensor))
        if temb is not None and self.time_emb_proj is not None:
            hidden = _sum(hidden, self.time_emb_proj(F.silu(temb))[:, :, None, None])
        hidden = self.conv2(_norm_and_silu(self.norm2, hidden))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return _sum(hidden, input_tensor)

    def _is_plain(self) -> bool:
        return (
            self.upsample is None
            and self.downsample is None
            and self.time_embedding_norm == "default"
            and isinstance(self.nonlinearity, nn.SiLU)
            and not self.skip_time_act
            and self.output_scale_factor == 1
            and not self.training
        )


class FrozenConv(nn.Conv2d):
    """3x3 convolution that computes small maps as one matrix product.

    In float32, oneDNN reorders the weights in each call. For maps of 8 x 8 positions this takes as
    long as the convolution itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W)."""
        batch, _, height, width = input.shape
        positions = batch * height * width
        small = input.dtype == torch.float32 and positions <= _SMALL_MAP and not input.is_meta
        if not small or not uses_onednn(input, self.weight):
            return super().forward(input)
        columns = F.unfold(input, 3, padding=1).transpose(1, 2)
        out = linear(columns, self.weight.flatten(1), self.bias)
        return out.transpose(1, 2).reshape(batch, -1, height, width)


def _is_plain_3x3(conv: nn.Conv2d) -> bool:
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and conv.padding_mode == "zeros"


def use_frozen_blocks(model: nn.Module) -> None:
    """Replace the classes of a VAE's or UNet's residual blocks and convolutions by those above.

    Args:
        model: the model, changed in place.
    """
    for module in model.modules():
        if type(module) is ResnetBlock2D:
            module.__class__ = FrozenResnet
        elif type(module) is nn.Conv2d and _is_plain_3x3(module):
            module.__class__ = FrozenConv


def _norm_and_silu(norm: nn.GroupNorm, maps: Tensor) -> Tensor:
    """Compute SiLU of the normalized maps, (N, C, H, W)."""
    if _sums_lose_digits(maps):
        # A recorded graph gets one operation instead of one for each chunk.
        normalized = norm(maps.contiguous()) if is_traced() else accurate_group_norm(norm, maps)
    else:
        normalized = norm(maps)
    return F.silu(normalized, inplace=True)


def _sums_lose_digits(maps: Tensor) -> bool:
    """Return whether torch's group norm would lose digits of float32.

    For channels-last maps on a CPU, it sums all positions one after the other. The error grows with
    their number: 1e-7 of the output's deviation for 64 x 64 positions, 2e-5 for 512 x 512.
    """
    return (
        maps.dtype == torch.float32
        and maps.device.type == "cpu"
        and maps[0, 0].numel() > _FEW_POSITIONS
        and maps.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
    )


def accurate_group_norm(norm: nn.GroupNorm, maps: Tensor) -> Tensor:
    """Compute group norm of channels-last maps with sums in float64.

    Args:
        norm: the layer.
        maps: (N, C, H, W) float32, channels-last.

    Returns:
        (N, C, H, W) float32, channels-last.
    """
    batch, channels, height, width = maps.shape
    out = torch.empty_like(maps)
    # Chunks fit into the cache, so that the second step on a chunk finds it there.
    step = max(_CHUNK * torch.get_num_threads() // channels, 1)
    groups = norm.num_groups
    per_group = height * width * (channels // groups)
    for source, target in zip(_positions(maps), _positions(out), strict=True):
        chunks = source.split(step)
        sums = torch.stack([chunk.sum(0) for chunk in chunks]).double().sum(0)
        squares = torch.stack([chunk.square().sum(0) for chunk in chunks]).double().sum(0)
        mean = sums.view(groups, -1).sum(1, keepdim=True) / per_group
        square = squares.view(groups, -1).sum(1, keepdim=True) / per_group
        scale = norm.weight.double().view(groups, -1) * (square - mean**2 + norm.eps).rsqrt()
        shift = (norm.bias.double().view(groups, -1) - mean * scale).flatten().float()
        scale = scale.flatten().float()
        for chunk, part in zip(chunks, target.split(step), strict=True):
            torch.addcmul(shift, chunk, scale, out=part)
    return out


def _positions(maps: Tensor) -> Tensor:
    """View channels-last maps, (N, C, H, W), as (N, H * W, C)."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def _sum(own: Tensor, other: Tensor) -> Tensor:
    """Add to a tensor in place, unless autocast has computed them in different types."""
    return own.add_(other) if own.dtype == other.dtype else own + other
