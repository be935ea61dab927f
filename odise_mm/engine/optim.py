"""Which parameters the optimizer gets."""

from __future__ import annotations

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from odise_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS


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
