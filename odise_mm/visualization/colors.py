"""Colors of classes: the same name always gets the same color if possible."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import cv2
import numpy as np

# Lightness, chroma (CIE LCh) and number of hues of the palette's rings. The mid tones are visible
# on photographs and leave room for lighter and darker shades of a class's instances.
_RINGS = ((64.0, 72.0, 20), (50.0, 58.0, 14), (78.0, 52.0, 14))
# Distances in CIE Lab to keep between two colors; the first that any color satisfies is used.
# Lightness has half the weight, because the photograph under the fill changes it.
_GAPS = (45.0, 34.0, 25.0, 16.0)
_WEIGHTS = np.array([0.5, 1.0, 1.0])
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

    A color depends only on the name, unless it is too similar to that of an earlier name.

    Args:
        names: N names.

    Returns:
        (N, 3) uint8, RGB. Up to about 20 names are easy to distinguish. Colors repeat if there are
        more names than colors in the palette.
    """
    taken: list[np.ndarray] = []
    for name in names:
        candidates = _PALETTE[_preferences(name)]
        if taken:
            apart = (candidates[:, None] - np.array(taken)[None]) * _WEIGHTS
            gaps = np.linalg.norm(apart, axis=2).min(axis=1)
            wanted = next((gap for gap in _GAPS if (gaps >= gap).any()), gaps.max())
            choice = candidates[int((gaps >= wanted).argmax())]
        else:
            choice = candidates[0]
        taken.append(choice)
    return _lab_to_rgb(np.array(taken).reshape(-1, 3))


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
    chroma, hue = np.hypot(lab[1], lab[2]), np.rad2deg(np.arctan2(lab[2], lab[1]))
    lightness = np.clip(lab[0] + _SHADES[index % len(_SHADES)], 25, 90)
    turn = 9.0 * ((index * 5) % 7 - 3) / 3
    shaded = _lab_to_rgb(_lch_to_lab(np.array([lightness, chroma, hue + turn])))
    red, green, blue = (int(c) for c in shaded)
    return red, green, blue


def is_light(color: Sequence[float]) -> bool:
    """Return whether black text is more readable than white text on an RGB color.

    The threshold applies to WCAG 2's relative luminance.
    """
    c = np.asarray(color, dtype=np.float64) / 255
    linear = np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722)) > 0.32
