"""What every backbone promises (the first of the five contracts in docs/design.md)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from odise_mm.models.frozen import FrozenModule


class Backbone(FrozenModule):
    """Tiles to raw feature maps; a subclass is all that a new representation needs.

    Weights are frozen where ``__init__`` ends with ``self.freeze()``, trained otherwise.

    Attributes:
        channels: channels of every feature map, in the order of ``forward``'s list; known before
            any weight is loaded.
        strides: pixels of the tile per step of the map, likewise.
        tile_divisor: edges of the tiles that it gets have to be multiples of it.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    tile_divisor: int = 1

    def forward(self, tiles: Tensor, *condition: Any) -> list[Tensor]:
        """Feature maps of a batch of tiles.

        Args:
            tiles: (N, 3, H, W) in [0, 1], RGB; normalization is the backbone's business.
            condition: the captioner's, in models that have one.

        Returns:
            One (N, channels[i], h, w) map for every entry of ``channels``. Sizes may deviate from
            ``strides`` (a patch of 14 pixels on a tile of 512): the neck resizes the maps.
        """
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What other parts want to know of this one, by the names of their arguments."""
        return {"in_channels": self.channels, "in_strides": self.strides}
