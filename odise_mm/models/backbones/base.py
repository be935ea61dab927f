"""Interface of backbones (the first of the five contracts in docs/design.md)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from odise_mm.models.frozen import FrozenModule


class Backbone(FrozenModule):
    """Base class of backbones, which compute raw feature maps of image tiles.

    A new representation only needs a subclass. If ``__init__`` ends with ``self.freeze()``, the
    weights are frozen, otherwise they are trained.

    Attributes:
        channels: number of channels of each feature map, in the order that ``forward`` returns
            them. Known before any weights are loaded.
        strides: stride of each feature map in pixels of the tile. Also known before loading.
        tile_divisor: height and width of the tiles must be multiples of this.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    tile_divisor: int = 1

    def forward(self, tiles: Tensor, *condition: Any) -> list[Tensor]:
        """Compute the feature maps of a batch of tiles.

        Args:
            tiles: (N, 3, H, W) in [0, 1], RGB. The backbone normalizes them itself.
            condition: output of the captioner, in models that have one.

        Returns:
            One (N, channels[i], h, w) map for each entry of ``channels``. Sizes may deviate from
            ``strides`` (14-pixel patches of a 512-pixel tile); the neck resizes the maps.
        """
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return values that other parts are built with, keyed by their argument names."""
        return {"in_channels": self.channels, "in_strides": self.strides}
