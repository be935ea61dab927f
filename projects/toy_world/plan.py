"""Plans of scenes: positions of regions and things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from projects.toy_world import drawing
from projects.toy_world.drawing import SIZE
from projects.toy_world.names import (
    BASE_THINGS,
    NEW_STUFFS,
    NEW_THINGS,
    NOVEL_THINGS,
    STUFFS,
    THINGS,
    Name,
)

_COUNTS = (0.18, 0.26, 0.26, 0.18, 0.12)  # probabilities of 1 to 5 things
_REPEAT = 0.15  # probability that a thing has the name of the previous one
_RADII = (14.0, 30.0)  # range of radii of things, in pixels
_THIN = ("star", "ring", "moon", "arrow")  # drawn a sixth larger to make the shape recognizable
_TRIES = 12
_MIN_SEEN = 0.6  # smallest visible fraction of a thing's pixels inside the image
_MIN_AREA = 90  # smallest visible area of a thing, in pixels
_CONTRAST = 0.13  # smallest difference to the stuff behind, in the channel that differs most
_GROUNDS = ("grass", "sand", "snow", "gravel", "wood", "water")
_BACKS = ("sky", "sky", "sky", "brick wall", "wood")
_STRAIGHT = ("brick wall", "wood")  # built by people, so with straight borders


@dataclass(frozen=True)
class Region:
    """Region of stuff; ``cover`` is (SIZE, SIZE) from 0 to 1, or None for the whole image.

    ``instead`` is the name that a new name replaced.
    """

    name: Name
    cover: np.ndarray | None
    instead: Name | None = None


@dataclass(frozen=True)
class Thing:
    """Thing in a plan: name, position and radius in pixels, covered pixels, and (3,) color."""

    name: Name
    x: float
    y: float
    radius: float
    stamp: drawing.Stamp
    color: np.ndarray


@dataclass(frozen=True)
class Plan:
    """Regions and things of a scene, each from back to front; things cover regions."""

    regions: tuple[Region, ...]
    things: tuple[Thing, ...]


def compose(rng: np.random.Generator, novel_share: float | None = None) -> Plan:
    """Compose a random plan.

    Args:
        rng: Random numbers of the plan.
        novel_share: Probability of a novel name for each thing except the first, which always has a
            base name. Afterwards, some things take the name of the previous one. None: all names
            are equally probable.
    """
    regions = _lay_out(rng)
    behind = np.zeros((SIZE, SIZE), np.int64)
    for i, region in enumerate(regions):
        if region.cover is not None:
            behind[region.cover > 0.5] = i
    spots: list[tuple[float, float, float]] = []  # x, y, radius
    things: list[Thing] = []
    seen: list[np.ndarray] = []  # visible pixels of every thing so far
    ground = behind.copy()  # visible region of every pixel; -1: covered by a thing
    wanted = 1 + rng.choice(len(_COUNTS), p=_COUNTS)
    tried = 0
    while tried < wanted or not things:  # a thing without a free place is left out
        tried += 1
        name = _draw_name(rng, novel_share if things else novel_share and 0.0)
        if things and rng.random() < _REPEAT:
            name = things[-1].name
        color = _draw_color(rng, name)
        scale = (1.0 if wanted < 4 else 0.85) * (1 + (name.shape in _THIN) / 6)
        for _ in range(_TRIES):
            x, y, radius = _spot(rng, scale)
            if any(np.hypot(x - u, y - v) < 0.8 * max(radius, r) for u, v, r in spots):
                continue
            if not _stands_out(color, regions[behind[int(y), int(x)]].name):
                continue
            thing = Thing(name, x, y, radius, _stamp(rng, name, x, y, radius), color)
            after = _cover_up(thing, things, seen, ground, len(regions))
            if after is not None:
                seen, ground = after
                things.append(thing)
                spots.append((x, y, radius))
                break
    return Plan(regions, tuple(things))


def with_new_names(plan: Plan, rng: np.random.Generator, share: float) -> Plan:
    """Replace some of the names of a plan by new ones. Everything keeps its place and its size.

    Args:
        plan: The plan.
        rng: Random numbers of the new names.
        share: Probability that a thing or region is replaced. A new thing that would not stand out
            from the stuff behind it is not.
    """
    regions = list(plan.regions)
    for i, region in enumerate(regions):
        left = [name for name in NEW_STUFFS if name not in [other.name for other in regions]]
        name = left[rng.integers(len(left))]
        if rng.random() < share:
            regions[i] = Region(name, region.cover, instead=region.name)
    things = []
    for thing in plan.things:
        name = NEW_THINGS[rng.integers(len(NEW_THINGS))]
        color = _draw_color(rng, name)
        stamp = _stamp(rng, name, thing.x, thing.y, thing.radius)
        column, row = int(thing.x), int(thing.y)
        behind = [r.name for r in regions if r.cover is None or r.cover[row, column] > 0.5][-1]
        if rng.random() < share and _stands_out(color, behind):
            thing = replace(thing, name=name, stamp=stamp, color=color)
        things.append(thing)
    return Plan(tuple(regions), tuple(things))


def _lay_out(rng: np.random.Generator) -> tuple[Region, ...]:
    """Lay out one to three regions: one kind, a horizon, two horizons, or a horizon and a pond."""
    kind = rng.random()
    if kind < 0.2:
        names = [_pick(rng, (*_GROUNDS, "brick wall"))]
        covers: list[np.ndarray | None] = [None]
        horizon = 0.0
    else:
        names = [_pick(rng, _BACKS)]
        names.append(_pick(rng, [g for g in _GROUNDS if g not in names]))
        horizon = float(rng.uniform(0.28, 0.62))
        covers = [None, _below(rng, horizon, straight=_is_built(names))]
    if 0.55 < kind < 0.8:  # a strip between back and ground
        middle = _pick(rng, [n for n in (*_GROUNDS, "brick wall") if n not in names])
        height = float(rng.uniform(0.16, 0.24))
        names.append(names[1])
        names[1] = middle
        straight = _is_built(names[1:])
        covers = [None, _below(rng, horizon - height / 2, straight=_is_built(names[:2]))]
        covers.append(np.minimum(covers[1], _below(rng, horizon + height / 2, straight=straight)))
    elif kind >= 0.8 or kind < 0.06:  # a pond, or a patch of another kind
        others = [n for n in ("water", "sand", "gravel", "grass", "snow") if n not in names]
        names.append(_pick(rng, others))
        patch = _patch(rng, horizon)
        covers.append(patch if horizon == 0 else np.minimum(covers[1], patch))
    table = {str(name): name for name in STUFFS}
    return tuple(Region(table[n], cover) for n, cover in zip(names, covers, strict=True))


def _pick(rng: np.random.Generator, texts: Sequence[str]) -> str:
    return texts[rng.integers(len(texts))]


def _is_built(names: Sequence[str]) -> bool:
    return any(name in _STRAIGHT for name in names)


def _below(rng: np.random.Generator, height: float, *, straight: bool) -> np.ndarray:
    """Return the cover below a line across the image; ``height``: its position, 0 is the top."""
    x = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    line = height + (0 if straight else rng.uniform(-0.07, 0.07)) * (x - 0.5)
    waves = rng.uniform([0, 0, 0], [0.03, 0.015, 0.008]), rng.uniform(0, 2 * np.pi, 3)
    if not straight:
        for high, phase, turns in zip(*waves, (1, 2.6, 5.4), strict=True):
            line = line + high * np.sin(2 * np.pi * turns * x + phase)
    rows = np.arange(SIZE, dtype=np.float32)[:, None] + 0.5
    return np.clip(rows - (line * SIZE).astype(np.float32) + 0.5, 0, 1)


def _patch(rng: np.random.Generator, horizon: float) -> np.ndarray:
    """Return the cover of an irregular ellipse below the horizon."""
    depth = 1 - horizon
    cx, cy = rng.uniform(0.25, 0.75), horizon + depth * rng.uniform(0.45, 0.65)
    rx, ry = rng.uniform(0.26, 0.42), depth * rng.uniform(0.24, 0.36)
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float32) / SIZE
    x, y = (columns - np.float32(cx)) / np.float32(rx), (rows - np.float32(cy)) / np.float32(ry)
    angle = np.arctan2(y, x)
    edge = np.float32(1)
    for turns in (2, 3, 5):
        edge = edge + np.float32(rng.uniform(0, 0.09)) * np.sin(
            turns * angle + np.float32(rng.uniform(0, 2 * np.pi))
        )
    inside = (edge - np.hypot(x, y)) * np.float32(min(rx, ry) * SIZE)
    return np.clip(inside + 0.5, 0, 1)


def _draw_name(rng: np.random.Generator, novel_share: float | None) -> Name:
    """Draw a name.

    With any share, the same number of random numbers is drawn, so that the rest of the scene does
    not depend on it.
    """
    if novel_share is None:
        return THINGS[rng.integers(len(THINGS))]
    base = BASE_THINGS[rng.integers(len(BASE_THINGS))]
    novel = NOVEL_THINGS[rng.integers(len(NOVEL_THINGS))]
    return novel if rng.random() < novel_share else base


def _draw_color(rng: np.random.Generator, name: Name) -> np.ndarray:
    """Return the color of a name with a small random deviation."""
    shade, off = rng.normal(0, 0.02), rng.normal(0, 0.018, 3)
    return np.clip(drawing.unit(drawing.COLORS[name.color]) + shade + off, 0, 1).astype(np.float32)


def _spot(rng: np.random.Generator, scale: float) -> tuple[float, float, float]:
    """Draw x, y and radius, in pixels."""
    radius = float(np.clip(rng.uniform(*_RADII) * scale, *_RADII))
    x, y = rng.uniform(0.1 * SIZE, 0.9 * SIZE, 2).tolist()
    return x, y, radius


def _stamp(
    rng: np.random.Generator, name: Name, x: float, y: float, radius: float
) -> drawing.Stamp:
    # hearts stay roughly upright; other shapes are recognizable at any angle
    angle = rng.uniform(-0.6, 0.6) if name.shape == "heart" else rng.uniform(-np.pi, np.pi)
    stretch = float(np.exp(rng.uniform(-0.1, 0.1)))
    if name.shape in ("ball", "ring"):
        stretch = 1.0
    return drawing.stamp(name.shape, name.pattern, (x, y), radius, angle, stretch)


def _stands_out(color: np.ndarray, behind: Name) -> bool:
    differs = np.abs(color - drawing.unit(drawing.STUFF_COLORS[str(behind)]))
    return bool(differs.max() >= _CONTRAST)


def _cover_up(
    thing: Thing,
    things: Sequence[Thing],
    seen: list[np.ndarray],
    ground: np.ndarray,
    num_regions: int,
) -> tuple[list[np.ndarray], np.ndarray] | None:
    """Return the visible things and regions after adding a thing; None if too little is visible."""
    box = thing.stamp.rows, thing.stamp.columns
    mask = np.zeros((SIZE, SIZE), bool)
    mask[box] = thing.stamp.mask
    # enough of it must be inside the image
    if mask.sum() < 0.6 * _full_area(thing):
        return None
    after = []
    for other, visible in zip(things, seen, strict=True):
        left = visible & ~mask
        if left.sum() < max(_MIN_AREA, _MIN_SEEN * other.stamp.mask.sum()):
            return None
        after.append(left)
    ground = np.where(mask, -1, ground)
    if np.bincount(ground[ground >= 0], minlength=num_regions).min() < 2 * _MIN_AREA:
        return None
    return [*after, mask], ground


_UNIT_AREAS = {
    shape: float((draw(*np.mgrid[-1.2:1.2:240j, -1.2:1.2:240j][::-1]) < 0).mean() * 2.4**2)
    for shape, draw in drawing.SHAPES.items()
}


def _full_area(thing: Thing) -> float:
    """Return the area of the complete thing, also outside the image, in pixels."""
    return _UNIT_AREAS[thing.name.shape] * thing.radius**2
