"""Annotation files of LabelMe."""

from __future__ import annotations

import os
from typing import Any

from odise_mm.io.base import LabelWriter, polygons_of
from odise_mm.structures import SegmentationResult
from odise_mm.utils.files import write_json


class LabelmeWriter(LabelWriter):
    """Writes ``STEM.json`` per image, with one polygon per connected part.

    Parts of one segment share ``group_id``. The files name the images and don't contain them: put
    them beside the images.
    """

    def add(self, result: SegmentationResult, stem: str) -> None:
        """Write the file of an image."""
        shapes = [
            dict(
                label=segment.name,
                points=line.astype(float).tolist(),
                group_id=segment.id,
                shape_type="polygon",
                flags={},
                description=f"score {segment.score:.3f}",
            )
            for segment in result.segments
            for line in polygons_of(result.outlines(segment))
        ]
        content: dict[str, Any] = dict(
            version="5.5.0",
            flags={},
            shapes=shapes,
            imagePath=os.path.basename(self.image_name(result)),
            imageData=None,
            imageHeight=result.height,
            imageWidth=result.width,
        )
        write_json(self.folder / f"{stem}.json", content, indent=2)
