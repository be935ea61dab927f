"""Scenes and regions for pre-training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from projects.toy_world.names import NAMES
from projects.toy_world.streams import (
    GREY,
    CaptionedScenes,
    NamedRegions,
    collate_regions,
    show_region,
)
from projects.toy_world.world import SIZE, scene


def test_captioned_scenes_are_scenes() -> None:
    stream = CaptionedScenes(3, seed=4)
    for i in range(3):
        picture, caption = stream[i]
        made = scene((4, i))
        assert np.array_equal(picture.permute(1, 2, 0).numpy(), made.image)
        assert caption in made.captions
    assert CaptionedScenes(1, size=64)[0][0].shape == (3, 64, 64)
    with pytest.raises(IndexError, match="item 3 of 3"):
        stream[3]


def test_workers_make_no_difference() -> None:
    stream = NamedRegions(8, seed=1, per_scene=2)
    batches = [
        list(DataLoader(stream, 4, num_workers=n, collate_fn=collate_regions)) for n in (0, 2)
    ]
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[2], other[2])
        assert one[1] == other[1] and len(one[1]) == 8
        assert one[0].shape == (8, 3, 64, 64) and one[0].dtype == torch.uint8


def test_regions_have_a_name_of_their_class() -> None:
    stream = NamedRegions(12, seed=2, per_scene=6)
    for i in range(12):
        _, names, labels = stream[i]
        assert all(n in NAMES[k].synonyms for n, k in zip(names, labels.tolist(), strict=True))
        segments = {s.name for s in scene((2, i)).segments}
        assert {NAMES[k] for k in labels.tolist()} <= segments
        assert len(set(labels.tolist())) == min(6, len(segments))  # each before any comes again


def test_regions_of_training_scenes_are_never_novel() -> None:
    stream = NamedRegions(25, per_scene=8, split="train")
    assert not any(NAMES[k].is_novel for i in range(25) for k in stream[i][2].tolist())


def test_modes_show_what_they_say() -> None:
    made = scene((0, 3))
    segment = next(s for s in made.segments if s.name.is_thing)
    mask = made.panoptic == segment.id
    rng = np.random.default_rng(0)
    masked = show_region(made.image, mask, "masked", SIZE, rng)
    assert np.array_equal(masked[mask], made.image[mask]) and (masked[~mask] == GREY).all()
    # a crop of the picture's own size keeps the pixels: find it there
    x, y, width, height = segment.box
    for _ in range(10):
        side = 40 + 10 * int(rng.integers(3))
        crop = show_region(made.image, mask, "crop", side, rng)
        assert crop.shape == (side, side, 3)
        alone = show_region(made.image, mask, "masked_crop", side, rng)
        rows, columns = np.nonzero((alone != GREY).any(-1))
        assert max(np.ptp(rows), np.ptp(columns)) >= side * 0.4  # it fills much of the crop
        area = len(rows) / side**2
        # the whole region is in it: its share of the square box, less the margin
        assert area >= 0.9 * segment.area / (max(width, height, 24) * 1.62) ** 2


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="crop, masked, masked_crop, not 'box'"):
        NamedRegions(1, modes=["crop", "box"])
    made = scene(0)
    with pytest.raises(ValueError, match="without a pixel"):
        show_region(made.image, made.panoptic < 0, "crop", 32, np.random.default_rng(0))
