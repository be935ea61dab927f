"""Regions of scenes as separate images."""

from __future__ import annotations

import numpy as np
import pytest

from projects.toy_world.pretraining.regions import GRAY, show_region
from projects.toy_world.world import SIZE, scene


def test_modes_show_the_region() -> None:
    made = scene((0, 3))
    segment = next(s for s in made.segments if s.name.is_thing)
    mask = made.panoptic == segment.id
    rng = np.random.default_rng(0)
    masked = show_region(made.image, mask, "masked", SIZE, rng)
    assert np.array_equal(masked[mask], made.image[mask]) and (masked[~mask] == GRAY).all()
    # crops contain the whole region, and the region fills much of them
    x, y, width, height = segment.box
    for _ in range(10):
        side = 40 + 10 * int(rng.integers(3))
        crop = show_region(made.image, mask, "crop", side, rng)
        assert crop.shape == (side, side, 3)
        alone = show_region(made.image, mask, "masked_crop", side, rng)
        rows, columns = np.nonzero((alone != GRAY).any(-1))
        assert max(np.ptp(rows), np.ptp(columns)) >= side * 0.4  # the region fills much of the crop
        area = len(rows) / side**2
        # the crop contains the whole region: compare with its share of the square box with margin
        assert area >= 0.9 * segment.area / (max(width, height, 24) * 1.62) ** 2


def test_wrong_arguments_raise() -> None:
    made = scene(0)
    with pytest.raises(ValueError, match="crop, masked, masked_crop, not 'box'"):
        show_region(made.image, made.panoptic > 0, "box", 32, np.random.default_rng(0))
    with pytest.raises(ValueError, match="mask of the region is empty"):
        show_region(made.image, made.panoptic < 0, "crop", 32, np.random.default_rng(0))
