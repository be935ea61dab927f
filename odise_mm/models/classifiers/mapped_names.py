"""Cache for text embeddings after a trained linear layer."""

from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from odise_mm.utils.bounded_cache import BoundedCache
from odise_mm.utils.precision import full_precision

_VOCABULARIES = 16


class _Mapped(NamedTuple):
    source: Tensor
    weight: Tensor
    bias: Tensor
    value: Tensor


class MappedNames:
    """Caches the output of a linear layer on text embeddings until the layer's weights change.

    Weights are compared by value, which costs a thousandth of the work saved. Optimizers, averaged
    weights and loaded states change weights in place, and some of these changes cannot be detected
    otherwise. The cache is not used while the layer may be trained.

    Args:
        rows: maximum number of cached embeddings, over all vocabularies.
    """

    def __init__(self, rows: int) -> None:
        self._kept: BoundedCache[_Mapped] = BoundedCache(_VOCABULARIES, rows)

    def map(self, layer: nn.Linear, key: Hashable, source: Tensor) -> Tensor:
        """Return ``layer(source)`` in the layer's dtype.

        Args:
            layer: a linear layer with a bias.
            key: identifies the content of ``source``.
            source: embeddings, (S, C). A cached result is used only if this is the same tensor
                object as before. It must not be modified in place.

        Returns:
            (S, C'). Do not modify it in place.
        """
        if layer.training or torch.is_grad_enabled() or layer.weight.is_meta:
            return self.compute(layer, source)
        kept = self._kept.get(key)
        if kept is None or kept.source is not source or not _has_weights_of(kept, layer):
            weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
            kept = _Mapped(source, weight, bias, self.compute(layer, source))
            self._kept.put(key, kept, len(source))
        return kept.value

    def forget(self) -> None:
        """Clear the cache."""
        self._kept.clear()

    @staticmethod
    def compute(layer: nn.Linear, source: Tensor) -> Tensor:
        """Return ``layer(source)`` in the layer's dtype, without the cache."""
        with full_precision(layer.weight):
            return layer(source.to(layer.weight))


def _has_weights_of(kept: _Mapped, layer: nn.Linear) -> bool:
    pairs = ((kept.weight, layer.weight), (kept.bias, layer.bias))
    return all(
        old.device == new.device and old.dtype == new.dtype and torch.equal(old, new)
        for old, new in pairs
    )
