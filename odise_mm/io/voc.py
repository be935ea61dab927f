"""Pascal VOC's folders."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from odise_mm.errors import OutputError
from odise_mm.io.base import LabelWriter
from odise_mm.io.xml import add, write_xml
from odise_mm.structures import SegmentationResult
from odise_mm.utils.files import atomic_writer, write_text
from odise_mm.vocabulary import Vocabulary

_MOST = 254
"""Largest class or object number; 0 is the background and 255 is "ignored"."""


class VocWriter(LabelWriter):
    """Writes the folders of Pascal VOC, without the images.

    - ``SegmentationClass/STEM.png``: class index + 1, 0 without a segment, with VOC's palette.
    - ``SegmentationObject/STEM.png``: number of the segment, from 1.
    - ``Annotations/STEM.xml``: the segments in the order of their numbers, with boxes. As in VOC,
      pixels are counted from 1, and the last row and column belong to the box.
    - ``ImageSets/Segmentation/default.txt`` and ``ImageSets/Main/default.txt``: the stems.
    - ``labelmap.txt``: class names and colors, as datumaro and CVAT read them.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        super().__init__(folder, vocabulary)
        if len(vocabulary) > _MOST:
            raise OutputError(
                f"voc: {len(vocabulary)} classes do not fit into VOC's 8-bit images, which have "
                f"room for {_MOST}; choose another format"
            )
        self.stems: list[str] = []

    def add(self, result: SegmentationResult, stem: str) -> None:
        """Write the files of an image."""
        ids = result.require_panoptic()
        segments = [segment for segment in result.segments if (ids == segment.id).any()]
        if len(segments) > _MOST:
            raise OutputError(
                f"voc: {len(segments)} segments of {result.image_name} do not fit into VOC's 8-bit "
                f"images, which have room for {_MOST}; choose another format"
            )
        root = ElementTree.Element("annotation")
        name = self.image_name(result)
        add(root, "folder", os.path.dirname(name))
        add(root, "filename", os.path.basename(name))
        size = add(root, "size")
        for tag, value in (("width", result.width), ("height", result.height), ("depth", 3)):
            add(size, tag, value)
        add(root, "segmented", 1)
        classes, objects = np.zeros_like(ids, np.uint8), np.zeros_like(ids, np.uint8)
        for number, segment in enumerate(segments, start=1):
            mask = ids == segment.id
            classes[mask] = segment.label + 1
            objects[mask] = number
            described = add(root, "object")
            add(described, "name", segment.name)
            for tag, text in (("pose", "Unspecified"), ("truncated", 0), ("difficult", 0)):
                add(described, tag, text)
            left, top, right, bottom = result.box(segment)
            box = add(described, "bndbox")
            corners = dict(xmin=left + 1, ymin=top + 1, xmax=right, ymax=bottom)
            for tag, value in corners.items():
                add(box, tag, value)
        write_xml(self.folder / f"Annotations/{stem}.xml", root)
        for kind, pixels in (("Class", classes), ("Object", objects)):
            image = Image.fromarray(pixels)
            image.putpalette(palette().flatten().tolist())
            path = self.folder / f"Segmentation{kind}/{stem}.png"
            with atomic_writer(path, durable=False) as file:
                image.save(file, format="PNG")
        self.stems.append(stem)

    def close(self) -> None:
        """Write the lists of images and classes."""
        for task in ("Segmentation", "Main"):
            path = self.folder / f"ImageSets/{task}/default.txt"
            write_text(path, "".join(f"{stem}\n" for stem in self.stems))
        names = ["background", *self.vocabulary.names]
        lines = ["# label:color_rgb:parts:actions"]
        for name, color in zip(names, palette(), strict=False):
            lines.append(f"{name}:{','.join(map(str, color))}::")
        write_text(self.folder / "labelmap.txt", "".join(f"{line}\n" for line in lines))


def palette() -> np.ndarray:
    """Return the colors of VOC's PNG files, (256, 3) uint8 RGB.

    The bits of an index are dealt to red, green and blue in turn, the lowest to red, and become the
    color's bits from the highest down.
    """
    index = np.arange(256)
    colors = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        colors[:, bit % 3] |= ((index >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return colors
