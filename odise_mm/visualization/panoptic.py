"""Drawing of panoptic results.

Each segment is filled with the color of its class, or with the mean color of its pixels, and
outlined. Its name and score are drawn inside
it, and inside each of its larger parts, if there is room; else a number that refers to the legend.
Segments without a number can be found in the legend by their color.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image, ImageDraw

from odise_mm.structures import Segment, SegmentationResult
from odise_mm.utils.settings import check_choice, check_weight, check_whole
from odise_mm.visualization.colors import class_colors, is_light, shade
from odise_mm.visualization.legend import MAX_NUMBERS, LegendEntry, add_legend, draw_banner
from odise_mm.visualization.text import LINE_STEP, font_for, halve, text_size, tidy

FILLS = {"class": 0.5, "mean": 1.0}
"""What a segment can be filled with: the color of its class, or the mean color of its pixels. The
value is the default opacity; mean colors hide the pixels, because they would look alike."""
_MIN_LONG_SIDE = 480  # smaller images are enlarged to make room for text
_MIN_FONT = 12
_MAX_LEGEND_FONT = 96
_MAX_LABEL_CHARS = 28
_MAX_LABELED_PARTS = 5  # of one segment
_PLACING_FONT = 12  # places of names are found at the scale at which the font has this many pixels
_COVERED = 250  # of 255: share of a pixel that a mask must cover where it is reduced
_LARGEST_TABLE = 2**24  # ids up to this are looked up in a table
_STRIP = 2**21  # pixels that are filled at a time, which bounds the memory


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
    fill: str = "class",
    alpha: float | None = None,
    legend: bool | None = False,
    notice: str | None = None,
    scores: bool = True,
    zoom: int | None = None,
    channel_order: str = "bgr",
) -> np.ndarray:
    """Draw the segments of a result on its image.

    Args:
        image: (H, W, 3) uint8.
        result: result with a panoptic map of the same size.
        fill: color of the segments: "class" for one color per class, or "mean" for the mean color
            of each segment's pixels. Use "mean" if the class names contain colors.
        alpha: opacity of the fill, 0 to 1. None: 0.5 for class colors, 1 for mean colors.
        legend: whether to add a legend, and to enlarge images that are too small for text. None
            adds a legend if a segment has no room for its name.
        notice: text for a banner over the top of the image.
        scores: whether scores are written behind the names.
        zoom: factor by which the image is enlarged, from 1. None: small images are enlarged if
            there is a legend.
        channel_order: "bgr" or "rgb", of ``image`` and of the returned image.

    Returns:
        uint8 (H', W', 3). H' x W' is H x W with ``legend=False`` and without ``zoom``, else it is
        larger. The enlarged image is in the top left corner.

    Raises:
        ValueError: there is no panoptic map, its size differs from the image's,
            ``alpha`` is not from 0 to 1, ``zoom`` is below 1, or ``fill`` or ``channel_order`` is
            unknown.
    """
    if result.panoptic is None:
        raise ValueError(f"{result.image_name}: the result has no panoptic map to draw")
    if image.shape != (*result.panoptic.shape, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"{result.image_name}: the image is {image.dtype} {image.shape}, but the panoptic map "
            f"is {result.panoptic.shape}; pass a uint8 (H, W, 3) image of the map's size"
        )
    check_choice("fill", fill, FILLS)
    alpha = FILLS[fill] if alpha is None else alpha
    check_weight("alpha", alpha)
    if channel_order not in ("bgr", "rgb"):
        raise ValueError(f'channel_order must be "bgr" or "rgb", not {channel_order!r}')
    rgb = image[..., ::-1] if channel_order == "bgr" else image
    if zoom is None:
        small = _MIN_LONG_SIDE / max(rgb.shape[:2])
        zoom = 1 if legend is False else max(1, math.ceil(small))
    check_whole("zoom", zoom, 1)
    drawing = _draw(np.ascontiguousarray(rgb), result, fill, alpha, legend, notice, scores, zoom)
    return np.ascontiguousarray(drawing[..., ::-1] if channel_order == "bgr" else drawing)


def _draw(
    rgb: np.ndarray,
    result: SegmentationResult,
    fill: str,
    alpha: float,
    legend: bool | None,
    notice: str | None,
    scores: bool,
    zoom: int,
) -> np.ndarray:
    # Ranks in the list of segments, from 1, are small numbers for OpenCV and lookup tables.
    assert result.panoptic is not None, "checked by the caller"
    ranks = _ranks(result.panoptic, result.segments)
    drawn = _color_segments(result)
    if fill == "mean":
        _take_mean_colors(rgb, ranks, drawn)
    if zoom > 1:
        height, width = ranks.shape
        rgb = cv2.resize(rgb, (width * zoom, height * zoom), interpolation=cv2.INTER_CUBIC)
        ranks = _enlarge(ranks, zoom)
    height, width = ranks.shape
    label_size = max(_MIN_FONT, round(min(0.024 * max(height, width), 0.07 * min(height, width))))
    legend_size = min(max(_MIN_FONT, round(0.018 * max(height, width))), _MAX_LEGEND_FONT)

    canvas = _fill(rgb, ranks, drawn, alpha, line=max(1, round(label_size / 9)))
    _find_boxes(ranks, drawn)
    swatches = {} if legend is False else _swatches(canvas, ranks, drawn)
    pil = Image.fromarray(canvas).copy()
    del rgb, canvas  # large images need the memory
    _write_names(pil, ranks, drawn, label_size, numbers=legend is not False, scores=scores)
    if notice:
        draw_banner(pil, notice, legend_size)
    if legend or (legend is None and any(not d.placed or d.number for d in drawn)):
        pil = add_legend(pil, _legend_entries(drawn, swatches, result), legend_size)
    return np.asarray(pil)


def _ranks(panoptic: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
    """Return (H, W) int32: 1 + index of the pixel's segment, 0 for void and unlisted ids."""
    rank_of = {segment.id: rank for rank, segment in enumerate(segments, start=1)}
    highest = int(panoptic.max(initial=0))
    if highest > _LARGEST_TABLE or panoptic.min(initial=0) < 0:
        values, inverse = np.unique(panoptic, return_inverse=True)
        table = np.array([rank_of.get(int(v), 0) for v in values], dtype=np.int32)
        return table[inverse.reshape(panoptic.shape)]
    table = np.zeros(highest + 1, np.int32)
    for value, rank in rank_of.items():
        if 0 <= value <= highest:
            table[value] = rank
    return table[panoptic]


def _enlarge(ranks: np.ndarray, zoom: int) -> np.ndarray:
    """Enlarge a map of ranks so that borders become smooth instead of steps."""
    height, width = ranks.shape
    size = (width * zoom, height * zoom)
    best = np.full((size[1], size[0]), -1, np.float32)
    enlarged = np.zeros((size[1], size[0]), np.int32)
    for rank in np.unique(ranks):
        share = cv2.resize((ranks == rank).astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
        won = share > best
        best[won], enlarged[won] = share[won], rank
    return enlarged


def _color_segments(result: SegmentationResult) -> list[_Drawn]:
    # Colors are assigned to the whole vocabulary, so that they don't change between images.
    names = list(result.class_names)
    names += [n for n in dict.fromkeys(s.name for s in result.segments) if n not in set(names)]
    colors = dict(zip(names, class_colors(names), strict=True))
    seen: dict[str, int] = defaultdict(int)
    drawn = []
    for segment in result.segments:
        # In videos, an object keeps its shade.
        index = seen[segment.name]
        if segment.track_id is not None:
            index = segment.track_id if segment.is_thing else 0
        drawn.append(_Drawn(segment, shade(colors[segment.name], index)))
        seen[segment.name] += 1
    return drawn


def _fill(
    rgb: np.ndarray, ranks: np.ndarray, drawn: list[_Drawn], alpha: float, line: int
) -> np.ndarray:
    """Fill segments, outline them in their colors, and draw a thin light line between them."""
    table = np.array([(0, 0, 0), *(d.color for d in drawn)], dtype=np.float32)
    canvas = np.empty_like(rgb)
    strips = list(_strips(ranks))
    only = _distances(ranks, strips[0], line) if len(strips) == 1 else None
    # Thin segments would consist of lines only, so their lines are thinner or left out.
    widest = np.zeros(len(drawn) + 1, np.float32)
    for rows in strips:
        distance = _distances(ranks, rows, line) if only is None else only
        np.maximum.at(widest, ranks[rows].ravel(), distance.ravel())
    rooms = np.clip((widest - line) / (2 * line), 0, 1).astype(np.float32)
    for rows in strips:
        part = ranks[rows]
        distance = _distances(ranks, rows, line) if only is None else only
        colors = table[part]
        # Void shows the image slightly darkened, so that it looks like "nothing found".
        opacity = np.where(part > 0, np.float32(alpha), np.float32(0.25))[..., None]
        filled = rgb[rows] + opacity * (colors - rgb[rows])
        near = distance < _reach(line)
        distance, colors, part, lines = distance[near], colors[near], part[near], filled[near]
        room = rooms[part]
        own = (np.clip(2.2 * line * room + 0.5 - distance, 0, 1) * (part > 0))[:, None]
        lines += own * 0.9 * (np.clip(colors * 0.92, 0, 255) - lines)
        light = np.clip(0.35 * line + 0.3 - distance, 0, 1) * np.where(part, room, 1)
        lines += light[:, None] * 0.9 * (np.float32(255) - lines)
        filled[near] = lines
        canvas[rows] = np.clip(np.rint(filled), 0, 255)
    return canvas


def _reach(line: int) -> int:
    """Return a distance from borders, in pixels, that no line of a width reaches."""
    return 3 * line + 1


def _strips(ranks: np.ndarray) -> Iterator[slice]:
    """Yield the rows of the map in pieces of about ``_STRIP`` pixels."""
    step = max(1, _STRIP // max(1, ranks.shape[1]))
    for start in range(0, len(ranks), step):
        yield slice(start, min(start + step, len(ranks)))


def _distances(ranks: np.ndarray, rows: slice, line: int) -> np.ndarray:
    """Return the distance of every pixel of some rows to the nearest border between segments.

    It gives smooth lines of any width. Larger distances than :func:`_reach` are set to it, so rows
    that are farther away don't matter.
    """
    limit = _reach(line)
    first, last = max(0, rows.start - limit - 1), min(len(ranks), rows.stop + limit + 1)
    near = ranks[first:last]
    border = np.zeros(near.shape, dtype=np.uint8)
    across, down = near[:, 1:] != near[:, :-1], near[1:] != near[:-1]
    border[:, 1:] |= across
    border[:, :-1] |= across
    border[1:] |= down
    border[:-1] |= down
    if not border.any():
        return np.full((rows.stop - rows.start, ranks.shape[1]), limit, np.float32)
    distance = cv2.distanceTransform(1 - border, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.minimum(distance[rows.start - first : rows.stop - first], np.float32(limit))


def _find_boxes(ranks: np.ndarray, drawn: list[_Drawn]) -> None:
    from scipy.ndimage import find_objects

    slices = find_objects(ranks, max_label=len(drawn))
    for item, found in zip(drawn, slices, strict=True):
        if found is not None:
            item.box = (found[1].start, found[0].start, found[1].stop, found[0].stop)


def _write_names(
    pil: Image.Image,
    ranks: np.ndarray,
    drawn: list[_Drawn],
    size: int,
    numbers: bool = True,
    scores: bool = True,
) -> None:
    """Write the name of each segment where there is room.

    Args:
        pil: Canvas.
        ranks: (H, W), see :func:`_ranks`.
        drawn: The segments.
        size: Height of the font in pixels.
        numbers: Whether segments without room for their names get numbers that a legend lists.
            Objects of videos get the numbers of their tracks.
        scores: Whether names are followed by scores.
    """
    draw = ImageDraw.Draw(pil)
    small = max(_MIN_FONT, round(size * 0.72))
    scale = max(1, small // _PLACING_FONT)
    next_number = 1
    numbered: dict[str, int] = defaultdict(int)
    for rank, item in enumerate(drawn, start=1):
        x0, y0, x1, y1 = item.box
        if x1 == x0:
            continue
        mask = _reduced(ranks[y0:y1, x0:x1] == rank, scale)
        name = tidy(item.segment.name, _MAX_LABEL_CHARS)
        track = ""
        if item.segment.track_id is not None and item.segment.is_thing:
            track = f"#{item.segment.track_id}"
            name = f"{name} {track}"
        scored = f"{name} {item.segment.score:.2f}" if scores else name
        for part in _parts(mask, small // scale):
            for text, font_size in [*_forms(name, scored, size, small), (track, small)]:
                if text and _place(draw, part, (x0, y0), scale, text, font_size, item):
                    break
        listed = numbered[item.segment.name] < MAX_NUMBERS
        if numbers and not item.placed and listed:
            if _place(draw, mask, (x0, y0), scale, str(next_number), small, item):
                item.number = next_number
                next_number += 1
                numbered[item.segment.name] += 1


def _reduced(mask: np.ndarray, scale: int) -> np.ndarray:
    """Reduce a mask; pixels are 1 if the mask covers them, nearly or entirely. Returns uint8."""
    if scale == 1:
        return mask.astype(np.uint8)
    rows, columns = (max(1, -(-length // scale)) for length in mask.shape)
    padded = np.zeros((rows * scale, columns * scale), np.uint8)
    padded[: mask.shape[0], : mask.shape[1]] = mask * np.uint8(255)
    reduced = cv2.resize(padded, (columns, rows), interpolation=cv2.INTER_AREA)
    return (reduced >= _COVERED).astype(np.uint8)


def _parts(mask: np.ndarray, size: int) -> list[np.ndarray]:
    """Return the connected parts of a mask that may have room for text of a size, largest first."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    large = [i for i in range(1, count) if areas[i] >= 2 * size * size]
    largest = sorted(large, key=lambda i: -areas[i])[:_MAX_LABELED_PARTS]
    return [mask] if count <= 2 else [(labels == i).astype(np.uint8) for i in largest]


def _forms(name: str, scored: str, size: int, small: int) -> list[tuple[str, int]]:
    """Return the texts and font sizes to try for a name, in order of preference."""
    forms = [(scored, size), (name, size), (halve(name), size), (scored, small)]
    forms += [(name, small), (halve(name), small)]
    return list(dict.fromkeys((text, s) for text, s in forms if text and name))


def _place(
    draw: ImageDraw.ImageDraw,
    mask: np.ndarray,
    origin: tuple[int, int],
    scale: int,
    text: str,
    size: int,
    item: _Drawn,
) -> bool:
    """Draw a text on a plate deepest inside the mask; return False if it does not fit anywhere.

    The mask is reduced by ``scale``, and begins at ``origin`` on the canvas.
    """
    pad = 1 if text.isdecimal() else max(2, size // 4)  # numbers are for segments with little room
    width, height = text_size(draw, text, size)
    spot = deepest_box(mask, -(-(width + 2 * pad) // scale), -(-(height + pad) // scale))
    if spot is None:
        return False
    x, y = origin[0] + spot[0] * scale, origin[1] + spot[1] * scale
    left, top = x - width // 2 - pad, y - height // 2 - pad // 2
    plate = (left, top, left + width + 2 * pad - 1, top + height + pad - 1)
    draw.rounded_rectangle(plate, radius=pad, fill=item.color)
    draw.text(
        (x, y),
        text,
        font=font_for(text, size),
        anchor="mm",
        align="center",
        spacing=_spacing(text, size),
        fill=(16, 16, 16) if is_light(item.color) else (255, 255, 255),
    )
    item.placed = True
    return True


def _spacing(text: str, size: int) -> float:
    """Return Pillow's ``spacing`` for ``LINE_STEP``.

    Pillow measures it from the bottom of an "A" to the top of the next line.
    """
    return LINE_STEP * size - font_for(text, size).getbbox("A")[3]


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
    inside = np.pad((squeezed >= _COVERED).astype(np.uint8), 1)
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


def _sums(canvas: np.ndarray, ranks: np.ndarray, drawn: list[_Drawn]) -> np.ndarray:
    """Return (N, 4) per segment: sums of red, green and blue, and the number of pixels."""
    sums = np.zeros((len(drawn) + 1, 4))
    for rows in _strips(ranks):
        flat, length = ranks[rows].ravel(), len(sums)
        for channel in range(3):
            sums[:, channel] += np.bincount(flat, canvas[rows, :, channel].ravel(), length)
        sums[:, 3] += np.bincount(flat, minlength=length)
    return sums[1:]


def _mean(sums: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(c) for c in np.rint(sums[:3] / sums[3]))
    return red, green, blue


def _take_mean_colors(rgb: np.ndarray, ranks: np.ndarray, drawn: list[_Drawn]) -> None:
    """Give each segment the mean color of its pixels."""
    for item, sums in zip(drawn, _sums(rgb, ranks, drawn), strict=True):
        if sums[3]:
            item.color = _mean(sums)


def _swatches(
    canvas: np.ndarray, ranks: np.ndarray, drawn: list[_Drawn]
) -> dict[str, tuple[int, int, int]]:
    """Return the mean drawn color of every class that has pixels, RGB."""
    total: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(4))
    for item, sums in zip(drawn, _sums(canvas, ranks, drawn), strict=True):
        total[item.segment.name] += sums
    return {name: _mean(sums) for name, sums in total.items() if sums[3]}


def _legend_entries(
    drawn: list[_Drawn], swatches: dict[str, tuple[int, int, int]], result: SegmentationResult
) -> list[LegendEntry]:
    """Return one entry per class, sorted by area in descending order."""
    entries: dict[str, LegendEntry] = {}
    for item in drawn:
        segment = item.segment
        share = result.share(segment)
        entry = entries.get(segment.name)
        if entry is None:
            color = swatches.get(segment.name, item.color)
            entry = LegendEntry(tidy(segment.name, 36), color, 0, 0.0, ())
        numbers = entry.numbers + ((item.number,) if item.number else ())
        entries[segment.name] = replace(
            entry, count=entry.count + 1, share=entry.share + share, numbers=numbers
        )
    return sorted(entries.values(), key=lambda e: (-e.share, e.name))
