"""Base class of frozen parts, and reproducible random weights."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from odise_mm.models.fast_layers import use_fast_layers
from odise_mm.utils.pages import release_pages
from odise_mm.utils.precision import full_precision

_RANDOM_LOCK = threading.RLock()


class FrozenModule(nn.Module):
    """Pre-trained module that is used but not trained.

    Call :meth:`freeze` after all layers have been created. From then on

    * no parameter requires a gradient (gradients still flow *through* the module),
    * ``train()`` leaves it in eval mode,
    * ``state_dict()`` omits its tensors, and loading a state dict does not report them as missing.

    The last point uses torch's state dict hooks, which mmengine's checkpoint code also runs. A
    module that never calls :meth:`freeze` is trained like any other.

    Another module may train a part of a frozen one: it registers the part as its own submodule,
    which then belongs to its state dict, and lets the parameters require gradients. See
    ``trained`` of :class:`~odise_mm.models.OpenCLIPBackbone`.

    Attributes:
        tuned: prefixes of parameters that were fine-tuned before they were frozen. The model's
            checkpoint files contain them.
    """

    frozen = False
    tuned: tuple[str, ...] = ()

    def freeze(self) -> None:
        """Freeze this module and all of its current submodules."""
        self.frozen = True
        use_fast_layers(self)
        self.requires_grad_(False)
        super().train(False)
        self._register_state_dict_hook(_drop_from_state_dict)
        self.register_load_state_dict_pre_hook(_remember_prefix)
        self.register_load_state_dict_post_hook(_forgive_missing)

    def train(self, mode: bool = True) -> "FrozenModule":
        """Set training mode; a frozen module stays in eval mode for either value of ``mode``."""
        return super().train(mode and not self.frozen)

    @classmethod
    def fetch_weights(cls, **settings: Any) -> None:
        """Download the weights that a module with these settings needs, without building it.

        Args:
            settings: arguments of ``__init__``, as in a config.

        Raises:
            CheckpointError: the weights cannot be found or downloaded.
        """

    def cast(self, dtype: torch.dtype) -> None:
        """Convert frozen weights to another floating point type; trained weights are unchanged.

        Scalars (CLIP's logit scale), buffers (noise, image mean) and batch norms, whose statistics
        are buffers, stay in float32: they take little memory, and all results depend on them. So do
        parameters that another module trains.

        Args:
            dtype: the new floating point type.
        """
        if self.frozen:
            cast_weights(self, dtype)

    def own_precision(self) -> AbstractContextManager:
        """Return a context that disables autocast if the weights are stored in 16 bits.

        The inputs are cast to the type of the weights anyway, so autocast would only compute norms
        in float32 needlessly. With float32 weights, an active autocast remains in effect.
        """
        weight = next(self.parameters())
        return nullcontext() if self.dtype == torch.float32 else full_precision(weight)

    def compile_parts(self, **options: Any) -> None:
        """Compile ``forward`` with ``torch.compile``.

        Args:
            options: arguments of ``torch.compile``.
        """
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
    """Convert the weights of a module as :meth:`FrozenModule.cast` does.

    Args:
        part: the module, changed in place.
        dtype: the new floating point type.
    """
    for module in part.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point() and parameter.ndim and not parameter.requires_grad:
                original = parameter.data
                parameter.data = original.to(dtype)
                if original.dtype != dtype:  # never both in memory for the whole model
                    release_pages(original)


def trained_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters that a model's checkpoints contain, each once."""
    state = model.state_dict()
    return [name for name, _ in model.named_parameters(remove_duplicate=False) if name in state]


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
    """Move a module from the meta device to the CPU and initialize its layers randomly.

    Used when no pre-trained weights are configured; see :func:`same_random_weights`. Does nothing
    while torch's default device is ``meta``, so that whole models can be built without memory.

    Args:
        module: a module on the meta device, changed in place.

    Returns:
        The same module.
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
    """Make random numbers drawn on the CPU in this context the same every time.

    Frozen parts are not stored in checkpoints, so a model that was trained on top of randomly
    initialized ones only works if the same random weights are drawn again. The state of torch's
    generator is restored afterwards. All threads share torch's CPU generator, so only one thread
    at a time can be inside.
    """
    with _RANDOM_LOCK, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # not torch.manual_seed: it also seeds GPUs
        yield


def is_meta_context() -> bool:
    """Return whether new tensors are created on the meta device (``with torch.device('meta')``)."""
    return torch.empty(0).is_meta
