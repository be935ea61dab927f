"""What people hand to the inferencer, turned into single pictures; nothing is decoded here."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from odise_mm.utils.image import IMAGE_EXTENSIONS, ImageError, ImageSource


@dataclass(frozen=True)
class Source:
    """One picture to come."""

    name: str
    """For messages: the path, or "images[3]" for what is in memory."""
    value: Any
    """A path, an array, a PIL image, or something that the reader will refuse."""
    path: str | None = None
    error: ImageError | None = None
    """Why there is no picture at all: an empty folder, a pattern that matches nothing."""


def is_single(images: Any) -> bool:
    """Whether the argument is one picture rather than a folder, a pattern or a list."""
    if isinstance(images, (np.ndarray, Image.Image)):
        return True
    if isinstance(images, (str, os.PathLike)):
        path = os.fspath(images)
        return not os.path.isdir(path) and (os.path.exists(path) or not glob.has_magic(path))
    return False


def expand(images: ImageSource | Iterable[ImageSource]) -> Sequence[Source] | Iterator[Source]:
    """All pictures of an argument, in order; folders and patterns sorted by name.

    Args:
        images: a path, a folder (its pictures, not those of folders in it), a glob pattern (``**``
            for any depth), an array, a PIL image, or an iterable of these.

    Returns:
        A list, or an iterator when ``images`` is one: it is then consumed as pictures are needed.

    Raises:
        TypeError: none of these.
    """
    if isinstance(images, torch.Tensor):  # which is iterable, row by row
        raise TypeError(
            "images is a torch tensor; give a numpy array (H, W, 3), e.g. "
            "tensor.permute(1, 2, 0).cpu().numpy() with channel_order='rgb', or a list of these"
        )
    if isinstance(images, (str, os.PathLike, np.ndarray, Image.Image)):
        return list(_expand_one(images, "image"))
    if isinstance(images, Iterator):
        return _expand_all(images)
    if isinstance(images, Iterable):
        return list(_expand_all(images))
    raise TypeError(
        f"images is a {type(images).__name__}; give a path, a folder, a glob pattern, an array, a "
        "PIL image or a list of these"
    )


def _expand_all(images: Iterable[ImageSource]) -> Iterator[Source]:
    for index, image in enumerate(images):
        yield from _expand_one(image, f"images[{index}]")


def _expand_one(image: ImageSource, name: str) -> Iterator[Source]:
    if not isinstance(image, (str, os.PathLike)):
        filename = getattr(image, "filename", "") if isinstance(image, Image.Image) else ""
        yield Source(name=f"{name} ({filename})" if filename else name, value=image)
        return
    path = os.fspath(image)
    if os.path.isdir(path):
        found = sorted(str(p) for p in Path(path).iterdir() if p.suffix.lower() in IMAGE_EXTENSIONS)
        if not found:
            error = ImageError(
                f"{path}: no pictures in this folder (looked for "
                f"{', '.join(sorted(IMAGE_EXTENSIONS))})"
            )
            yield Source(path, None, path, error)
    elif not os.path.exists(path) and glob.has_magic(path):
        found = sorted(p for p in glob.iglob(path, recursive=True) if os.path.isfile(p))
        if not found:
            yield Source(path, None, path, ImageError(f"{path}: no file matches this pattern"))
    else:
        found = [path]
    for file in found:
        yield Source(file, file, file)
