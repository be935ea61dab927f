"""Text on images, drawn with the scalable fonts of Pillow and matplotlib."""

from __future__ import annotations

import functools
import os

from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
LINE_STEP = 1.2
"""Distance between two lines of a label, in font sizes."""


# Installed fonts to try if the bundled ones lack a character.
_BROAD_FAMILIES = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "WenQuanYi Micro Hei",
    "Noto Sans Devanagari",
    "Arial Unicode MS",
)


@functools.lru_cache(maxsize=256)
def _load(path: str | None, size: int) -> Font:
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


@functools.lru_cache(maxsize=1)
def _broad_fonts() -> list[tuple[str, frozenset[int]]]:
    """Return path and characters of DejaVu Sans and of the installed fonts above."""
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    paths = [os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")]
    installed = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist}
    paths += [installed[family] for family in _BROAD_FAMILIES if family in installed]
    return [(p, frozenset(FT2Font(p).get_charmap())) for p in paths if os.path.exists(p)]


@functools.lru_cache(maxsize=4096)
def _font_path(text: str) -> str | None:
    if text.isascii():
        return None
    fonts = _broad_fonts()
    needed = {ord(c) for c in text if not c.isspace()}
    # The font that lacks the fewest characters; matplotlib's in case of a tie.
    return min(fonts, key=lambda f: len(needed - f[1]))[0] if fonts else None


def font_for(text: str, size: int) -> Font:
    """Return a font of ``size`` pixels for a text.

    It is Pillow's bundled font for ASCII; otherwise matplotlib's DejaVu Sans (Latin, Greek,
    Cyrillic, Arabic, ...) or an installed font that has more of the text's characters. Characters
    that the font lacks are drawn as boxes.
    """
    return _load(_font_path(text), size)


def tidy(text: str, max_chars: int) -> str:
    """Convert a text to one line without control characters, shortened to ``max_chars``."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= max_chars else text[: max_chars - 3].rstrip() + "..."


def text_size(draw: ImageDraw.ImageDraw, text: str, size: int, stroke: int = 0) -> tuple[int, int]:
    """Return the width and height in pixels of a text of one or more lines."""
    left, _, right, _ = draw.textbbox((0, 0), text, font=font_for(text, size), stroke_width=stroke)
    lines = text.count("\n") + 1
    return int(right - left), int(size * (1.15 + LINE_STEP * (lines - 1))) + 2 * stroke


def halve(text: str) -> str | None:
    """Break a text at the space nearest to its middle; return None if it has no space."""
    spaces = [i for i, c in enumerate(text) if c == " "]
    if not spaces:
        return None
    cut = min(spaces, key=lambda i: abs(i - len(text) / 2))
    return f"{text[:cut]}\n{text[cut + 1 :]}"


def wrap(draw: ImageDraw.ImageDraw, text: str, size: int, width: int) -> list[str]:
    """Wrap a text at spaces into lines of at most ``width`` pixels; longer words exceed it."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_size(draw, longer, size)[0] <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
