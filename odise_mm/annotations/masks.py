"""Masks of annotation files (polygons or run-length codes), with checks before they are used.

Masks must be checked before pycocotools sees them. It has no error messages for invalid masks,
takes a first ring of four numbers for a box, allocates memory according to the largest coordinate
of a polygon, and reads past the end of a truncated compressed code. Does not import torch.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from odise_mm.errors import DatasetError
from odise_mm.utils.display import printable

Rle = dict[str, Any]
"""COCO's compressed form: ``size`` (height, width) and ``counts`` (bytes or text)."""

MIN_POINTS = 3
MARGIN = 0.1
"""How far a polygon may extend beyond its image, as a fraction of the image's height and width."""
_NUMBERS = frozenset((int, float))
# Numbers in digits of five bits: "P" to "o" if more digits follow, "0" to "O" for the last digit.
_COMPRESSED = re.compile(r"(?:[P-o]{0,6}[0-O])+")


def clean_mask(mask: Any, size: tuple[int, int]) -> list | Rle | None:
    """Check a mask, and drop rings of fewer than three points.

    Args:
        mask: Mask from a JSON file: a list of rings ``[x1, y1, x2, y2, ...]``, or a run-length code
            with counts as integers or as text.
        size: Height and width of the image.

    Returns:
        A mask that :func:`to_rle` can read. None if the mask is unusable, because no ring has three
        points or a ring extends far beyond the image.

    Raises:
        DatasetError: If the value is not a mask, or its code has another size. The message names
            neither the file nor the annotation.
    """
    if isinstance(mask, list):
        return _clean_rings(mask, size)
    if isinstance(mask, dict):
        _check_code(mask, size)
        return mask
    raise DatasetError(
        f"its mask is {_brief(mask)}; COCO's masks are lists of rings or run lengths"
    )


def to_rle(mask: Rle | list, size: tuple[int, int]) -> Rle:
    """Convert a mask in any of COCO's forms to a compressed run-length code.

    Args:
        mask: A mask from :func:`clean_mask`.
        size: Height and width of the image.
    """
    if isinstance(mask, list):
        return mask_utils.merge(mask_utils.frPyObjects(mask, *size))
    if isinstance(mask["counts"], list):
        return mask_utils.frPyObjects(mask, *size)
    return mask


def _brief(value: Any) -> str:
    try:
        return printable(json.dumps(value, ensure_ascii=False), limit=60)
    except RecursionError:
        return "deeply nested lists"


def _clean_rings(rings: list, size: tuple[int, int]) -> list | None:
    kept = []
    for ring in rings:
        if not isinstance(ring, list):
            hint = "; put each ring into a separate list" if type(ring) in _NUMBERS else ""
            raise DatasetError(f"its mask has {_brief(ring)} instead of a ring{hint}")
        if not _NUMBERS.issuperset(map(type, ring)):
            odd = next(value for value in ring if type(value) not in _NUMBERS)
            hint = ", not pairs" if isinstance(odd, list) else ""
            raise DatasetError(
                f"a ring of its mask has {_brief(odd)} instead of a number; a ring is "
                f"[x1, y1, x2, y2, ...]{hint}"
            )
        if len(ring) % 2:
            raise DatasetError(
                f"a ring of its mask has {len(ring)} numbers, an x without a y: "
                f"{_brief(ring)}; a ring is [x1, y1, x2, y2, ...]"
            )
        if len(ring) < 2 * MIN_POINTS:
            continue
        if not _fits(ring, size):
            return None
        kept.append(ring)
    return kept or None


def _fits(ring: list, size: tuple[int, int]) -> bool:
    """Return whether all points are in or near the image; infinity and NaN are not."""
    if min(ring) >= 0 and max(ring) <= min(size):  # fast path for most rings
        return sum(ring) >= 0  # False for NaN, which min() and max() may miss
    for values, side in ((ring[0::2], size[1]), (ring[1::2], size[0])):
        margin = 1 + MARGIN * side
        if not all(-margin <= value <= side + margin for value in values):
            return False
    return True


def _check_code(code: dict, size: tuple[int, int]) -> None:
    for key in ("size", "counts"):
        if key not in code:
            raise DatasetError(f"its run lengths lack `{key}`")
    if code["size"] != list(size) or not all(type(side) is int for side in code["size"]):
        raise DatasetError(
            f"its run lengths have size {_brief(code['size'])}, but its image has {list(size)} "
            "(height, width)"
        )
    counts = code["counts"]
    if isinstance(counts, str):
        runs = _decompressed(counts)
    elif isinstance(counts, list) and {int}.issuperset(map(type, counts)):
        runs = counts
    else:
        raise DatasetError(
            f"its run lengths have counts {_brief(counts)}; expected whole numbers or text"
        )
    if runs is None or min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        total = "cannot be read" if runs is None else f"sum to {sum(runs)}"
        raise DatasetError(
            f"its run lengths are damaged: they {total}, but its image has "
            f"{size[0]} x {size[1]} = {size[0] * size[1]} pixels"
        )


def _decompressed(counts: str) -> list[int] | None:
    """Return the run lengths of a compressed code, or None if it is invalid."""
    if _COMPRESSED.fullmatch(counts) is None:
        return None
    signs = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(signs < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    places = np.arange(len(signs)) - np.repeat(starts, lengths)
    values = np.add.reduceat((signs & 31) << (5 * places), starts)
    values -= np.where(signs[ends] & 16, 1 << (5 * lengths), 0)
    # From the fourth run on, the code stores the difference to the length two runs before.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values.tolist()
