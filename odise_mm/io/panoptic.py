"""COCO's panoptic format."""

from __future__ import annotations

from pathlib import Path

from odise_mm.annotations.panoptic_io import CocoPanopticWriter
from odise_mm.io.base import LabelWriter
from odise_mm.structures import SegmentationResult
from odise_mm.vocabulary import Vocabulary


class PanopticWriter(LabelWriter):
    """Writes ``panoptic.json`` and ``panoptic/STEM.png``, with category ids from 1."""

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        super().__init__(folder, vocabulary)
        self.writer = CocoPanopticWriter(folder / "panoptic.json", vocabulary)

    def add(self, result: SegmentationResult, stem: str) -> None:
        """Write the map of an image."""
        self.writer.add(result, stem, image_name=self.image_name(result))

    def close(self) -> None:
        """Write the JSON file."""
        self.writer.close()
