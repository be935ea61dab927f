"""Colors of classes: a class has one color in all images of a vocabulary.

Words that name a color ("black heart") and common stuff ("sky", "grass") get that color, so that a
drawing does not contradict its labels. All other names get a color of the palette.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

# Lightness, chroma (CIE LCh) and number of hues of the palette's rings. The mid tones are visible
# on photographs and leave room for lighter and darker shades of a class's instances.
_RINGS = ((64.0, 72.0, 20), (50.0, 58.0, 14), (78.0, 52.0, 14))
# Distances in CIE Lab to keep between two colors; the first that any color satisfies is used.
# Lightness has half the weight, because the photograph under the fill changes it.
_GAPS = (45.0, 34.0, 25.0, 16.0)
_WEIGHTS = np.array([0.5, 1.0, 1.0])
# RGB colors of words. A word for a color or material counts anywhere in a name, others as its last
# word.
_COLOR_WORDS = {
    "red": (205, 50, 45), "crimson": (180, 30, 60), "orange": (235, 130, 35),
    "golden": (222, 175, 55), "gold": (222, 175, 55), "yellow": (238, 210, 50),
    "green": (60, 160, 70), "turquoise": (60, 190, 185), "cyan": (70, 200, 215),
    "blue": (50, 100, 205), "navy": (35, 50, 125), "purple": (130, 65, 175),
    "violet": (130, 65, 175), "pink": (235, 130, 175), "magenta": (205, 50, 160),
    "brown": (130, 85, 50), "beige": (220, 205, 165), "black": (45, 45, 50),
    "gray": (135, 135, 140), "grey": (135, 135, 140), "silver": (180, 185, 190),
    "white": (238, 238, 232), "brick": (165, 85, 65), "bricks": (165, 85, 65),
    "wooden": (165, 115, 65),
}  # fmt: skip
_NATURAL = {
    "sky": (95, 165, 225), "cloud": (195, 210, 225), "clouds": (195, 210, 225),
    "water": (50, 120, 175), "sea": (40, 110, 170), "ocean": (40, 110, 170),
    "lake": (50, 120, 175), "river": (60, 130, 170), "grass": (95, 165, 65),
    "lawn": (95, 165, 65), "tree": (40, 115, 55), "trees": (40, 115, 55),
    "forest": (35, 100, 50), "bush": (70, 130, 60), "plant": (80, 150, 70),
    "vegetation": (50, 120, 55), "sand": (220, 195, 135), "beach": (220, 195, 135),
    "snow": (230, 235, 240), "dirt": (135, 100, 70), "earth": (135, 100, 70),
    "mountain": (125, 110, 100), "rock": (125, 120, 115), "stone": (140, 135, 130),
    "road": (105, 105, 115), "street": (105, 105, 115), "pavement": (165, 160, 155),
    "sidewalk": (165, 160, 155), "gravel": (150, 140, 130), "pebbles": (150, 140, 130),
    "wood": (165, 115, 65), "fire": (235, 95, 30),
}  # fmt: skip
# Variants of such a color (lightness, shift of the hue in degrees) if an earlier class has it.
_VARIANTS = [
    (light, turn) for light in (0, 12, -12, 22, -22) for turn in (0.0, 12.0, -12.0, 24.0, -24.0)
]  # fmt: skip
_SHADES = (0.0, 13.0, -13.0, 22.0, -22.0, 6.5, -6.5)


def _lch_to_lab(lch: np.ndarray) -> np.ndarray:
    hue = np.deg2rad(lch[..., 2])
    return np.stack([lch[..., 0], lch[..., 1] * np.cos(hue), lch[..., 1] * np.sin(hue)], axis=-1)


def _lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    if lab.size == 0:
        return np.zeros(lab.shape, dtype=np.uint8)
    rgb = cv2.cvtColor(lab.reshape(-1, 1, 3).astype(np.float32), cv2.COLOR_LAB2RGB)
    return np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8).reshape(lab.shape)


def _palette() -> np.ndarray:
    """Return (P, 3) CIE Lab values of colors that a screen can show."""
    colors = [
        (lightness, chroma, 360.0 * (i + 0.5 * ring) / count)
        for ring, (lightness, chroma, count) in enumerate(_RINGS)
        for i in range(count)
    ]
    shown = _lab_to_rgb(_lch_to_lab(np.array(colors))).astype(np.float32) / 255
    return cv2.cvtColor(shown[None], cv2.COLOR_RGB2LAB)[0]


_PALETTE = _palette()


def _preferences(name: str) -> np.ndarray:
    """Return all palette indices in an order that depends only on the name."""
    digest = hashlib.blake2b(" ".join(name.casefold().split()).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).permutation(len(_PALETTE))


def class_colors(names: Sequence[str]) -> np.ndarray:
    """Assign colors to class names.

    A color depends only on the name, unless it is too similar to that of an earlier name. To give a
    class the same color in several images, pass the names of the whole vocabulary.

    Args:
        names: N names.

    Returns:
        (N, 3) uint8, RGB. Up to about 20 names are easy to distinguish. Colors repeat if there are
        more names than colors in the palette.
    """
    return _class_colors(tuple(names)).copy()


@lru_cache(maxsize=64)
def _class_colors(names: tuple[str, ...]) -> np.ndarray:
    chosen = np.zeros((len(names), 3), np.float32)
    taken = np.zeros((0, 3), np.float32)  # without repetitions
    for index, name in enumerate(names):
        candidates = _candidates(name)
        choice = 0
        if len(taken):
            apart = (candidates[:, None] - taken[None]) * _WEIGHTS
            gaps = np.linalg.norm(apart, axis=2).min(axis=1)
            wanted = next((gap for gap in _GAPS if (gaps >= gap).any()), gaps.max())
            choice = int((gaps >= wanted).argmax())
        chosen[index] = candidates[choice]
        if not len(taken) or gaps[choice] > 0:
            taken = np.vstack([taken, candidates[choice]])
    return _lab_to_rgb(chosen)


def _candidates(name: str) -> np.ndarray:
    """Return the colors that a name may get, in order of preference, (C, 3) CIE Lab."""
    words = re.findall(r"[^\W\d_]+", name.casefold())
    color = next((_COLOR_WORDS[word] for word in words if word in _COLOR_WORDS), None)
    if color is None and words:
        color = _NATURAL.get(words[-1])
    if color is None:
        return _PALETTE[_preferences(name)]
    base = cv2.cvtColor(np.array([[color]], np.float32) / 255, cv2.COLOR_RGB2LAB)[0, 0]
    return np.array([_varied(base, light, turn) for light, turn in _VARIANTS], np.float32)


def _varied(lab: np.ndarray, lightness: float, turn: float) -> np.ndarray:
    """Return a color with another lightness and hue (degrees), CIE Lab."""
    chroma, hue = np.hypot(lab[1], lab[2]), np.rad2deg(np.arctan2(lab[2], lab[1]))
    return _lch_to_lab(np.array([np.clip(lab[0] + lightness, 15, 95), chroma, hue + turn]))


def shade(color: Sequence[int], index: int) -> tuple[int, int, int]:
    """Vary the lightness and hue of a class's color for one of its instances.

    Args:
        color: RGB, 0 to 255.
        index: index of the instance, from 0, which keeps the color.

    Returns:
        RGB, 0 to 255.
    """
    if index == 0:
        red, green, blue = (int(c) for c in color)
        return red, green, blue
    rgb = np.array(color, dtype=np.float32).reshape(1, 1, 3) / 255
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[0, 0]
    turn = 9.0 * ((index * 5) % 7 - 3) / 3
    shaded = _lab_to_rgb(_varied(lab, _SHADES[index % len(_SHADES)], turn))
    red, green, blue = (int(c) for c in shaded)
    return red, green, blue


def is_light(color: Sequence[float]) -> bool:
    """Return whether black text is more readable than white text on an RGB color.

    The threshold applies to WCAG 2's relative luminance.
    """
    c = np.asarray(color, dtype=np.float64) / 255
    linear = np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722)) > 0.32
