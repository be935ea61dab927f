"""Tests that tiles cover the image and that overlapping features are averaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from odise_mm.models.segmentors.tiling import TileGrid, tile_starts


@pytest.mark.parametrize(
    ("length", "side", "starts"),
    [
        (512, 512, [0]),
        (1024, 512, [0, 512]),
        (576, 512, [0, 64]),
        (1365, 512, [0, 512, 853]),
        (1088, 512, [0, 512, 576]),
        (64, 64, [0]),
    ],
)
def test_last_tile_ends_at_the_border(length: int, side: int, starts: list[int]) -> None:
    assert tile_starts(length, side) == starts


@pytest.mark.parametrize(
    ("image", "tile", "count"),
    [
        ((512, 704), (512, 512), 2),
        ((1024, 1408), (512, 512), 6),
        ((128, 640), (128, 128), 5),
        ((64, 64), (64, 64), 1),
        ((2560, 64), (64, 64), 40),
    ],
)
def test_tiles_are_square_and_cover_the_image(image, tile, count) -> None:
    grid = TileGrid.of(image, 512)
    assert grid.tile == tile and len(grid) == count
    covered = np.zeros(image, bool)
    for y, x in grid.boxes:
        assert y >= 0 and x >= 0 and y + tile[0] <= image[0] and x + tile[1] <= image[1]
        covered[y : y + tile[0], x : x + tile[1]] = True
    assert covered.all()


@pytest.mark.parametrize("image", [(128, 128), (128, 192), (192, 256), (320, 192)])
@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_join_averages_overlaps(image: tuple[int, int], stride: int) -> None:
    grid = TileGrid.of(image, 128)
    edge = 128 // stride
    tiles = torch.randn(len(grid), 3, edge, edge, generator=torch.Generator().manual_seed(0))
    joined = grid.join(tiles).numpy()
    height, width = image[0] // stride, image[1] // stride
    assert joined.shape == (3, height, width)
    for y in range(height):
        for x in range(width):
            found = [
                tiles[i, :, y - top // stride, x - left // stride].numpy()
                for i, (top, left) in enumerate(grid.boxes)
                if 0 <= y - top // stride < edge and 0 <= x - left // stride < edge
            ]
            np.testing.assert_allclose(joined[:, y, x], np.mean(found, axis=0), atol=1e-6)


def test_joining_tiles_restores_the_image() -> None:
    image = torch.rand(3, 192, 320)
    grid = TileGrid.of((192, 320), 128)
    torch.testing.assert_close(grid.join(grid.cut(image)), image)


def test_small_tiles_are_enlarged_bicubically_without_antialias() -> None:
    image = torch.rand(3, 64, 128)
    tiles = TileGrid.of((64, 128), 96).cut(image)
    for tile, left in zip(tiles, (0, 64), strict=True):
        part = image[None, :, :, left : left + 64]
        wanted = resize(part, [96, 96], InterpolationMode.BICUBIC, antialias=False)[0]
        torch.testing.assert_close(tile, wanted, atol=1e-5, rtol=0)


def test_whole_image_for_backbones_of_any_shape() -> None:
    image = torch.rand(3, 64, 192)
    grid = TileGrid.of((64, 192), None)
    assert len(grid) == 1 and torch.equal(grid.cut(image)[0], image)
    features = torch.rand(1, 5, 4, 12)
    assert torch.equal(grid.join(features), features[0])
