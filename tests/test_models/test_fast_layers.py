"""Layers of frozen parts beside those that they replace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from odise_mm.analysis.meta import flop_counter
from odise_mm.models.fast_layers import FrozenLinear, linear, use_fast_layers


@pytest.mark.parametrize("rows", [(3, 7), (65,), (2, 33), (1, 130)])  # 65, 66 and 130 get more rows
@pytest.mark.parametrize("bias", [True, False])
def test_linear(rows: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 10, bias=bias)
    x = torch.randn(*rows, 24)
    with torch.no_grad(), flop_counter() as counter:
        found = linear(x, layer.weight, layer.bias)
    assert counter.get_total_flops() >= 2 * x.numel() * 10
    torch.testing.assert_close(found, layer(x))
    half = layer.to(torch.bfloat16)
    with torch.no_grad():
        found = linear(x.bfloat16(), half.weight, half.bias)
    torch.testing.assert_close(found, half(x.bfloat16()))


def test_frozen_linear_passes_gradients_and_autocasts() -> None:
    part = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).requires_grad_(False)
    use_fast_layers(part)
    assert [type(layer) for layer in part] == [FrozenLinear, nn.ReLU, FrozenLinear]
    x = torch.randn(5, 4, requires_grad=True)
    part(x).sum().backward()
    assert x.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert part(x).dtype == torch.bfloat16
    assert part.to("meta")(torch.empty(5, 4, device="meta")).shape == (5, 2)
