"""Work for the tests of ``convert_all``, in a module that worker processes can import."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from odise_mm.converters.files import write_png
from odise_mm.converters.work import Item
from odise_mm.errors import DatasetError


def double(item: Item) -> dict[str, int]:
    """Write an image of the source's number; ``data``: None, seconds to sleep, or "bad"."""
    if item.data == "bad":
        raise DatasetError("nothing sensible in it")
    if isinstance(item.data, float):
        time.sleep(item.data)
    value = int(item.source.stem)
    write_png(item.output, np.full((2, 3), value, np.uint8))
    return dict(twice=2 * value)


def items_in(folder: Path, count: int, **special: object) -> list[Item]:
    """Return items 000.raw, 001.raw, ...; ``n4="bad"`` sets the data of number 4."""
    return [
        Item(folder / f"{i:03d}.raw", folder / f"{i:03d}.png", special.get(f"n{i}"))
        for i in range(count)
    ]
