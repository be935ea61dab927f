"""Legend below or beside an image, and the banner above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from odise_mm.visualization.text import font_for, text_size, wrap

_PAPER = (250, 250, 248)
_INK = (28, 28, 30)
_FAINT = (112, 112, 118)
_WARNING = (255, 196, 61)
MAX_NUMBERS = 4
"""Number of segments of one class whose numbers an entry lists."""


@dataclass(frozen=True)
class LegendEntry:
    """A class in the legend."""

    name: str
    color: tuple[int, int, int]
    """Mean color of the class's drawn pixels, RGB."""
    count: int
    share: float
    """Fraction of the image, 0 to 1."""
    numbers: tuple[int, ...]
    """Numbers drawn on segments that are too small for the name, at most ``MAX_NUMBERS``."""

    @property
    def remark(self) -> str:
        """Text after the name: count, percentage of the image, and numbers."""
        parts = [f"x{self.count}"] if self.count > 1 else []
        percent = 100 * self.share
        parts.append("<0.1 %" if percent < 0.1 else f"{percent:.{0 if percent >= 10 else 1}f} %")
        if self.numbers:
            parts.append(f"[{', '.join(map(str, self.numbers))}]")
        return "  ".join(parts)


def add_legend(image: Image.Image, entries: Sequence[LegendEntry], size: int) -> Image.Image:
    """Add a legend below an image, or to the right of an image that is much taller than wide.

    Args:
        image: RGB image.
        entries: entries of the legend, in order.
        size: font size in pixels.

    Returns:
        A new image, or ``image`` if there are no entries.
    """
    if not entries:
        return image
    draw = ImageDraw.Draw(image)
    row, pad, swatch = round(size * 1.75), size, round(size * 1.05)
    gap = size // 2
    widths = [
        swatch + 3 * gap + 2 * pad + sum(text_size(draw, t, size)[0] for t in (e.name, e.remark))
        for e in entries
    ]
    beside = image.height > 1.6 * image.width
    if beside:
        rows = min(len(entries), max(1, (image.height - 2 * pad) // row))
    else:
        rows = _fewest_rows(widths, image.width - pad)
    columns = [max(widths[i : i + rows]) for i in range(0, len(entries), rows)]
    panel = (sum(columns) + pad, rows * row + 2 * pad)
    if beside:
        total = (image.width + panel[0], max(image.height, panel[1]))
        left, top = image.width + pad, pad
    else:
        total = (max(image.width, panel[0]), image.height + panel[1])
        left, top = pad, image.height + pad
    canvas = Image.new("RGB", total, _PAPER)
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, entry in enumerate(entries):
        x = left + sum(columns[: i // rows])
        middle = top + (i % rows) * row + row // 2
        box = (x, middle - swatch // 2, x + swatch, middle - swatch // 2 + swatch)
        draw.rounded_rectangle(box, radius=max(2, swatch // 5), fill=entry.color)
        x += swatch + gap
        for text, ink in ((entry.name, _INK), (entry.remark, _FAINT)):
            draw.text((x, middle), text, font=font_for(text, size), anchor="lm", fill=ink)
            x += text_size(draw, text, size)[0] + 2 * gap
    return canvas


def _fewest_rows(widths: Sequence[int], available: int) -> int:
    """Return the minimum number of rows of a table that is at most ``available`` wide.

    The table is filled column by column.
    """
    for rows in range(1, len(widths)):
        if sum(max(widths[i : i + rows]) for i in range(0, len(widths), rows)) <= available:
            return rows
    return len(widths)


def draw_banner(image: Image.Image, text: str, size: int) -> None:
    """Draw a banner with a wrapped warning text over the top of an image.

    Args:
        image: RGB image, which is changed.
        text: text of the banner.
        size: font size in pixels. Where the text would take more than half of the image, it becomes
            smaller, down to 6 pixels.
    """
    draw = ImageDraw.Draw(image)
    while True:
        lines = wrap(draw, text, size, max(1, image.width - 2 * size))
        height = len(lines) * round(size * 1.4) + round(0.8 * size)
        if size <= 6 or 2 * height <= image.height:
            break
        size -= 1
    draw.rectangle((0, 0, image.width, height - 1), fill=_WARNING)
    _write_lines(draw, lines, size)


def add_banner(image: Image.Image, text: str, size: int) -> Image.Image:
    """Add a banner with a wrapped text above an image.

    Images narrower than 24 times the font size are padded to that width.

    Args:
        image: RGB image.
        text: text of the banner.
        size: font size in pixels.
    """
    width = max(image.width, 24 * size)
    lines = wrap(ImageDraw.Draw(image), text, size, width - 2 * size)
    height = len(lines) * round(size * 1.4) + round(0.8 * size)
    canvas = Image.new("RGB", (width, image.height + height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 0, width, height - 1), fill=_WARNING)
    _write_lines(draw, lines, size)
    canvas.paste(image, (0, height))
    return canvas


def _write_lines(draw: ImageDraw.ImageDraw, lines: Sequence[str], size: int) -> None:
    row = round(size * 1.4)
    for i, line in enumerate(lines):
        middle = round(0.4 * size) + i * row + row // 2
        draw.text((size, middle), line, font=font_for(line, size), anchor="lm", fill=_INK)
