"""Which parameters the optimizer gets, and bfloat16 for training on any device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn

from odise_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TrainedParametersConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor without frozen modules: the optimizer never hears of them.

    ``optim_wrapper.paramwise_cfg`` is mmengine's, e.g. ``norm_decay_mult``, ``custom_keys``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        # Without any option mmengine hands over model.parameters(), the frozen ones included.
        super().__init__(optim_wrapper_cfg, {"bypass_duplicate": True} | (paramwise_cfg or {}))

    def add_params(self, params: list[dict], module: nn.Module, **kwargs: Any) -> None:
        """Collect the parameter groups of a module that has anything to train."""
        if any(parameter.requires_grad for parameter in module.parameters()):
            super().add_params(params, module, **kwargs)


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Forward passes under autocast to bfloat16; weights, gradients and updates stay in float32.

    mmengine's ``AmpOptimWrapper`` is for GPUs only, as the scaling of losses is, which bfloat16 has
    no need of: its range is that of float32. This one also trains on CPUs, and is faster there
    where the processor multiplies bfloat16 (AVX512_BF16, AMX, Arm's BF16). Arguments: mmengine's
    :class:`~mmengine.optim.OptimWrapper`'s.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """What the forward pass runs in."""
        device = next(model.parameters()).device
        with super().optim_context(model), torch.autocast(device.type, torch.bfloat16):
            yield
