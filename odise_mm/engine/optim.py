"""Optimizers, their constructor, which skips frozen modules, and bfloat16 training anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn

from odise_mm.errors import ConfigError
from odise_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS

_LINEAR = (nn.Linear, nn.MultiheadAttention)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TrainedParametersConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor that leaves frozen modules out of the optimizer.

    ``optim_wrapper.paramwise_cfg`` is mmengine's, e.g. ``norm_decay_mult``, ``custom_keys``. In
    mmengine, a custom key replaces all other rules. Here, ``norm_decay_mult`` and
    ``bias_decay_mult`` remain in effect for custom keys without ``decay_mult``: a learning rate of
    its own for the backbone does not give its norms a weight decay.

    The groups of linear layers' weight matrices have the entry ``linear=True``, which
    :class:`MuonAdamW` needs.
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
            self._mark_linear_layers(params, module)

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

    @staticmethod
    def _mark_linear_layers(params: list[dict], module: nn.Module) -> None:
        own = {id(weight) for weight in linear_weights(module)}
        for group in params:
            if own.issuperset(map(id, group["params"])):
                group["linear"] = True


def linear_weights(module: nn.Module) -> list[nn.Parameter]:
    """Return the weight matrices of a linear layer or of attention, without those of its parts."""
    if not isinstance(module, _LINEAR):
        return []
    return [weight for weight in module.parameters(recurse=False) if weight.ndim == 2]


@OPTIMIZERS.register_module()
class MuonAdamW(torch.optim.Optimizer):
    """Muon for the weight matrices of linear layers, AdamW for all other parameters.

    Muon (Jordan et al., https://kellerjordan.github.io/posts/muon, :class:`torch.optim.Muon`) makes
    the momentum of a matrix orthogonal before it is subtracted. It is meant for the matrices
    between hidden states, so embeddings, convolutions, norms and biases are left to AdamW, and so
    are matrices with fewer than ``smallest`` rows or columns.

    Which groups are linear layers is known from
    ``optim_wrapper.constructor="TrainedParametersConstructor"``. Schedules change both learning
    rates by the same factor. In a step, both shrink weights by the same share: Muon's weight decay
    is ``weight_decay * lr / muon_lr``.

    Args:
        params: parameter groups; Muon trains those with ``linear=True``.
        lr: AdamW's learning rate.
        muon_lr: Muon's learning rate.
        weight_decay: AdamW's weight decay.
        betas: AdamW's coefficients of the running averages.
        smallest: fewest rows and columns of a matrix that Muon trains.

    Raises:
        ConfigError: this torch has no Muon (it is part of torch 2.9), or there is no matrix for it.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        muon_lr: float = 1e-2,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        smallest: int = 32,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                f"MuonAdamW needs torch 2.9 or newer, and this is {torch.__version__}; use AdamW"
            )
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, linear=False))
        for group in self.param_groups:
            matrices = all(p.ndim == 2 and min(p.shape) >= smallest for p in group["params"])
            group["linear"] = bool(group["linear"]) and matrices
            if group["linear"]:
                group["lr"] *= muon_lr / lr
                group["weight_decay"] *= lr / muon_lr
            else:
                group["betas"] = betas
        if not any(group["linear"] for group in self.param_groups):
            raise ConfigError(
                f"MuonAdamW has no matrix of at least {smallest} x {smallest} to train with Muon; "
                "set optim_wrapper.constructor='TrainedParametersConstructor', which marks them, "
                "or use AdamW"
            )
        self._share()

    def _share(self) -> None:
        """Make the two optimizers, which share groups and state with this one."""
        groups: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for group in self.param_groups:
            groups[group["linear"]].append(group)
        self._parts: list[torch.optim.Optimizer] = [torch.optim.Muon(groups[True])]
        if groups[False]:
            self._parts.append(torch.optim.AdamW(groups[False]))
        for part in self._parts:
            part.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore groups and state, for ``load_state_dict``, copies and pickles."""
        super().__setstate__(state)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; one that is added after the optimizer was made is trained with AdamW."""
        super().add_param_group(param_group)
        if hasattr(self, "_parts"):
            self.param_groups[-1]["linear"] = False
            self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters.

        Args:
            closure: function that computes the gradients and returns the loss.

        Returns:
            The loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


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
