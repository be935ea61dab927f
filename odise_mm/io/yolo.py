"""Segmentation labels of Ultralytics' YOLO."""

from __future__ import annotations

import yaml

from odise_mm.io.base import LabelWriter, polygons_of
from odise_mm.structures import SegmentationResult
from odise_mm.utils.files import write_text

# Added to the index of a pixel, so that programs that round and programs that truncate to whole
# pixels (supervision, Ultralytics) get this index back.
_INSIDE = 0.25


class YoloWriter(LabelWriter):
    """Writes ``labels/STEM.txt`` per image and ``data.yaml``.

    A line is one connected part of a segment: class index, then x and y of the vertices as
    fractions of the image's size. The format has no place for parts that belong together.
    """

    def add(self, result: SegmentationResult, stem: str) -> None:
        """Write the labels of an image."""
        lines = []
        size = (result.width, result.height)
        for segment in result.segments:
            for line in polygons_of(result.outlines(segment)):
                fractions = (line + _INSIDE) / size
                numbers = " ".join(f"{value:.7g}" for value in fractions.flatten())
                lines.append(f"{segment.label} {numbers}\n")
        write_text(self.folder / "labels" / f"{stem}.txt", "".join(lines))

    def close(self) -> None:
        """Write the class names."""
        content = dict(
            path=".", train="images", val="images", names=dict(enumerate(self.vocabulary.names))
        )
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        write_text(self.folder / "data.yaml", text)
