"""Writers of segments in the formats of labeling and training tools; see docs/formats.md."""

from odise_mm.io.base import LabelWriter
from odise_mm.io.coco import CocoWriter
from odise_mm.io.labelme import LabelmeWriter
from odise_mm.io.masks import MaskWriter, SemanticWriter
from odise_mm.io.yolo import YoloWriter

FORMATS: dict[str, type[LabelWriter]] = {
    "coco": CocoWriter,
    "labelme": LabelmeWriter,
    "masks": MaskWriter,
    "semantic": SemanticWriter,
    "yolo": YoloWriter,
}
"""Writers by name. A plugin may add its own."""

__all__ = ["FORMATS", "LabelWriter"]
