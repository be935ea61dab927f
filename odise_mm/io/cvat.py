"""CVAT for images 1.1."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from odise_mm.io.base import LabelWriter, polygons_of
from odise_mm.io.xml import add, write_xml
from odise_mm.structures import Segment, SegmentationResult
from odise_mm.structures.geometry import edge_outlines_of
from odise_mm.visualization import class_colors
from odise_mm.vocabulary import Vocabulary


class CvatWriter(LabelWriter):
    """Writes ``annotations.xml`` with one mask per segment."""

    kind = "mask"

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        super().__init__(folder, vocabulary)
        self.root = ElementTree.Element("annotations")
        add(self.root, "version", "1.1")
        labels = add(add(add(self.root, "meta"), "task"), "labels")
        for name, color in zip(vocabulary.names, class_colors(vocabulary.names), strict=True):
            label = add(labels, "label")
            add(label, "name", name)
            add(label, "color", "#{:02x}{:02x}{:02x}".format(*color))
            add(label, "attributes")
        self.images = 0

    def add(self, result: SegmentationResult, stem: str) -> None:
        """Collect the segments of an image."""
        image = ElementTree.SubElement(
            self.root,
            "image",
            id=str(self.images),
            name=self.image_name(result),
            width=str(result.width),
            height=str(result.height),
        )
        self.images += 1
        for segment in result.segments:
            if result.mask(segment).any():
                self.add_segment(image, result, segment)

    def add_segment(
        self, image: ElementTree.Element, result: SegmentationResult, segment: Segment
    ) -> None:
        """Append a segment, which has pixels, to its image."""
        left, top, right, bottom = result.box(segment)
        counts = run_lengths(result.mask(segment)[top:bottom, left:right])
        place = dict(left=left, top=top, width=right - left, height=bottom - top)
        self.add_shape(image, segment, rle=", ".join(map(str, counts)), **place)

    def add_shape(self, image: ElementTree.Element, segment: Segment, **fields: object) -> None:
        """Append a shape of :attr:`kind` to an image."""
        common = dict(label=segment.name, source="auto", occluded=0, z_order=0)
        attributes = {name: str(value) for name, value in (common | fields).items()}
        ElementTree.SubElement(image, self.kind, attributes)

    def close(self) -> None:
        """Write the file."""
        write_xml(self.folder / "annotations.xml", self.root)


class CvatPolygonWriter(CvatWriter):
    """Writes ``annotations.xml`` with one polygon per connected part, along the edges of pixels.

    The parts of a segment with several ones share ``group_id``, which is unique in an image.
    """

    kind = "polygon"

    def add_segment(
        self, image: ElementTree.Element, result: SegmentationResult, segment: Segment
    ) -> None:
        """Append the parts of a segment."""
        lines = polygons_of(edge_outlines_of(result.mask(segment)))
        group = dict(group_id=segment.id) if len(lines) > 1 else {}
        for line in lines:
            points = ";".join(f"{x},{y}" for x, y in line)
            self.add_shape(image, segment, points=points, **group)


def run_lengths(mask: np.ndarray) -> list[int]:
    """Return the lengths of runs, row by row, starting with pixels outside of the mask.

    Args:
        mask: (H, W) bool.
    """
    pixels = mask.ravel()
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    first = [0] if pixels[0] else []  # there are no pixels outside before the first one inside
    return first + np.diff(edges, prepend=0, append=len(pixels)).tolist()
