"""Annotation files of LabelMe."""

from __future__ import annotations

import base64
import io
import os
from typing import Any

import numpy as np
from PIL import Image

from odise_mm.io.base import LabelWriter, polygons_of
from odise_mm.structures import Segment, SegmentationResult
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
                group_id=segment.id,
                flags={},
                description=f"score {segment.score:.3f}",
                **shape,
            )
            for segment in result.segments
            if result.mask(segment).any()
            for shape in self.shapes(result, segment)
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

    def shapes(self, result: SegmentationResult, segment: Segment) -> list[dict[str, Any]]:
        """Return the fields of LabelMe's shapes that make up a segment with pixels."""
        return [
            dict(shape_type="polygon", points=line.astype(float).tolist())
            for line in polygons_of(result.outlines(segment))
        ]


class LabelmeMaskWriter(LabelmeWriter):
    """Writes ``STEM.json`` per image, with one mask per segment.

    A mask is a PNG file, encoded in base64, of the segment's box. LabelMe has these since 5.3.
    """

    def shapes(self, result: SegmentationResult, segment: Segment) -> list[dict[str, Any]]:
        """Return the shape of a segment; its points are the first and the last pixel of the box."""
        left, top, right, bottom = result.box(segment)
        file = io.BytesIO()
        mask = result.mask(segment)[top:bottom, left:right]
        Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
        points = [[float(left), float(top)], [float(right - 1), float(bottom - 1)]]
        encoded = base64.b64encode(file.getvalue()).decode("ascii")
        return [dict(shape_type="mask", points=points, mask=encoded)]
