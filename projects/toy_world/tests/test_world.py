"""Scenes are reproducible, and their images, labels and captions agree."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import ndimage

from odise_mm.datasets.noun_phrases import NounPhrases, load_tagger
from projects.toy_world import drawing, world
from projects.toy_world.captions import plural, split_words, words
from projects.toy_world.names import BASE_THINGS, NAMES, NEW_NAMES, NOVEL_THINGS, THINGS
from projects.toy_world.plan import Plan, compose
from projects.toy_world.world import NUM_CAPTIONS, SIZE, Scene, scene

ERODED = np.ones((3, 3), bool)


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    return [compose(np.random.default_rng(i)) for i in range(60)]


@pytest.fixture(scope="module")
def training_scenes() -> list[Scene]:
    return [scene((3, i), "train") for i in range(150)]


def same(one: Scene, other: Scene) -> bool:
    return (
        one.image.tobytes() == other.image.tobytes()
        and one.panoptic.tobytes() == other.panoptic.tobytes()
        and (one.segments, one.captions) == (other.segments, other.captions)
    )


def test_scenes_depend_only_on_the_seed() -> None:
    first = scene((1, 7))
    np.random.seed(0)  # global random numbers make no difference
    np.random.random(100)
    assert same(first, scene((1, 7)))
    others = [scene((1, 8)), scene((2, 7)), scene((1, 7, 0)), scene((1, 7), "val"), scene(1)]
    assert not any(same(first, other) for other in others)


def test_scene_has_the_documented_parts(plans: list[Plan]) -> None:
    for plan in plans:
        assert 1 <= len(plan.regions) <= 3 and 1 <= len(plan.things) <= 5
        assert len({region.name for region in plan.regions}) == len(plan.regions)
    assert {len(plan.regions) for plan in plans} == {1, 2, 3}
    assert {len(plan.things) for plan in plans} == {1, 2, 3, 4, 5}
    made = scene(4)
    assert made.image.shape == (SIZE, SIZE, 3) and made.image.dtype == np.uint8
    assert made.panoptic.shape == (SIZE, SIZE) and len(made.captions) == NUM_CAPTIONS


def test_segments_describe_the_map() -> None:
    for i in range(40):
        made = scene((9, i))
        assert set(np.unique(made.panoptic)) == {s.id for s in made.segments}  # nothing is void
        for s in made.segments:
            rows, columns = np.nonzero(made.panoptic == s.id)
            assert s.area == len(rows)
            x, y, width, height = s.box
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width - 1, y + height - 1) == (columns.max(), rows.max())


def test_masks_equal_the_pixels_of_their_color(plans: list[Plan]) -> None:
    """Without effects, exactly the pixels in a thing's mask have its colors."""
    white = np.round(drawing.unit(drawing.PATTERN_COLOR) * 255)
    for plan in plans:
        image = world.render(plan, np.random.default_rng(0), effects=False).astype(float)
        ids = world.draw_ids(plan)
        for i, thing in enumerate(plan.things, len(plan.regions)):
            mask = ids == i
            inner = ndimage.binary_erosion(mask, ERODED)
            own = np.round(thing.color * 255)
            # at borders of the pattern, colors are mixtures of the two
            step = white - own
            along = np.clip((image - own) @ step / (step @ step), 0, 1)
            off = np.abs(image - own - along[..., None] * step).max(-1)
            assert (off[inner] <= 1).all()
            if not thing.name.pattern:
                plain = np.abs(image - own).max(-1) <= 1
                assert plain[inner].all()
                assert not (plain & ~ndimage.binary_dilation(mask, ERODED)).any() or any(
                    np.abs(np.round(other.color * 255) - own).max() <= 1
                    for other in plan.things
                    if other is not thing
                )


def test_a_thing_changes_only_the_pixels_of_its_mask(plans: list[Plan]) -> None:
    """With effects, removing the front thing changes only its visible pixels."""
    for plan in plans[:40]:
        without = Plan(plan.regions, plan.things[:-1])
        images = [world.render(p, np.random.default_rng(5)).astype(int) for p in (plan, without)]
        changed = np.abs(images[0] - images[1]).max(-1) > 0
        mask = world.draw_ids(plan) == len(plan.regions) + len(plan.things) - 1
        # a sharp tip covers less than half of its last pixels
        assert not changed[~ndimage.binary_dilation(mask, ERODED, 5)].any()
        assert changed[~ndimage.binary_dilation(mask, ERODED)].sum() < 0.02 * mask.sum()
        assert changed[mask].mean() > 0.97  # a pixel may have the color of what it covers


def test_colors_are_recognizable_with_effects(plans: list[Plan]) -> None:
    """The median color of a plain thing is closest to the color of its name."""
    names = list(drawing.COLORS)
    table = np.array([drawing.COLORS[name] for name in names], float)
    right = total = 0
    for i, plan in enumerate(plans):
        image = world.render(plan, np.random.default_rng(i))
        ids = world.draw_ids(plan)
        for k, thing in enumerate(plan.things, len(plan.regions)):
            if not thing.name.pattern:
                color = np.median(image[ids == k], axis=0)
                nearest = names[np.abs(table - color).sum(-1).argmin()]
                right, total = right + (nearest == thing.name.color), total + 1
    assert total > 80 and right == total


def test_new_names_change_only_what_they_replace() -> None:
    assert not set(words()) >= {word for name in NEW_NAMES for word in split_words(str(name))}
    assert [name.category for name in NEW_NAMES] == list(range(len(NAMES) + 1, len(NAMES) + 16))
    drawn, untouched = set(), 0
    for i in range(60):
        before, made = scene((2, i), "val"), scene((2, i), "val", new_share=0.4)
        assert same(before, scene((2, i), "val", new_share=1e-12))  # none is replaced
        new = [s for s in made.segments if s.name in NEW_NAMES]
        drawn |= {s.name for s in new}
        assert not any(s.name in NEW_NAMES for s in before.segments)
        replaced = [s.id for s in before.segments if s.id not in {t.id for t in made.segments}]
        changed = np.isin(made.panoptic, [s.id for s in new]) | np.isin(before.panoptic, replaced)
        rest = ~ndimage.binary_dilation(changed, ERODED, 3)
        untouched += rest.sum()
        np.testing.assert_array_equal(made.image[rest], before.image[rest])
        np.testing.assert_array_equal(made.panoptic[rest], before.panoptic[rest])
    assert drawn == set(NEW_NAMES) and untouched > 10 * SIZE**2
    with pytest.raises(ValueError, match="new names are for scenes of 'val', not 'train'"):
        scene(0, "train", new_share=0.1)


@pytest.mark.parametrize("shape", drawing.SHAPES)
def test_stamp_covers_the_area_of_its_shape(shape: str) -> None:
    """Compare with the area on a fine grid, for several angles."""
    y, x = np.mgrid[-1.2:1.2:961j, -1.2:1.2:961j]
    area = (drawing.SHAPES[shape](x, y) < 0).sum() * (2.4 / 960) ** 2
    for angle in (0.3, 0.7, 2.1):
        drawn = drawing.stamp(shape, "", (64.3, 63.6), 25.0, angle)
        assert drawn.cover.sum() == pytest.approx(area * 25**2, rel=0.01)
        assert drawn.mask.sum() == pytest.approx(area * 25**2, rel=0.03)


def test_visible_areas_are_large_enough(plans: list[Plan]) -> None:
    for plan in plans:
        ids = world.draw_ids(plan)
        for i, thing in enumerate(plan.things, len(plan.regions)):
            assert (ids == i).sum() >= 90
            assert (ids == i).sum() >= 0.6 * thing.stamp.mask.sum()
        for i in range(len(plan.regions)):
            assert (ids == i).sum() >= 180


def test_training_scenes_show_novel_things_without_labels_or_captions(
    training_scenes: list[Scene],
) -> None:
    novel = {text for name in NOVEL_THINGS for text in name.synonyms}
    novel |= {plural(text) for text in novel}
    assert not any(s.name.is_novel for made in training_scenes for s in made.segments)
    for made in training_scenes:
        for caption in made.captions:
            text = f" {' '.join(split_words(caption))} "
            assert not any(f" {name} " in text for name in novel), caption
    void = [(made.panoptic == 0).any() for made in training_scenes]
    assert 0.15 < np.mean(void) < 0.45
    without = [scene((3, i), "train", novel_in_train=False) for i in range(50)]
    assert not any((made.panoptic == 0).any() for made in without)


def test_layout_does_not_depend_on_novel_things() -> None:
    """``novel_in_train`` changes only novel things, not the layout."""
    pairs = [[scene((8, i), "train", novel_in_train=b) for b in (True, False)] for i in range(40)]
    stuff = [
        [[s.name for s in made.segments if not s.name.is_thing] for made in pair] for pair in pairs
    ]
    assert all(one == other for one, other in stuff)
    untouched = [a for a, b in pairs if not (a.panoptic == 0).any() and same(a, b)]
    assert len(untouched) >= 15


def test_other_splits_have_all_names() -> None:
    seen = {s.name for i in range(400) for s in scene((6, i), "val").segments}
    assert seen == set(NAMES)


def test_noun_phrases_of_captions_contain_all_names() -> None:
    extract = NounPhrases(tagger=load_tagger("textblob"))  # the one that is always installed
    texts = {text for name in NAMES for text in name.synonyms}
    texts |= {plural(text) for name in THINGS for text in name.synonyms}
    # names in a caption, found by text: the longest at every position
    names = re.compile("|".join(sorted(map(re.escape, texts), key=len, reverse=True)))
    extra, total = 0, 0
    known = set(words())
    for i in range(80):
        made = scene((2, i))
        for caption in made.captions:
            assert set(split_words(caption)) <= known
            mentioned = set(names.findall(caption.lower()))
            found = set(extract(caption))
            assert mentioned and mentioned <= found, caption
            extra, total = extra + len(found - mentioned), total + len(found)
    assert extra < 0.1 * total  # such as "top left"


def test_captions_name_some_of_the_segments() -> None:
    of_text = {text: name for name in NAMES for text in name.synonyms}
    of_text |= {plural(text): name for name in THINGS for text in name.synonyms}
    names = re.compile("|".join(sorted(map(re.escape, of_text), key=len, reverse=True)))
    mentioned = present = synonyms = 0
    numbers = set()
    for i in range(80):
        made = scene((12, i))
        in_scene = {s.name for s in made.segments}
        for caption in made.captions:
            found = [of_text[text] for text in names.findall(caption.lower())]
            assert set(found) <= in_scene, caption
            mentioned, present = mentioned + len(set(found)), present + len(in_scene)
            numbers |= {"two", "three"} & set(split_words(caption))
            synonyms += any(t != str(of_text[t]) for t in names.findall(caption.lower()))
    assert 0.5 < mentioned / present < 0.9
    assert "two" in numbers and synonyms > 50
    assert len({len(set(scene((12, i)).captions)) for i in range(10)} - {1}) > 0


def test_number_words() -> None:
    """If a caption says "two red stars", the scene has two of them."""
    counted = 0
    for i in range(120):
        made = scene((14, i))
        for caption in made.captions:
            for number, count in (("two", 2), ("three", 3)):
                for name in BASE_THINGS + NOVEL_THINGS:
                    if any(f"{number} {plural(t)}" in caption.lower() for t in name.synonyms):
                        assert sum(s.name == name for s in made.segments) == count
                        counted += 1
    assert counted > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1, 2), "test"), "split must be one of web, train, val, not 'test'"),
        ((-1,), "non-negative|negative"),
    ],
)
def test_wrong_arguments_raise(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scene(*arguments)
