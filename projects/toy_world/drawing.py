"""Textures of stuff, shapes and patterns of things, drawn with NumPy only.

Colors are float32 from 0 to 1. Images are (3, height, width), because NumPy is fastest on whole
planes. A shape is an approximate signed distance to its outline, negative inside, as a function of
the thing's coordinates (size 1, y points down).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

SIZE = 128
_SAMPLES = 3  # per pixel in each direction

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 38),
    "yellow": (250, 208, 24),
    "green": (16, 148, 60),
    "blue": (34, 72, 214),
    "purple": (142, 40, 172),
    "white": (246, 246, 246),
    "black": (28, 28, 32),
}
STUFF_COLORS: dict[str, tuple[int, int, int]] = {
    "sky": (160, 203, 238),
    "grass": (140, 168, 84),
    "water": (70, 136, 150),
    "sand": (222, 200, 150),
    "snow": (226, 232, 240),
    "brick wall": (166, 98, 78),
    "wood": (156, 110, 70),
    "gravel": (138, 138, 136),
    "tiles": (122, 182, 170),
    "lava": (84, 34, 26),
    "carpet": (170, 120, 150),
}
PATTERN_COLOR = (246, 246, 246)
RIM = 1.4  # width of the dark outline in pixels
_RIM_SHADE = 0.45

_PLACE = ((np.arange(SIZE) + 0.5) / SIZE).astype(np.float32)  # relative positions of pixels


def unit(color: tuple[int, int, int]) -> np.ndarray:
    """Convert a color of the tables to (3,) float32."""
    return np.array(color, np.float32) / 255


# --- textures -----------------------------------------------------------------------------------


@cache
def _steps(cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for every pixel, the neighboring grid points and the smoothed position between."""
    place = (np.arange(SIZE, dtype=np.float32) + 0.5) * np.float32(cells / SIZE)
    before = place.astype(np.int64)
    part = place - before
    return before, before + 1, part * part * (3 - 2 * part)


def smooth_noise(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Return (SIZE, SIZE) noise with about ``rows`` x ``columns`` bumps and a deviation below 1."""
    grid = rng.standard_normal((rows + 1, columns + 1), dtype=np.float32)
    above, below, part = _steps(rows)
    lines = grid[above] + (grid[below] - grid[above]) * part[:, None]
    left, right, part = _steps(columns)
    return lines[:, left] + (lines[:, right] - lines[:, left]) * part


def _sky(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    clouds = np.clip(smooth_noise(rng, 9, 4) - 0.35, 0, 1) * np.float32(rng.uniform(0.0, 0.55))
    shade = (_PLACE - 0.4) * np.float32(0.12)
    return _mix(base + shade[:, None], np.float32(0.98), clouds)


def _grass(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    blades = smooth_noise(rng, 26, 84) * np.float32(0.085)
    patches = smooth_noise(rng, 7, 7) * np.float32(0.03)
    look = base + blades
    look[0] += patches
    return look


def _water(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    waves = smooth_noise(rng, 34, 6)
    glints = np.clip(waves - 1, 0, 0.5)
    return base + (waves * np.float32(0.05) + glints * np.float32(0.4))


def _sand(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    bend = smooth_noise(rng, 6, 4) * np.float32(5 / SIZE)
    ripples = np.sin((_PLACE[:, None] + bend) * np.float32(2 * np.pi * SIZE / rng.uniform(9, 13)))
    return base + (ripples * np.float32(0.035) + grain(rng, (SIZE, SIZE)) * np.float32(0.03))


def _snow(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    look = base + smooth_noise(rng, 7, 4) * np.float32(0.035)
    look[2] += np.float32(0.01)
    return look


def _bricks(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    height, width = rng.uniform(9, 12), rng.uniform(20, 25)
    course, above = _cells(height, rng)
    which, beside = np.stack([_cells(width, rng) for _ in range(2)], axis=1)  # odd, even courses
    which = which.astype(np.int64)
    shades = rng.normal(0, 0.045, (course.max() + 1, which.max() + 1)).astype(np.float32)
    odd = course % 2
    bricks = base + shades[course[:, None], which[odd]]
    seam = np.minimum(above[:, None], beside[odd])
    joints = np.array([0.78, 0.75, 0.71], np.float32)[:, None, None]
    return _mix(bricks, joints, np.clip(1.4 - seam, 0, 1))


def _wood(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    plank, seam = _cells(rng.uniform(14, 20), rng)
    shades = rng.normal(0, 0.035, plank.max() + 1).astype(np.float32)[plank]
    shades -= np.clip(1.2 - seam, 0, 1) * np.float32(0.3)
    return base + (smooth_noise(rng, 60, 5) * np.float32(0.045) + shades[:, None])


def _gravel(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    stones = np.clip(smooth_noise(rng, 30, 30) * 2, -1, 1)
    return base + stones * np.float32(0.11)


def _tiles(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    side = rng.uniform(11, 15)
    (column, x), (row, y) = _cells(side, rng), _cells(side, rng)
    dark = (row[:, None] + column) % 2
    joints = np.clip(1.2 - np.minimum(y[:, None], x), 0, 1) * np.float32(0.2)
    return base + (np.float32(0.04) - dark.astype(np.float32) * np.float32(0.1) - joints)


def _lava(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    veins = np.clip(1 - np.abs(smooth_noise(rng, 12, 12)) * 4, 0, 1)
    return _mix(base, np.array([0.98, 0.5, 0.1], np.float32)[:, None, None], veins)


def _carpet(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    period = np.float32(rng.uniform(10, 14))
    place = _PLACE * np.float32(SIZE)
    bend = np.abs(place / period - np.rint(place / period)) * period  # a zigzag
    lines = np.sin((place[:, None] + bend) * np.float32(2 * np.pi) / (period * np.float32(0.7)))
    return base + lines * np.float32(0.1)


def _cells(length: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return, for every pixel of a row of bricks, its brick and its distance to a joint."""
    place = _PLACE * np.float32(SIZE / length) + np.float32(rng.random())
    which = place.astype(np.int64)
    part = place - which
    return which, np.minimum(part, 1 - part) * np.float32(length)


def grain(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return noise of mean 0 and deviation 1, independent in every pixel.

    Its distribution is triangular, which is fast to draw.
    """
    pair = rng.integers(0, 256, (2, *shape), np.uint8)
    total = pair[0].astype(np.float32) + pair[1]
    return (total - 255) * np.float32(1 / 104.5)


_TEXTURES: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "sky": _sky,
    "grass": _grass,
    "water": _water,
    "sand": _sand,
    "snow": _snow,
    "brick wall": _bricks,
    "wood": _wood,
    "gravel": _gravel,
    "tiles": _tiles,
    "lava": _lava,
    "carpet": _carpet,
}


def texture(stuff: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a random (3, SIZE, SIZE) texture of a kind of stuff."""
    base = unit(STUFF_COLORS[stuff]) + rng.normal(0, 0.012, 3).astype(np.float32)
    return _TEXTURES[stuff](rng, base[:, None, None])


def _mix(below: np.ndarray, above: np.ndarray, share: np.ndarray) -> np.ndarray:
    return below + (above - below) * share


# --- shapes -------------------------------------------------------------------------------------


def _ball(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - np.float32(0.95)


def _box(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.84)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    sides = np.abs(x) * np.float32(0.8660254) - y * np.float32(0.5)
    return np.maximum(sides, y) - np.float32(0.56)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # five-fold symmetry: angle to the nearest tip of the star, then distance to the edge beside it
    angle = np.arctan2(x, -y)
    fifth = np.float32(2 * np.pi / 5)
    angle = np.abs(angle - np.rint(angle / fifth) * fifth)
    radius = np.hypot(x, y)
    tip, notch = 1.12, 0.5
    ax, ay = tip, 0.0
    bx, by = notch * np.cos(np.pi / 5), notch * np.sin(np.pi / 5)
    length = np.hypot(bx - ax, by - ay)
    nx, ny = np.float32((by - ay) / length), np.float32((ax - bx) / length)
    return radius * np.cos(angle) * nx + radius * np.sin(angle) * ny - np.float32(ax * nx)


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - np.float32(0.73)) - np.float32(0.27)


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # a square standing on its corner, with a half disc on each of its upper sides
    x, y = np.abs(x), y - np.float32(0.06)
    half = np.float32(0.58)
    square = (x + np.abs(y)) * np.float32(0.70710678) - half
    center = half * np.float32(0.70710678)
    lobe = np.hypot(x - center, y + center) - half
    return np.minimum(square, lobe)


def _moon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    outer = np.hypot(x, y) - np.float32(1.0)
    bite = np.float32(0.78) - np.hypot(x - np.float32(0.5), y)
    return np.maximum(outer, bite)


def _arrow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    shaft = np.maximum(np.abs(y) - np.float32(0.33), np.abs(x + np.float32(0.45)) - np.float32(0.6))
    flanks = (np.abs(y) + x - np.float32(1.05)) * np.float32(0.70710678)
    head = np.maximum(flanks, np.float32(0.12) - x)
    return np.minimum(shaft, head)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    longer, shorter = np.maximum(x, y), np.minimum(x, y)
    return np.maximum(longer - np.float32(1), shorter - np.float32(0.32))


def _drop(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # a disc below a tip whose sides touch it
    disc = np.hypot(x, y - np.float32(0.35)) - np.float32(0.65)
    sides = np.abs(x) * np.float32(0.85) - (y + np.float32(1.1)) * np.float32(0.39)
    return np.minimum(disc, np.maximum(sides, y - np.float32(0.1)))


def _flower(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    petals = np.float32(0.75) + np.float32(0.3) * np.cos(6 * np.arctan2(y, x))
    return np.hypot(x, y) - petals


def _bowtie(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    slope = np.abs(y) - np.float32(0.85) * x - np.float32(0.08)
    return np.maximum(slope * np.float32(0.76), x - np.float32(0.95))


SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "ball": _ball,
    "box": _box,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "heart": _heart,
    "moon": _moon,
    "arrow": _arrow,
    "cross": _cross,
    "drop": _drop,
    "flower": _flower,
    "bowtie": _bowtie,
}
_REACH = 1.2  # largest distance of any shape from its center


def _is_white(pattern: str, x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    """Return where a pattern is white; ``x``, ``y``, ``period`` are in the thing's coordinates."""
    x, y = x / np.float32(period), y / np.float32(period)
    if pattern == "striped":
        return (x - np.floor(x)) < np.float32(0.45)
    x, y = x - np.rint(x), y - np.rint(y)
    if pattern == "polka-dot":
        return x * x + y * y < np.float32(0.31**2)
    if pattern == "plaid":
        return (np.abs(x) < np.float32(0.16)) | (np.abs(y) < np.float32(0.16))
    raise ValueError(f"unknown pattern {pattern!r}")


@dataclass(frozen=True)
class Stamp:
    """Thing in pixels: the fraction of each pixel in a box that it covers.

    Attributes:
        rows: Rows of the box, inside the image.
        columns: Columns of the box, inside the image.
        cover: (h, w) fraction covered by the thing.
        white: (h, w) fraction covered by the white of its pattern, part of ``cover``.
        rim: (h, w) fraction covered by its outline, part of ``cover``.
    """

    rows: slice
    columns: slice
    cover: np.ndarray
    white: np.ndarray | None
    rim: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """(h, w) bool mask of the pixels that the thing covers by more than half."""
        return self.cover > 0.5


def stamp(
    shape: str,
    pattern: str,
    center: tuple[float, float],
    radius: float,
    angle: float,
    stretch: float = 1.0,
) -> Stamp:
    """Draw the outline, pattern and rim of a thing, without colors.

    Args:
        shape: Key of ``SHAPES``.
        pattern: "striped", "polka-dot", "plaid" or "" for none.
        center: x and y in the image, in pixels.
        radius: Radius in pixels.
        angle: Rotation in radians, clockwise.
        stretch: Factor along the thing's x axis; the y axis shrinks by the same factor.
    """
    reach = _REACH * radius * max(stretch, 1 / stretch)
    (left, right), (top, bottom) = (
        (max(0, int(np.floor(c - reach))), min(SIZE, int(np.ceil(c + reach)) + 1)) for c in center
    )
    n = _SAMPLES
    offsets = (np.arange(n, dtype=np.float32) + 0.5) / n - np.float32(0.5)
    xs, ys = (
        (np.arange(*span, dtype=np.float32)[:, None] + (offsets - np.float32(c))).ravel()
        for span, c in zip(((left, right), (top, bottom)), center, strict=True)
    )
    cos, sin = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
    x = (xs * cos + (ys * sin)[:, None]) / np.float32(stretch)
    y = ((ys * cos)[:, None] - xs * sin) * np.float32(stretch)
    distance = SHAPES[shape](x, y)
    inside = distance < 0
    rim = inside & (distance > np.float32(-RIM / radius))
    white = None
    if pattern:
        white = _share(inside & _is_white(pattern, x, y, max(9.0, 0.5 * radius) / radius))
    return Stamp(slice(top, bottom), slice(left, right), _share(inside), white, _share(rim))


def _share(samples: np.ndarray) -> np.ndarray:
    """Return the fraction of each pixel's samples that are set."""
    counts = samples.view(np.uint8)
    counts = sum(counts[i::_SAMPLES] for i in range(1, _SAMPLES)) + counts[::_SAMPLES]
    counts = sum(counts[:, i::_SAMPLES] for i in range(1, _SAMPLES)) + counts[:, ::_SAMPLES]
    return counts * np.float32(1 / _SAMPLES**2)


def paint(image: np.ndarray, thing: Stamp, color: np.ndarray, *, rim: bool = True) -> None:
    """Paint a thing over an image, in place.

    Args:
        image: (3, SIZE, SIZE) float32.
        thing: The thing.
        color: (3,) color of the thing.
        rim: Whether to draw its dark outline.
    """
    part = image[:, thing.rows, thing.columns]
    own = color[:, None, None]
    cover, shade = thing.cover, thing.cover
    if rim:
        shade = cover - np.float32(1 - _RIM_SHADE) * thing.rim
    look = own * shade
    if thing.white is not None:
        # the rim darkens color and white by the same factor
        share = thing.white * shade / np.maximum(cover, np.float32(1e-6))
        look += (unit(PATTERN_COLOR)[:, None, None] - own) * share
    part *= 1 - cover
    part += look
