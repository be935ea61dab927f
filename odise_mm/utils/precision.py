"""Number formats of the arithmetic; torch is not imported before it is needed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from odise_mm.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    import torch

_TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
PRECISIONS = tuple(_TORCH_NAMES)


def dtype_of(precision: str) -> torch.dtype:
    """The number format of a name in :data:`PRECISIONS`.

    Raises:
        ConfigError: an unknown name.
    """
    import torch

    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    return getattr(torch, _TORCH_NAMES[precision])


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse what cannot run, before anything is built.

    Raises:
        ConfigError: an unknown name.
        DeviceError: fp16 on a CPU, where convolutions are hundreds of times slower than in fp32.
    """
    dtype_of(precision)
    if precision == "fp16" and device.type == "cpu":
        raise DeviceError("precision fp16 is for GPUs; on a CPU take bf16 or fp32")


def autocast(tensor: torch.Tensor, precision: str) -> AbstractContextManager:
    """Arithmetic in ``precision`` on the device of ``tensor``.

    Raises:
        ConfigError, DeviceError: see :func:`check_precision`.
    """
    import torch

    check_precision(precision, tensor.device)
    if precision == "fp32" or tensor.is_meta:
        return nullcontext()
    return torch.autocast(tensor.device.type, dtype_of(precision))


def full_precision(tensor: torch.Tensor) -> AbstractContextManager:
    """Leave autocast for a while, on the device of ``tensor``."""
    import torch

    if tensor.is_meta:  # which torch.autocast does not know
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)
