"""Scenes of the toy world: images with labels and captions.

:func:`scene` makes a scene from a seed. The same seed gives the same bytes in any process and
order.

A scene is composed (:mod:`projects.toy_world.plan`), drawn (:func:`render`) and described
(:mod:`projects.toy_world.captions`). Each step has separate random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from projects.toy_world import captions, drawing
from projects.toy_world.drawing import SIZE
from projects.toy_world.names import Name
from projects.toy_world.plan import Plan, compose, with_new_names

Split = Literal["web", "train", "val"]
SPLITS: tuple[str, ...] = get_args(Split)
NUM_CAPTIONS = 5
NOVEL_SHARE = 0.15
"""Probability of a novel name for each thing of a training image except the first."""


@dataclass(frozen=True)
class Segment:
    """Visible segment of a scene.

    Attributes:
        id: Id in the scene's panoptic map, from 1.
        name: Class of the segment.
        area: Number of pixels.
        box: x, y, width, height in pixels.
    """

    id: int
    name: Name
    area: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """Image with labels and captions.

    Attributes:
        image: (SIZE, SIZE, 3) uint8, RGB.
        panoptic: (SIZE, SIZE) int32 segment ids; 0: not labeled.
        segments: Segments of the map, stuff first, then things from back to front.
        captions: ``NUM_CAPTIONS`` sentences.
    """

    image: np.ndarray
    panoptic: np.ndarray
    segments: tuple[Segment, ...]
    captions: tuple[str, ...]


def scene(
    seed: int | Sequence[int],
    split: Split = "web",
    *,
    novel_in_train: bool = True,
    new_share: float = 0.0,
) -> Scene:
    """Make a scene.

    Args:
        seed: One or several integers from 0.
        split: "web", for pre-training: all names are labeled and used in captions. "val": the same,
            with other scenes. "train", for segmentation: novel names are neither labeled nor used
            in captions.
        novel_in_train: Whether training images show novel things, without labels. Each thing except
            the first is novel with probability ``NOVEL_SHARE``. If False, base things replace them.
        new_share: Probability that a thing or a region of stuff gets one of ``NEW_NAMES``, whose
            shapes, textures and words occur nowhere else; only for "val". The rest of the scene
            stays what it is without.

    Raises:
        ValueError: The split is unknown, a seed is negative, or ``new_share`` is set for another
            split than "val".
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    seeds = [seed] if isinstance(seed, int | np.integer) else list(seed)
    # include the number of seeds, because NumPy treats missing numbers like zeros
    sequence = np.random.SeedSequence([SPLITS.index(split), len(seeds), *seeds])
    plan_rng, render_rng, caption_rng, new_rng = map(np.random.default_rng, sequence.spawn(4))
    train = split == "train"
    plan = compose(plan_rng, NOVEL_SHARE * novel_in_train if train else None)
    if new_share:
        if split != "val":
            raise ValueError(f"new names are for scenes of 'val', not {split!r}")
        plan = with_new_names(plan, new_rng, new_share)
    ids = draw_ids(plan)
    hidden = [i for i, thing in enumerate(plan.things) if train and thing.name.is_novel]
    panoptic, segments = label(plan, ids, hidden)
    known = replace(plan, things=tuple(t for t in plan.things if not (train and t.name.is_novel)))
    return Scene(
        image=render(plan, render_rng),
        panoptic=panoptic,
        segments=segments,
        captions=tuple(captions.tell(known, caption_rng) for _ in range(NUM_CAPTIONS)),
    )


def render(plan: Plan, rng: np.random.Generator, *, effects: bool = True) -> np.ndarray:
    """Draw a plan.

    Args:
        plan: The plan.
        rng: Random numbers of textures, light and noise.
        effects: Whether to draw textures, outlines, light and noise, or only flat colors.

    Returns:
        (SIZE, SIZE, 3) uint8, RGB.
    """
    image = np.empty((3, SIZE, SIZE), np.float32)
    for region in plan.regions:
        flat = drawing.unit(drawing.STUFF_COLORS[str(region.name)])[:, None, None]
        look = flat
        if effects:
            # a replaced region is drawn, too, so that the rest gets the same random numbers
            look = drawing.texture(str(region.instead or region.name), rng)
            if region.instead is not None:
                look = drawing.texture(str(region.name), rng.spawn(1)[0])
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
    """Return (SIZE, SIZE) brightness factors of light from one side."""
    angle, slope = rng.uniform(-np.pi, np.pi), rng.uniform(0.03, 0.16)
    place = np.linspace(-slope, slope, SIZE, dtype=np.float32)
    down = place * np.float32(np.sin(angle)) + np.float32(rng.uniform(0.9, 1.05))
    return down[:, None] + place * np.float32(np.cos(angle))


def draw_ids(plan: Plan) -> np.ndarray:
    """Return the visible part of the plan for every pixel, (SIZE, SIZE).

    Regions are numbered from 0, followed by things.
    """
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
    """Return the panoptic map and its segments.

    Args:
        plan: The plan.
        ids: Result of :func:`draw_ids`.
        hidden: Indices of things in ``plan.things`` that are not labeled.
    """
    parts = [part.name for part in (*plan.regions, *plan.things)]
    out = {len(plan.regions) + i for i in hidden}
    number_of = np.zeros(len(parts), np.int32)
    segments = []
    for i, name in enumerate(parts):
        mask = ids == i
        if i in out or not mask.any():
            continue
        # in the PNG file, the green channel is the category
        number_of[i] = 256 * name.category + i + 1
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1
        segments.append(Segment(int(number_of[i]), name, int(mask.sum()), box))
    return number_of[ids], tuple(segments)
