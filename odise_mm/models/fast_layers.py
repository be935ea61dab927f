"""Layers of frozen parts that compute the same as before, in less time and memory.

They replace the classes of existing layers, so that names and weights stay the same. Wherever
gradients, autocast, another device or tracing need it, they do what their base class does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenLinear(nn.Linear):
    """Linear layer that multiplies with oneDNN on a CPU, see :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return linear(input, self.weight, self.bias)


def use_fast_layers(part: nn.Module) -> None:
    """Replace the class of every plain linear layer of a frozen part by :class:`FrozenLinear`.

    Args:
        part: the part, changed in place.
    """
    for module in part.modules():
        if type(module) is nn.Linear:
            module.__class__ = FrozenLinear


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``F.linear``, on a CPU and without gradients with oneDNN.

    In float32, torch calls MKL instead, which takes 1.2 times as long on AMD's CPUs. In bfloat16,
    both call oneDNN, but this operator has less overhead. oneDNN is slow for the number of tokens
    of most vision transformers, n * n + 1, so such inputs get a few more rows.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,) or None.

    Returns:
        (..., out_features)
    """
    if not uses_onednn(x, weight):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    count = len(rows)
    if count > _BLOCK and 0 < count % _BLOCK < _SMALLEST_REST:
        rows = F.pad(rows, (0, 0, 0, _SMALLEST_REST - count % _BLOCK))
    out = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return out[:count].view(*x.shape[:-1], len(weight))


_BLOCK = 64  # rows that oneDNN computes at a time
_SMALLEST_REST = 4  # measured: fewer rows left over take as long as about 60


def uses_onednn(x: Tensor, weight: Tensor) -> bool:
    """Return whether :func:`linear` calls oneDNN's operator for inference."""
    if torch.is_grad_enabled() or x.device.type != "cpu" or weight.device.type != "cpu":
        return False
    if x.dtype != weight.dtype or torch.is_autocast_enabled("cpu"):
        return False
    if is_traced():
        return False  # compilers fuse the plain operator
    if x.dtype == torch.float32:
        return _mkldnn_is_enabled() and x.numel() > 0
    return x.dtype == torch.bfloat16 and _mkldnn_is_enabled() and _has_bfloat16() and x.numel() > 0


def is_traced() -> bool:
    """Return whether the operations are recorded, for a compiler or an exported graph."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _mkldnn_is_enabled() -> bool:
    return torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()


def _has_bfloat16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
