"""Tests of the feature projection against the formulas in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from odise_mm.models import FeatureProjection
from tests.support.parts import random_weights, relative_error

CHANNELS = (40, 64, 96, 64, 32, 40)
STRIDES = (4, 8, 32, 16, 8, 4)


def group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    groups = x.double().reshape(len(x), 32, -1)
    groups = groups - groups.mean(-1, keepdim=True)
    groups = groups / (groups.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return groups.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


def bottleneck(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    def layer(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.0.weight"].double()
        x = F.conv2d(x.double(), weight, padding=weight.shape[-1] // 2)
        return group_norm(x, state[f"{name}.1.weight"], state[f"{name}.1.bias"])

    out = layer("conv1", x).clamp(min=0)
    out = layer("conv2", out).clamp(min=0)
    out = layer("conv3", out)
    return (out + (layer("shortcut", x) if "shortcut.0.weight" in state else x)).clamp(min=0)


def nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    rows = (np.arange(size[0]) * x.shape[-2]) // size[0]
    columns = (np.arange(size[1]) * x.shape[-1]) // size[1]
    return x[..., torch.from_numpy(rows)[:, None], torch.from_numpy(columns)]


@pytest.mark.parametrize("size", [(64, 64), (128, 192)])
def test_equals_the_formula(size: tuple[int, int]) -> None:
    # Double precision, because constant maps have no variance and would only show rounding.
    neck = random_weights(FeatureProjection(CHANNELS, STRIDES, 64, 32)).double()
    generator = torch.Generator().manual_seed(3)
    # Maps of a 64 x 64 tile at the true strides; the coarsest one has stride 64.
    edges = (16, 8, 1, 4, 8, 16)
    features = [
        torch.randn(2, c, e, e, generator=generator).double()
        for c, e in zip(CHANNELS, edges, strict=True)
    ]
    wanted: dict[int, Tensor] = {}
    for i, (feature, stride) in enumerate(zip(features, STRIDES, strict=True)):
        resized = nearest(feature, (size[0] // stride, size[1] // stride))
        projected = bottleneck(resized, neck.blocks[i].state_dict())
        wanted[stride] = wanted.get(stride, 0) + projected
    with torch.no_grad():
        pyramid = neck(features, size)
    for level, stride in zip(pyramid, (4, 8, 16, 32), strict=True):
        assert relative_error(level, wanted[stride]) < 1e-8


def test_shortcut_is_the_identity_where_channels_agree() -> None:
    neck = FeatureProjection(CHANNELS, STRIDES, 64, 32)
    has_weights = [bool(list(block.shortcut.parameters())) for block in neck.blocks]
    assert has_weights == [channels != 64 for channels in CHANNELS]
    assert not any(k.endswith("0.bias") for k in neck.state_dict())  # convolutions have no bias


@pytest.mark.parametrize("strides", [(8, 8, 32, 16, 8, 8), (4, 8, 64, 32, 16, 4)])
def test_wrong_strides_raise(strides: tuple[int, ...]) -> None:
    message = r"feature maps for strides \(4, 8, 16, 32\).*returns 6 maps of strides \("
    with pytest.raises(ValueError, match=message + str(strides[0])):
        FeatureProjection(CHANNELS, strides)
    with pytest.raises(ValueError, match=r"levels=\(4, 8, 16\) was given"):
        FeatureProjection(CHANNELS[:3], strides[:3], levels=(4, 8, 16))
    with pytest.raises(ValueError, match="6 maps.* was given"):
        FeatureProjection(CHANNELS, strides, levels=(4, 8, 16, 32))


def test_levels_of_a_plain_vit() -> None:
    levels = (32, 4, 16, 8)
    neck = random_weights(FeatureProjection((64,) * 4, (14,) * 4, 64, 32, levels)).double()
    features = [torch.randn(1, 64, 5, 5).double() for _ in levels]
    with torch.no_grad():
        pyramid = dict(zip((4, 8, 16, 32), neck(features, (64, 96)), strict=True))
    for i, level in enumerate(levels):
        resized = nearest(features[i], (64 // level, 96 // level))
        wanted = bottleneck(resized, neck.blocks[i].state_dict())
        assert relative_error(pyramid[level], wanted) < 1e-8


def test_too_many_maps_raise() -> None:
    neck = FeatureProjection(CHANNELS, STRIDES, 64, 32)
    features = [torch.zeros(1, c, 2, 2) for c in CHANNELS]
    with pytest.raises(ValueError, match="zip"):
        neck([*features, features[0]], (64, 64))
