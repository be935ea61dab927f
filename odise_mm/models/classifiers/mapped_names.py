"""Names behind a layer that is trained, mapped once for many images."""

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
    """What a linear layer makes of text embeddings, kept while its weights have these values.

    The values themselves are compared (a thousandth of the work that is saved): optimizers,
    averaged weights and loaded states change them in place, some without a trace. Where the layer
    may be trained, nothing is kept and nothing kept is used.

    Args:
        rows: embeddings that are kept, of all vocabularies together.
    """

    def __init__(self, rows: int) -> None:
        self._kept: BoundedCache[_Mapped] = BoundedCache(_VOCABULARIES, rows)

    def map(self, layer: nn.Linear, key: Hashable, source: Tensor) -> Tensor:
        """``layer(source)`` in the layer's number format.

        Args:
            layer: with a bias.
            key: what ``source`` is made of.
            source: (S, C). The same tensor, unchanged, wherever the key is the same; of another one
                nothing is known.

        Returns:
            (S, C'); not to be written to.
        """
        if layer.training or torch.is_grad_enabled() or layer.weight.is_meta:
            return self._map(layer, source)
        kept = self._kept.get(key)
        if kept is None or kept.source is not source or not _is_of(kept, layer):
            weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
            kept = _Mapped(source, weight, bias, self._map(layer, source))
            self._kept.put(key, kept, len(source))
        return kept.value

    def forget(self) -> None:
        """Keep nothing of what was mapped."""
        self._kept.clear()

    def _map(self, layer: nn.Linear, source: Tensor) -> Tensor:
        with full_precision(layer.weight):
            return layer(source.to(layer.weight))


def _is_of(kept: _Mapped, layer: nn.Linear) -> bool:
    pairs = ((kept.weight, layer.weight), (kept.bias, layer.bias))
    return all(
        old.device == new.device and old.dtype == new.dtype and torch.equal(old, new)
        for old, new in pairs
    )
