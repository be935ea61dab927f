"""COCO's instance format, with run-length encoded masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from odise_mm.annotations.panoptic_io import describe_categories
from odise_mm.io.base import LabelWriter
from odise_mm.structures import SegmentationResult
from odise_mm.utils.files import write_json
from odise_mm.vocabulary import Vocabulary


class CocoWriter(LabelWriter):
    """Writes ``instances.json``, with all segments, things and stuff.

    Annotations have the additional fields ``score`` and, like panoptic categories, ``isthing`` and
    ``synonyms``.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        super().__init__(folder, vocabulary)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, result: SegmentationResult, stem: str) -> None:
        """Collect the segments of an image."""
        name = self.image_name(result)
        number = len(self.images) + 1
        self.images.append(
            dict(id=number, file_name=name, height=result.height, width=result.width)
        )
        self.annotations += result.to_coco(number, first_id=len(self.annotations) + 1)

    def close(self) -> None:
        """Write the file."""
        content = dict(
            images=self.images,
            annotations=self.annotations,
            categories=describe_categories(self.vocabulary),
        )
        write_json(self.folder / "instances.json", content)
