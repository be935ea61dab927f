"""Number formats of the arithmetic."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(tensor: Tensor, precision: str) -> AbstractContextManager:
    """Arithmetic in ``precision`` on the device of ``tensor``.

    Raises:
        ValueError: fp16 on a CPU, where convolutions are hundreds of times slower than in fp32.
    """
    if precision == "fp16" and tensor.device.type == "cpu":
        raise ValueError("precision fp16 is for GPUs; on a CPU take bf16 or fp32")
    if precision == "fp32" or tensor.is_meta:
        return nullcontext()
    return torch.autocast(tensor.device.type, PRECISIONS[precision])


def full_precision(tensor: Tensor) -> AbstractContextManager:
    """Leave autocast for a while, on the device of ``tensor``."""
    if tensor.is_meta:  # which torch.autocast does not know
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)
