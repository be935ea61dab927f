"""Label Studio's predictions, with brush masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np

from odise_mm.io.base import LabelWriter
from odise_mm.io.xml import write_xml
from odise_mm.structures import SegmentationResult
from odise_mm.utils.files import write_json
from odise_mm.version import __version__
from odise_mm.visualization import class_colors
from odise_mm.vocabulary import Vocabulary

MODEL_VERSION = f"odise_mm {__version__}"
"""Origin of predictions, as Label Studio shows it."""
# Numbers of bits in which the length of a run is stored; each run uses the smallest that fits.
_LENGTH_BITS = (3, 4, 8, 16)


class LabelStudioWriter(LabelWriter):
    """Writes ``tasks.json``, with one prediction per image, and the labeling config ``config.xml``.

    The tasks refer to images as files below the document root of Label Studio's local storage.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        super().__init__(folder, vocabulary)
        self.tasks: list[dict[str, Any]] = []

    def add(self, result: SegmentationResult, stem: str) -> None:
        """Collect the segments of an image."""
        prediction = describe_prediction(result, self.vocabulary.names)
        file = quote(self.image_name(result), errors="surrogateescape")
        data = dict(image=f"/data/local-files/?d={file}")
        self.tasks.append(dict(data=data, predictions=[prediction]))

    def close(self) -> None:
        """Write the files."""
        view = ElementTree.Element("View")
        ElementTree.SubElement(view, "Image", name="image", value="$image", zoom="true")
        labels = ElementTree.SubElement(view, "BrushLabels", name="tag", toName="image")
        names = self.vocabulary.names
        for name, color in zip(names, class_colors(names), strict=True):
            background = "#{:02x}{:02x}{:02x}".format(*color)
            ElementTree.SubElement(labels, "Label", value=name, background=background)
        write_xml(self.folder / "config.xml", view)
        write_json(self.folder / "tasks.json", self.tasks)


def describe_prediction(
    result: SegmentationResult,
    labels: Sequence[str],
    from_name: str = "tag",
    to_name: str = "image",
) -> dict[str, Any]:
    """Return a result as a prediction of Label Studio.

    Args:
        result: Result with a panoptic map.
        labels: Labels of the labeling config, by class index.
        from_name: Name of the ``BrushLabels`` in the labeling config.
        to_name: Name of the ``Image`` in the labeling config.
    """
    regions = [
        dict(
            id=str(segment.id),
            from_name=from_name,
            to_name=to_name,
            type="brushlabels",
            original_width=result.width,
            original_height=result.height,
            image_rotation=0,
            score=segment.score,
            value=dict(
                format="rle",
                rle=encode_brush(result.mask(segment)),
                brushlabels=[labels[segment.label]],
            ),
        )
        for segment in result.segments
        if result.mask(segment).any()
    ]
    prediction: dict[str, Any] = dict(model_version=MODEL_VERSION, result=regions)
    if regions:
        prediction["score"] = float(np.mean([region["score"] for region in regions]))
    return prediction


def encode_brush(mask: np.ndarray) -> list[int]:
    """Return a mask as the bytes of Label Studio's brush regions.

    They are four equal channels (red, green, blue, alpha), 255 inside and 0 outside of the mask, in
    the packed form of thi.ng/umbrella's rle-pack. The header has 32 bits for the number of values,
    5 bits for the bits per value - 1, and four times 4 bits for sizes of lengths, in bits - 1. A
    run is a bit 1, 2 bits that choose the size of the length, the length - 1, and the value.

    Args:
        mask: (H, W) bool.
    """
    values = mask.ravel()
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    starts = np.concatenate([[0], edges])
    lengths = 4 * np.diff(starts, append=len(values))
    bits = [f"{4 * len(values):032b}", f"{8 - 1:05b}"]
    bits += [f"{width - 1:04b}" for width in _LENGTH_BITS]
    longest = 1 << _LENGTH_BITS[-1]
    for inside, length in zip(values[starts].tolist(), lengths.tolist(), strict=True):
        value = "11111111" if inside else "00000000"
        for done in range(0, length, longest):
            count = min(longest, length - done) - 1
            size = next(i for i, width in enumerate(_LENGTH_BITS) if count < 1 << width)
            bits.append(f"1{size:02b}{count:0{_LENGTH_BITS[size]}b}{value}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))
