"""Frozen parts: no gradients, always in eval mode, never in a checkpoint."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from odise_mm.utils.precision import full_precision

_DRAWING = threading.RLock()


class FrozenModule(nn.Module):
    """A pre-trained part that is used and never trained.

    Call :meth:`freeze` once its layers exist. From then on

    * no parameter asks for a gradient (gradients still flow *through* it),
    * ``train()`` leaves it in eval mode,
    * ``state_dict()`` has none of its tensors, and loading a state dict misses none.

    The last point is done with torch's own hooks, which mmengine's checkpoint code runs too. A
    part that never calls it is an ordinary, trained module.
    """

    frozen = False

    def freeze(self) -> None:
        """Freeze everything that is below this module now."""
        self.frozen = True
        self.requires_grad_(False)
        super().train(False)
        self._register_state_dict_hook(_drop_from_state_dict)
        self.register_load_state_dict_pre_hook(_remember_prefix)
        self.register_load_state_dict_post_hook(_forgive_missing)

    def train(self, mode: bool = True) -> "FrozenModule":
        """Stay in eval mode whatever ``mode`` says, once frozen."""
        return super().train(mode and not self.frozen)

    @classmethod
    def fetch_weights(cls, **settings: Any) -> None:
        """Download what a part with these settings reads its weights from, without building it.

        Args:
            settings: arguments of ``__init__``, as in a config; of others nothing is made.

        Raises:
            CheckpointError: the weights cannot be had.
        """

    def cast(self, dtype: torch.dtype) -> None:
        """Store frozen weights in another float type; trained ones stay as they are.

        Scalars (CLIP's logit scale) and buffers (noise, image mean) keep float32: they are small
        and everything depends on them. So do batch norms, whose statistics are buffers.
        """
        if self.frozen:
            cast_weights(self, dtype)

    def own_precision(self) -> AbstractContextManager:
        """Arithmetic in the weights' own type, where they are stored in 16 bit.

        Inputs are cast to that type anyway; autocast would compute norms in float32 for nothing.
        With float32 weights an active autocast stays in force.
        """
        weight = next(self.parameters())
        return nullcontext() if self.dtype == torch.float32 else full_precision(weight)

    def compile_parts(self, **options: Any) -> None:
        """Run ``forward`` through ``torch.compile``; ``options`` are that function's."""
        self.compile(**options)

    @property
    def device(self) -> torch.device:
        """Device of the first parameter or buffer."""
        return _first_tensor(self).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating point type of the first parameter or buffer."""
        return _first_tensor(self).dtype


def cast_weights(part: nn.Module, dtype: torch.dtype) -> None:
    """What :meth:`FrozenModule.cast` does, to a part of one."""
    for module in part.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point() and parameter.ndim:
                parameter.data = parameter.data.to(dtype)


def _first_tensor(module: nn.Module) -> Tensor:
    for tensor in module.parameters():
        return tensor
    return next(module.buffers())


def _drop_from_state_dict(_: nn.Module, state: dict, prefix: str, __: dict) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        del state[key]


def _remember_prefix(module: nn.Module, _: dict, prefix: str, *__: Any) -> None:
    module._state_prefix = prefix


def _forgive_missing(module: nn.Module, incompatible: Any) -> None:
    prefix = module._state_prefix
    missing = incompatible.missing_keys
    missing[:] = [key for key in missing if not key.startswith(prefix)]


def materialize(module: nn.Module) -> nn.Module:
    """Give a module built on the meta device memory on the CPU and its layers' default weights.

    Used where no pre-trained weights were named; see :func:`same_random_weights`. Does nothing
    while torch's default device is itself ``meta``, so that whole models can be built without
    memory.
    """
    if is_meta_context():
        return module
    module.to_empty(device="cpu")
    with same_random_weights():
        for child in module.modules():
            if isinstance(child, nn.MultiheadAttention):
                child._reset_parameters()
            elif hasattr(child, "reset_parameters"):
                child.reset_parameters()
    return module


@contextmanager
def same_random_weights() -> Iterator[None]:
    """Random weights drawn in here, on the CPU, are the same every time; no other draws are moved.

    Frozen parts are in no checkpoint: what was trained on random ones works only with these. One
    thread at a time draws; torch has one CPU generator for all.
    """
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # not those of GPUs, which would stay changed
        yield


def is_meta_context() -> bool:
    """Whether new tensors are made on the meta device (``with torch.device('meta')``)."""
    return torch.empty(0).is_meta
