"""Scenes of the toy world: composed, drawn, labeled and told in captions.

:func:`scene` is the door: a number in, an image with all that is known of it out. The same number
makes the same scene, to the byte, in whatever process or order.

A scene is first composed (:mod:`projects.toy_world.plan`), then drawn (:func:`render`), then told
(:mod:`projects.toy_world.captions`); each step has random numbers of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from projects.toy_world import captions, drawing
from projects.toy_world.drawing import SIZE
from projects.toy_world.names import Name
from projects.toy_world.plan import Plan, compose

Split = Literal["web", "train", "val"]
SPLITS: tuple[str, ...] = get_args(Split)
NUM_CAPTIONS = 5
NOVEL_SHARE = 0.15
"""Chance that a thing of a training image is drawn from the novel names; the first never is."""


@dataclass(frozen=True)
class Segment:
    """One segment that can be seen.

    Attributes:
        id: its number in the scene's panoptic map, 1 or more.
        name: its class.
        area: pixels.
        box: x, y, width, height in pixels.
    """

    id: int
    name: Name
    area: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """An image and what is known of it.

    Attributes:
        image: (SIZE, SIZE, 3) uint8, RGB.
        panoptic: (SIZE, SIZE) int32 ids of segments; 0 where nothing is labeled.
        segments: those of the map, stuff first, things from back to front.
        captions: ``NUM_CAPTIONS`` sentences.
    """

    image: np.ndarray
    panoptic: np.ndarray
    segments: tuple[Segment, ...]
    captions: tuple[str, ...]


def scene(seed: int | Sequence[int], split: Split = "web", *, novel_in_train: bool = True) -> Scene:
    """Make a scene.

    Args:
        seed: one number or several, none negative; another scene for each.
        split: "web", for pre-training: all names, all labeled and told. "val": the same, other
            scenes. "train", for segmentation: no novel name is labeled or told.
        novel_in_train: whether training images show novel things all the same, unlabeled: each
            thing but the first with a chance of ``NOVEL_SHARE``. Without, base things stand in
            their places.

    Raises:
        ValueError: no such split, or a negative seed.
    """
    if split not in SPLITS:
        raise ValueError(f"split is one of {', '.join(SPLITS)}, not {split!r}")
    seeds = [seed] if isinstance(seed, int | np.integer) else list(seed)
    # numpy takes missing numbers for zeros: how many there are must be one of them
    sequence = np.random.SeedSequence([SPLITS.index(split), len(seeds), *seeds])
    composing, drawn, told = map(np.random.default_rng, sequence.spawn(3))
    train = split == "train"
    plan = compose(composing, NOVEL_SHARE * novel_in_train if train else None)
    ids = draw_ids(plan)
    hidden = [i for i, thing in enumerate(plan.things) if train and thing.name.is_novel]
    panoptic, segments = label(plan, ids, hidden)
    known = replace(plan, things=tuple(t for t in plan.things if not (train and t.name.is_novel)))
    return Scene(
        image=render(plan, drawn),
        panoptic=panoptic,
        segments=segments,
        captions=tuple(captions.tell(known, told) for _ in range(NUM_CAPTIONS)),
    )


def render(plan: Plan, rng: np.random.Generator, *, effects: bool = True) -> np.ndarray:
    """Draw a plan: (SIZE, SIZE, 3) uint8, RGB.

    Args:
        rng: of textures, light and noise.
        effects: False: every region and thing in its colors alone, without texture, outline, light
            and noise.
    """
    image = np.empty((3, SIZE, SIZE), np.float32)
    for region in plan.regions:
        flat = drawing.unit(drawing.STUFF_COLORS[str(region.name)])[:, None, None]
        look = drawing.texture(str(region.name), rng) if effects else flat
        if region.cover is None:
            image[:] = look
        else:
            image += (look - image) * region.cover
    for thing in plan.things:
        drawing.paint(image, thing.stamp, thing.color, rim=effects)
    if effects:
        image *= _light(rng)
        image += drawing.grain(rng, (SIZE, SIZE)) * np.float32(rng.uniform(0.008, 0.025))
    pixels = (np.clip(image, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _light(rng: np.random.Generator) -> np.ndarray:
    """(SIZE, SIZE) factors: brighter from one side."""
    angle, slope = rng.uniform(-np.pi, np.pi), rng.uniform(0.03, 0.16)
    place = np.linspace(-slope, slope, SIZE, dtype=np.float32)
    down = place * np.float32(np.sin(angle)) + np.float32(rng.uniform(0.9, 1.05))
    return down[:, None] + place * np.float32(np.cos(angle))


def draw_ids(plan: Plan) -> np.ndarray:
    """(SIZE, SIZE): which part of the plan is seen, regions from 0, then things."""
    ids = np.zeros((SIZE, SIZE), np.int64)
    for i, region in enumerate(plan.regions):
        if region.cover is not None:
            ids[region.cover > 0.5] = i
    for i, thing in enumerate(plan.things, len(plan.regions)):
        ids[thing.stamp.rows, thing.stamp.columns][thing.stamp.mask] = i
    return ids


def label(
    plan: Plan, ids: np.ndarray, hidden: Sequence[int] = ()
) -> tuple[np.ndarray, tuple[Segment, ...]]:
    """The panoptic map and its segments.

    Args:
        ids: of :func:`draw_ids`.
        hidden: places in ``plan.things`` that get no label.
    """
    parts = [part.name for part in (*plan.regions, *plan.things)]
    out = {len(plan.regions) + i for i in hidden}
    number_of = np.zeros(len(parts), np.int32)
    segments = []
    for i, name in enumerate(parts):
        mask = ids == i
        if i in out or not mask.any():
            continue
        # green says which class it is when somebody looks at the file
        number_of[i] = 256 * name.category + i + 1
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1
        segments.append(Segment(int(number_of[i]), name, int(mask.sum()), box))
    return number_of[ids], tuple(segments)
