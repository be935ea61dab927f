"""Areas and boxes of masks in COCO's format."""

from __future__ import annotations

from typing import Any

import numpy as np

from odise_mm.annotations.masks import clean_mask, to_rle


def box_of(mask: np.ndarray) -> list[int]:
    """Return the box (x, y, width, height) of an (H, W) mask with at least one pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]


def measured_mask(mask: Any, size: tuple[int, int]) -> tuple[dict, int, list[int]]:
    """Return compressed run lengths, area and box of a mask in any of COCO's formats.

    Args:
        mask: Polygons, or run lengths with counts as integers or text. A mask without usable
            content becomes an empty mask.
        size: Height and width of the image.

    Raises:
        DatasetError: The mask has another format or another size. The message does not name the
            file.
    """
    from pycocotools import mask as masks

    usable = clean_mask(mask, size)
    if usable is None:
        run_lengths = masks.encode(np.zeros(size, np.uint8, order="F"))
    else:
        run_lengths = to_rle(usable, size)
    return run_lengths, int(masks.area(run_lengths)), [int(v) for v in masks.toBbox(run_lengths)]
