"""Arithmetic precision; torch is only imported when needed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from odise_mm.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    import torch

_TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
PRECISIONS = tuple(_TORCH_NAMES)


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of a name in :data:`PRECISIONS`.

    Raises:
        ConfigError: If the name is unknown.
    """
    import torch

    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    return getattr(torch, _TORCH_NAMES[precision])


def check_precision(precision: str, device: torch.device) -> None:
    """Check that a device supports a precision.

    Raises:
        ConfigError: If the name is unknown.
        DeviceError: For fp16 on a CPU, where convolutions are hundreds of times slower than in
            fp32.
    """
    dtype_of(precision)
    if precision == "fp16" and device.type == "cpu":
        raise DeviceError("precision fp16 is for GPUs; on a CPU use bf16 or fp32")


def autocast(tensor: torch.Tensor, precision: str) -> AbstractContextManager:
    """Return an autocast context for ``precision`` on the device of ``tensor``.

    Raises:
        ConfigError: See :func:`check_precision`.
        DeviceError: See :func:`check_precision`.
    """
    import torch

    check_precision(precision, tensor.device)
    if precision == "fp32" or tensor.is_meta:
        return nullcontext()
    return torch.autocast(tensor.device.type, dtype_of(precision))


def full_precision(tensor: torch.Tensor) -> AbstractContextManager:
    """Return a context that disables autocast on the device of ``tensor``."""
    import torch

    if tensor.is_meta:  # torch.autocast does not support the meta device
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)
