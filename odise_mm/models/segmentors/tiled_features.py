"""Feature pyramids of whole images, computed from batches of tiles."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from odise_mm.errors import ConfigError
from odise_mm.models.segmentors.tiling import TileGrid
from odise_mm.utils.settings import check_whole

Pyramid = tuple[Tensor, ...]
"""Feature maps of strides 4, 8, 16, 32: (C, H / stride, W / stride), with batch axis (B, ...)."""

Captions = Sequence[str | None] | None
"""Caption of every image or tile, None if unknown."""

STRIDES = (4, 8, 16, 32)  # of a pyramid
MAX_STRIDE = STRIDES[-1]

TileFeatures = Callable[[Tensor, tuple[int, int], Captions], Pyramid]
"""Function of tiles (N, 3, S, S), tile size in the image and N captions; returns N tiles' maps."""


def check_sizes(tile_size: int | None, tile_divisor: int, preprocessor: Any) -> None:
    """Check that the sizes of tiles and padding are divisible by the strides.

    Args:
        tile_size: tile size of the segmentor.
        tile_divisor: the backbone needs tiles whose edges are multiples of this.
        preprocessor: the data preprocessor, which may have a ``pad_size_divisor``.

    Raises:
        ConfigError: a size is not divisible.
    """
    divisor = math.lcm(MAX_STRIDE, tile_divisor)
    if tile_size is not None and tile_size % divisor:
        raise ConfigError(
            f"tile_size={tile_size} must be a multiple of {divisor}, or None for whole images"
        )
    needed = divisor if tile_size is None else MAX_STRIDE
    padding = getattr(preprocessor, "pad_size_divisor", needed)
    check_whole("data_preprocessor.pad_size_divisor", padding)
    if padding % needed:
        raise ConfigError(
            f"data_preprocessor.pad_size_divisor={padding} must be a multiple of {needed}"
        )


def check_pyramid(strides: Sequence[int], tile_size: int | None) -> None:
    """Check that a model without a neck, which would resize the maps, has a pyramid.

    Args:
        strides: strides of the backbone.
        tile_size: tile size of the segmentor.

    Raises:
        ConfigError: the strides are not 4, 8, 16, 32, or images are cut into tiles.
    """
    if tile_size is not None:
        raise ConfigError(
            f"tile_size={tile_size} with model.neck=None: set tile_size=None, as only a neck fits "
            "the maps of tiles together"
        )
    if tuple(strides) != STRIDES:
        raise ConfigError(
            f"model.neck=None needs a backbone with strides {STRIDES}, not {tuple(strides)}: add "
            "neck=dict(type='FeatureProjection'), or choose other out_indices"
        )


def tiled_pyramids(
    images: Sequence[Tensor],
    captions: Captions,
    tile_features: TileFeatures,
    tile_size: int | None,
    max_tiles_per_batch: int,
) -> list[Pyramid]:
    """Cut padded images into tiles, run these in batches, and join the maps of every image.

    Args:
        images: padded images, each (3, H, W) in [0, 1].
        captions: captions of the images; None if unknown.
        tile_features: function that computes the feature maps of a batch of tiles.
        tile_size: see :meth:`TileGrid.of`.
        max_tiles_per_batch: number of tiles, of one or several images, in a batch.

    Returns:
        The pyramid of every image.
    """
    grids = [TileGrid.of(tuple(image.shape[-2:]), tile_size) for image in images]
    pyramids: list[Pyramid] = [()] * len(images)
    for members in groups_of_equal([grid.tile for grid in grids]):
        tiles = torch.cat([grids[i].cut(images[i]) for i in members])
        known = [captions[i] if captions else None for i in members for _ in range(len(grids[i]))]
        step = max_tiles_per_batch
        batches = [
            tile_features(
                tiles[first : first + step],
                grids[members[0]].tile,
                known[first : first + step],
            )
            for first in range(0, len(tiles), step)
        ]
        levels = [torch.cat(level) for level in zip(*batches, strict=True)]
        counts = [len(grids[i]) for i in members]
        per_image = zip(*(level.split(counts) for level in levels), strict=True)
        for i, maps in zip(members, per_image, strict=True):
            pyramids[i] = tuple(grids[i].join(level) for level in maps)
    return pyramids


def stack_pyramids(pyramids: Sequence[Pyramid]) -> Pyramid:
    """Stack the pyramids of several images along a new batch axis; one image is not copied."""
    if len(pyramids) == 1:
        return tuple(level[None] for level in pyramids[0])
    return tuple(torch.stack(level) for level in zip(*pyramids, strict=True))


def groups_of_equal(keys: Sequence[Any]) -> list[list[int]]:
    """Group the indices of equal keys, in order of first occurrence."""
    if len(keys) == 1:  # the key may be symbols, which cannot be compared
        return [[0]]
    groups: dict[Any, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(tuple(key), []).append(index)
    return list(groups.values())
