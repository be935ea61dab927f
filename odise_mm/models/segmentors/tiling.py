"""Cuts images into square tiles of the size that a diffusion model was trained on.

The feature maps of the tiles are joined again. Source: ODISE (arXiv 2303.04803), section 3.3 and
supplement.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def tile_starts(length: int, side: int) -> list[int]:
    """Return the offsets of tiles along an edge. The last tile ends at the border.

    Args:
        length: length of the edge in pixels.
        side: length of a tile, at most ``length``.
    """
    return [*range(0, length - side, side), length - side]


@dataclass(frozen=True)
class TileGrid:
    """Positions of the tiles of one image.

    Attributes:
        image: height and width of the image in pixels.
        tile: height and width of a tile in the image.
        size: edge of the square tiles for the backbone; None if tiles are not resized.
        boxes: (top, left) of every tile, row by row.
    """

    image: tuple[int, int]
    tile: tuple[int, int]
    size: int | None
    boxes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, image: tuple[int, int], tile_size: int | None) -> "TileGrid":
        """Build the grid of an image.

        Args:
            image: height and width of the image in pixels.
            tile_size: edge of the square tiles. If the image's short edge is smaller, tiles have
                its length. None makes one tile of the whole image, for backbones that accept any
                shape.
        """
        height, width = image
        if tile_size is None:
            return cls((height, width), (height, width), None, ((0, 0),))
        side = min(tile_size, height, width)
        boxes = tuple((y, x) for y in tile_starts(height, side) for x in tile_starts(width, side))
        return cls((height, width), (side, side), tile_size, boxes)

    def __len__(self) -> int:
        return len(self.boxes)

    def cut(self, image: Tensor) -> Tensor:
        """Cut an image (C, height, width) into tiles: (number of tiles, C, size, size).

        Tiles smaller than ``size`` are enlarged (bicubic, without antialiasing).
        """
        height, width = self.tile
        tiles = torch.stack([image[:, y : y + height, x : x + width] for y, x in self.boxes])
        if self.size is not None and self.size != height:
            size = (self.size, self.size)
            tiles = F.interpolate(tiles, size, mode="bicubic", align_corners=False)
        return tiles

    def join(self, tiles: Tensor) -> Tensor:
        """Join the feature maps of all tiles. Overlapping tiles are averaged.

        Args:
            tiles: (number of tiles, C, tile height / stride, tile width / stride).

        Returns:
            (C, height / stride, width / stride).
        """
        if len(self) == 1:
            return tiles[0]
        rows, columns = tiles.shape[-2:]
        stride = self.tile[0] // rows
        joined = tiles.new_zeros(tiles.shape[1], self.image[0] // stride, self.image[1] // stride)
        count = tiles.new_zeros(1, *joined.shape[1:])
        for tile, (y, x) in zip(tiles, self.boxes, strict=True):
            top, left = y // stride, x // stride
            window = (slice(None), slice(top, top + rows), slice(left, left + columns))
            joined[window] += tile
            count[window] += 1
        return joined / count
