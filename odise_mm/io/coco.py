"""COCO's instance format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from odise_mm.annotations.panoptic_io import describe_categories
from odise_mm.io.base import LabelWriter, polygons_of
from odise_mm.structures import SegmentationResult
from odise_mm.structures.geometry import edge_outlines_of
from odise_mm.utils.files import write_json
from odise_mm.vocabulary import Vocabulary


class CocoWriter(LabelWriter):
    """Writes ``instances.json``, with all segments, things and stuff, as run-length encoded masks.

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
        self.annotations += self.annotations_of(result, number, len(self.annotations) + 1)

    def annotations_of(
        self, result: SegmentationResult, image_id: int, first_id: int
    ) -> list[dict[str, Any]]:
        """Return the annotations of an image."""
        return result.to_coco(image_id, first_id=first_id)

    def close(self) -> None:
        """Write the file."""
        content = dict(
            images=self.images,
            annotations=self.annotations,
            categories=describe_categories(self.vocabulary),
        )
        write_json(self.folder / "instances.json", content)


class CocoPolygonWriter(CocoWriter):
    """Writes ``instances.json`` with polygons along the edges of pixels.

    An annotation has a polygon for each connected part. pycocotools fills the exact masks.
    """

    def annotations_of(
        self, result: SegmentationResult, image_id: int, first_id: int
    ) -> list[dict[str, Any]]:
        """Return the annotations of an image."""
        annotations = super().annotations_of(result, image_id, first_id)
        segments = [segment for segment in result.segments if result.mask(segment).any()]
        for annotation, segment in zip(annotations, segments, strict=True):
            lines = polygons_of(edge_outlines_of(result.mask(segment)))
            annotation["segmentation"] = [line.flatten().tolist() for line in lines]
        return annotations
