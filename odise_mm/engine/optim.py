"""Optimizer constructor that skips frozen modules, and bfloat16 training on any device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn

from odise_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TrainedParametersConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor that leaves frozen modules out of the optimizer.

    ``optim_wrapper.paramwise_cfg`` is mmengine's, e.g. ``norm_decay_mult``, ``custom_keys``. In
    mmengine, a custom key replaces all other rules. Here, ``norm_decay_mult`` and
    ``bias_decay_mult`` remain in effect for custom keys without ``decay_mult``: a learning rate of
    its own for the backbone does not give its norms a weight decay.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        # Without any option, mmengine passes all of model.parameters(), including frozen ones.
        super().__init__(optim_wrapper_cfg, {"bypass_duplicate": True} | (paramwise_cfg or {}))

    def add_params(self, params: list[dict], module: nn.Module, **kwargs: Any) -> None:
        """Add the parameter groups of a module, unless all of it is frozen or already added."""
        added = {id(parameter) for group in params for parameter in group["params"]}
        if any(p.requires_grad and id(p) not in added for p in module.parameters()):
            super().add_params(params, module, **kwargs)
            self._keep_decay_rules(params, module)

    def _keep_decay_rules(self, params: list[dict], module: nn.Module) -> None:
        """Apply the rules of weight decay to the module's parameters with a custom key."""
        if self.base_wd is None:
            return
        is_norm = isinstance(module, _NORMS)
        names = {id(parameter): name for name, parameter in module.named_parameters(recurse=False)}
        for group in params:
            name = names.get(id(group["params"][0]))
            if name is None or "decay_mult" in group:
                continue
            rule = "norm_decay_mult" if is_norm else "bias_decay_mult" if name == "bias" else ""
            if self.paramwise_cfg.get(rule) is not None and "lr_mult" in group:
                group["weight_decay"] = self.base_wd * self.paramwise_cfg[rule]


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Forward passes under autocast to bfloat16; weights, gradients and updates stay in float32.

    mmengine's ``AmpOptimWrapper`` works only on GPUs because of its loss scaling. bfloat16 needs no
    loss scaling, as it has the range of float32. This wrapper therefore also trains on CPUs, where
    it is faster if the processor has bfloat16 instructions (AVX512_BF16, AMX, Arm's BF16). The
    arguments are those of mmengine's :class:`~mmengine.optim.OptimWrapper`.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Return the context of the forward pass."""
        device = next(model.parameters()).device
        with super().optim_context(model), torch.autocast(device.type, torch.bfloat16):
            yield
