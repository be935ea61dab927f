"""Area and box of masks, as COCO's JSON files have them."""

from __future__ import annotations

from typing import Any

import numpy as np

from odise_mm.annotations.masks import clean_mask, to_rle


def box_of(mask: np.ndarray) -> list[int]:
    """COCO's box x, y, width, height of a mask (H, W) with at least one pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]


def measured_mask(mask: Any, size: tuple[int, int]) -> tuple[dict, int, list[int]]:
    """Compressed run lengths, area and box of a mask in any of COCO's forms.

    Args:
        mask: polygons, or run lengths with counts as integers or as text; one of which nothing can
            be used is empty.
        size: the image's height and width.

    Raises:
        DatasetError: it is none of these, or of another size; the file is not named.
    """
    from pycocotools import mask as masks

    usable = clean_mask(mask, size)
    if usable is None:
        code = masks.encode(np.zeros(size, np.uint8, order="F"))
    else:
        code = to_rle(usable, size)
    return code, int(masks.area(code)), [int(v) for v in masks.toBbox(code)]
