"""The images of a dataset: where they lie, and which of them can be used."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mmengine.logging import print_log

from odise_mm.annotations.reading import LAYOUT
from odise_mm.errors import DatasetError


def check_folder(path: str | None, what: str) -> None:
    """
    Raises:
        DatasetError: there is no such folder.
    """
    if not path or not os.path.isdir(path):
        raise DatasetError(f"{path or 'no path given'}: no such folder of {what}; {LAYOUT}")


def keep_usable(data: list[dict], usable: Sequence[bool], path: str, reason: str) -> list[dict]:
    """The images that can be used; the log says how many cannot.

    Raises:
        DatasetError: none is left.
    """
    kept = [info for info, use in zip(data, usable, strict=True) if use]
    if not kept:
        why = f"all {len(data)} images are {reason}" if data else "it lists no image"
        raise DatasetError(f"{path}: the dataset is empty, {why}")
    if len(kept) < len(data):
        first = next(info for info, use in zip(data, usable, strict=True) if not use)
        print_log(
            f"{path}: {len(data) - len(kept)} of {len(data)} images are left out, {reason} "
            f"(the first: {first['img_path']})",
            logger="current",
        )
    return kept
