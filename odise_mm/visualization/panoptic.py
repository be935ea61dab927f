"""Drawing of panoptic results.

Each segment is filled with the color of its class and outlined. Its name is drawn inside it if
there is room, else a number that refers to the legend. Segments that are too small for a number can
be found in the legend by their color.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image, ImageDraw

from odise_mm.structures import Segment, SegmentationResult
from odise_mm.visualization.colors import class_colors, is_light, shade
from odise_mm.visualization.legend import LegendEntry, add_banner, add_legend
from odise_mm.visualization.text import LINE_STEP, font_for, halve, text_size, tidy

_MIN_LONG_SIDE = 480  # smaller images are enlarged to make room for text
_MIN_FONT = 12
_MAX_LEGEND_FONT = 96
_MAX_LABEL_CHARS = 28


@dataclass
class _Drawn:
    """A segment with its color and its label's position."""

    segment: Segment
    color: tuple[int, int, int]
    box: tuple[int, int, int, int] = (0, 0, 0, 0)  # x0, y0, x1, y1 on the canvas
    number: int | None = None
    placed: bool = False


def draw_panoptic(
    image: np.ndarray,
    result: SegmentationResult,
    *,
    alpha: float = 0.5,
    legend: bool | None = None,
    notice: str | None = None,
    channel_order: str = "bgr",
) -> np.ndarray:
    """Draw the segments of a result on its image.

    Args:
        image: (H, W, 3) uint8.
        result: result with a panoptic map of the same size.
        alpha: opacity of the fill, 0 to 1.
        legend: whether to draw a legend. None draws one if a segment has no room for its name.
        notice: text for a banner above the image.
        channel_order: "bgr" or "rgb", of ``image`` and of the returned image.

    Returns:
        uint8 (H', W', 3). Without legend and banner, H' x W' is H x W, or an integer multiple of it
        for images that are too small for text.

    Raises:
        ValueError: there is no panoptic map, its size differs from the image's, or
            ``channel_order`` is unknown.
    """
    if result.panoptic is None:
        raise ValueError(f"{result.image_name}: the result has no panoptic map to draw")
    if image.shape != (*result.panoptic.shape, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"{result.image_name}: the image is {image.dtype} {image.shape}, but the panoptic map "
            f"is {result.panoptic.shape}; pass a uint8 (H, W, 3) image of the map's size"
        )
    if channel_order not in ("bgr", "rgb"):
        raise ValueError(f'channel_order must be "bgr" or "rgb", not {channel_order!r}')
    rgb = image[..., ::-1] if channel_order == "bgr" else image
    drawing = _draw(np.ascontiguousarray(rgb), result, alpha, legend, notice)
    return np.ascontiguousarray(drawing[..., ::-1] if channel_order == "bgr" else drawing)


def _draw(
    rgb: np.ndarray,
    result: SegmentationResult,
    alpha: float,
    legend: bool | None,
    notice: str | None,
) -> np.ndarray:
    zoom = max(1, math.ceil(_MIN_LONG_SIDE / max(rgb.shape[:2])))
    # Ranks in the list of segments, from 1, are small numbers for OpenCV and lookup tables.
    assert result.panoptic is not None, "checked by the caller"
    ranks = _ranks(result.panoptic, result.segments)
    if zoom > 1:
        height, width = ranks.shape
        size = (width * zoom, height * zoom)
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_CUBIC)
        ranks = cv2.resize(ranks, size, interpolation=cv2.INTER_NEAREST)
    height, width = ranks.shape
    label_size = max(_MIN_FONT, round(min(0.024 * max(height, width), 0.07 * min(height, width))))
    legend_size = min(max(_MIN_FONT, round(0.018 * max(height, width))), _MAX_LEGEND_FONT)

    drawn = _color_segments(result)
    canvas = _fill(rgb, ranks, drawn, alpha, line=max(1, round(label_size / 9)))
    _find_boxes(ranks, drawn)
    pil = Image.fromarray(canvas)
    _write_names(pil, ranks, drawn, label_size)
    if legend or (legend is None and any(not d.placed or d.number for d in drawn)):
        pil = add_legend(pil, _legend_entries(drawn, result), legend_size)
    if notice:
        pil = add_banner(pil, notice, legend_size)
    return np.asarray(pil)


def _ranks(panoptic: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
    """Return (H, W) int32: 1 + index of the pixel's segment, 0 for void and unlisted ids."""
    values, inverse = np.unique(panoptic, return_inverse=True)
    rank_of = {segment.id: rank for rank, segment in enumerate(segments, start=1)}
    table = np.array([rank_of.get(int(v), 0) for v in values], dtype=np.int32)
    return table[inverse.reshape(panoptic.shape)]


def _color_segments(result: SegmentationResult) -> list[_Drawn]:
    # Colors are assigned to the whole vocabulary, so that they don't change between images.
    names = list(result.class_names)
    names += [n for n in dict.fromkeys(s.name for s in result.segments) if n not in set(names)]
    colors = dict(zip(names, class_colors(names), strict=True))
    seen: dict[str, int] = defaultdict(int)
    drawn = []
    for segment in result.segments:
        drawn.append(_Drawn(segment, shade(colors[segment.name], seen[segment.name])))
        seen[segment.name] += 1
    return drawn


def _fill(
    rgb: np.ndarray, ranks: np.ndarray, drawn: list[_Drawn], alpha: float, line: int
) -> np.ndarray:
    """Fill segments, outline them in their colors, and draw a thin light line between them."""
    table = np.array([(0, 0, 0), *(d.color for d in drawn)], dtype=np.uint8)
    colors = table[ranks]
    # Void shows the image slightly darkened, so that it looks like "nothing found".
    opacity = np.where(ranks > 0, np.float32(alpha), np.float32(0.25))[..., None]
    filled = rgb + opacity * (colors.astype(np.float32) - rgb)
    border = np.zeros(ranks.shape, dtype=np.uint8)
    across, down = ranks[:, 1:] != ranks[:, :-1], ranks[1:] != ranks[:-1]
    border[:, 1:] |= across
    border[:, :-1] |= across
    border[1:] |= down
    border[:-1] |= down
    if border.any():
        # The distance to the nearest border gives smooth lines of any width.
        distance = cv2.distanceTransform(1 - border, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        own = np.clip(2.2 * line + 0.5 - distance, 0, 1)[..., None] * (ranks > 0)[..., None]
        vivid = np.clip(colors.astype(np.float32) * 0.92, 0, 255)
        filled += own * 0.9 * (vivid - filled)
        light = np.clip(0.35 * line + 0.3 - distance, 0, 1)[..., None]
        filled += light * 0.9 * (np.float32(255) - filled)
    return np.clip(np.rint(filled), 0, 255).astype(np.uint8)


def _find_boxes(ranks: np.ndarray, drawn: list[_Drawn]) -> None:
    from scipy.ndimage import find_objects

    slices = find_objects(ranks, max_label=len(drawn))
    for item, found in zip(drawn, slices, strict=True):
        if found is not None:
            item.box = (found[1].start, found[0].start, found[1].stop, found[0].stop)


def _write_names(pil: Image.Image, ranks: np.ndarray, drawn: list[_Drawn], size: int) -> None:
    draw = ImageDraw.Draw(pil)
    small = max(_MIN_FONT, round(size * 0.72))
    next_number = 1
    for rank, item in enumerate(drawn, start=1):
        x0, y0, x1, y1 = item.box
        if x1 == x0:
            continue
        mask = (ranks[y0:y1, x0:x1] == rank).astype(np.uint8)
        name = tidy(item.segment.name, _MAX_LABEL_CHARS)
        for text, font_size in _forms(name, size, small):
            if _place(draw, mask, (x0, y0), text, font_size, item):
                break
        else:
            if _place(draw, mask, (x0, y0), str(next_number), small, item):
                item.number = next_number
                next_number += 1


def _forms(name: str, size: int, small: int) -> list[tuple[str, int]]:
    """Return the texts and font sizes to try for a name, in order of preference."""
    texts = [text for text in (name, halve(name)) if text]
    return [(text, s) for s in dict.fromkeys((size, small)) for text in texts]


def _place(
    draw: ImageDraw.ImageDraw,
    mask: np.ndarray,
    origin: tuple[int, int],
    text: str,
    size: int,
    item: _Drawn,
) -> bool:
    """Draw a text deepest inside the mask; return False if it does not fit anywhere."""
    stroke = max(1, round(size / 9))
    width, height = text_size(draw, text, size, stroke)
    spot = deepest_box(mask, width, height)
    if spot is None:
        return False
    light = is_light(item.color)
    draw.text(
        (origin[0] + spot[0], origin[1] + spot[1]),
        text,
        font=font_for(text, size),
        anchor="mm",
        align="center",
        spacing=_spacing(text, size),
        fill=(16, 16, 16) if light else (255, 255, 255),
        stroke_width=stroke,
        stroke_fill=(255, 255, 255) if light else (16, 16, 16),
    )
    item.placed = True
    return True


def _spacing(text: str, size: int) -> float:
    """Return Pillow's ``spacing`` for ``LINE_STEP``.

    Pillow measures it from the bottom of an "A" to the top of the next line, plus the stroke.
    """
    ascender = font_for(text, size).getbbox("A")[3]
    return LINE_STEP * size - ascender - max(1, round(size / 9))


def deepest_box(mask: np.ndarray, width: int, height: int) -> tuple[int, int] | None:
    """Find the position of a box that is farthest from the border of a mask.

    The mask is scaled so that the box becomes a square. The chessboard distance to the outside is
    then half the side of the largest such square around each pixel.

    Args:
        mask: (h, w) uint8, 0 or 1.
        width, height: size of the box in pixels.

    Returns:
        x, y of the box's center, or None if it does not fit anywhere.
    """
    rows, columns = mask.shape
    if rows < height or columns < width:
        return None
    # Squares of at most 25 pixels are exact enough for text and cheap for masks of any size.
    side = min(25, width, height)
    target = (max(1, columns * side // width), max(1, rows * side // height))
    squeezed = cv2.resize(mask * np.uint8(255), target, interpolation=cv2.INTER_AREA)
    inside = np.pad((squeezed >= 250).astype(np.uint8), 1)
    distance = cv2.distanceTransform(inside, cv2.DIST_C, 3)[1:-1, 1:-1]
    # Among equally deep positions, take the most central one.
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    best = distance[y, x]
    if 2 * best - 1 < side:  # a distance of 1 is the pixel itself
        return None
    ys, xs = np.nonzero(distance >= best - 0.5)
    center = np.argmin((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2)
    x, y = xs[center], ys[center]
    x, y = (x + 0.5) * columns / target[0], (y + 0.5) * rows / target[1]
    half_width, half_height = (width + 1) // 2, (height + 1) // 2
    return (
        int(np.clip(x, half_width, max(half_width, columns - half_width))),
        int(np.clip(y, half_height, max(half_height, rows - half_height))),
    )


def _legend_entries(drawn: list[_Drawn], result: SegmentationResult) -> list[LegendEntry]:
    """Return one entry per class, sorted by area in descending order."""
    entries: dict[str, LegendEntry] = {}
    for item in drawn:
        segment = item.segment
        share = result.share(segment)
        entry = entries.get(segment.name)
        if entry is None:
            entry = LegendEntry(tidy(segment.name, 36), item.color, 0, 0.0, ())
        numbers = entry.numbers + ((item.number,) if item.number else ())
        entries[segment.name] = replace(
            entry, count=entry.count + 1, share=entry.share + share, numbers=numbers
        )
    return sorted(entries.values(), key=lambda e: (-e.share, e.name))
