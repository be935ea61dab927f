"""Masks as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from odise_mm.errors import OutputError
from odise_mm.io.base import LabelWriter
from odise_mm.structures import SegmentationResult
from odise_mm.utils.files import atomic_writer, write_json
from odise_mm.vocabulary import Vocabulary

NO_CLASS = 255
"""Value of pixels without a class, as in the datasets of mmseg."""


class MaskWriter(LabelWriter):
    """Writes one black and white PNG per segment, ``STEM/ID.png``, and ``masks.json``."""

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        super().__init__(folder, vocabulary)
        self.entries: list[dict[str, Any]] = []

    def add(self, result: SegmentationResult, stem: str) -> None:
        """Write the masks of an image."""
        for segment in result.segments:
            mask = result.mask(segment)
            if not mask.any():
                continue
            name = f"{stem}/{segment.id}.png"
            _write_png(self.folder / name, Image.fromarray(mask.astype(np.uint8) * 255))
            entry = dict(file=name, image=self.image_name(result))
            self.entries.append(entry | segment.to_dict() | dict(box=result.box(segment)))

    def close(self) -> None:
        """Write the list of masks: file, image, fields of the segment, and its box.

        The box is left, top, right and bottom, the latter two exclusive.
        """
        write_json(self.folder / "masks.json", self.entries)


class SemanticWriter(LabelWriter):
    """Writes class indices as PNG files, ``STEM.png``, and the class names as ``classes.txt``.

    Up to 255 classes, the files have 8 bits per pixel and a palette, and 255 means no class. With
    more classes, they have 16 bits per pixel, and 65535 means no class.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        super().__init__(folder, vocabulary)
        if len(vocabulary) > 65535:
            raise OutputError(f"semantic: {len(vocabulary)} classes do not fit into 16 bits")
        self.palette: list[int] | None = None
        if len(vocabulary) <= NO_CLASS:
            from odise_mm.visualization import class_colors

            colors = class_colors(vocabulary.names).flatten().tolist()
            self.palette = colors + [0] * (3 * 256 - len(colors))

    def add(self, result: SegmentationResult, stem: str) -> None:
        """Write the classes of an image's pixels."""
        ids = result.require_panoptic()
        table = np.full(int(ids.max(initial=0)) + 1, NO_CLASS if self.palette else 65535)
        for segment in result.segments:
            if segment.id < len(table):
                table[segment.id] = segment.label
        classes = table[ids]
        if self.palette is None:
            image = Image.fromarray(classes.astype(np.uint16))
        else:
            image = Image.fromarray(classes.astype(np.uint8))
            image.putpalette(self.palette)
        _write_png(self.folder / f"{stem}.png", image)

    def close(self) -> None:
        """Write the class names, one per line."""
        with atomic_writer(self.folder / "classes.txt") as file:
            file.write("".join(f"{name}\n" for name in self.vocabulary.names).encode())


def _write_png(path: Path, image: Image.Image) -> None:
    with atomic_writer(path, durable=False) as file:
        image.save(file, format="PNG")
