"""Checks of a dataset's folders and images."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mmengine.logging import print_log

from odise_mm.annotations.reading import LAYOUT
from odise_mm.errors import DatasetError


def check_folder(path: str | None, what: str) -> None:
    """Check that a folder exists.

    Args:
        path: the folder.
        what: its content, for the message.

    Raises:
        DatasetError: the folder does not exist, or no path is given.
    """
    if not path or not os.path.isdir(path):
        raise DatasetError(f"{path or 'no path given'}: folder of {what} not found; {LAYOUT}")


def keep_usable(data: list[dict], usable: Sequence[bool], path: str, reason: str) -> list[dict]:
    """Drop the images that cannot be used, and log how many there are.

    Args:
        data: information of the images.
        usable: for each image, whether it can be used.
        path: annotation file, for messages.
        reason: why the dropped images cannot be used, for messages.

    Returns:
        The usable images.

    Raises:
        DatasetError: no image is left.
    """
    kept = [info for info, use in zip(data, usable, strict=True) if use]
    if not kept:
        why = f"all {len(data)} images are {reason}" if data else "it lists no images"
        raise DatasetError(f"{path}: the dataset is empty: {why}")
    if len(kept) < len(data):
        first = next(info for info, use in zip(data, usable, strict=True) if not use)
        print_log(
            f"{path}: {len(data) - len(kept)} of {len(data)} images are left out: {reason} "
            f"(the first: {first['img_path']})",
            logger="current",
        )
    return kept
