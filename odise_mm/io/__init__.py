"""Writers of segments in the formats of labeling and training tools; see docs/formats.md."""

from odise_mm.io.base import LabelWriter
from odise_mm.io.coco import CocoPolygonWriter, CocoWriter
from odise_mm.io.cvat import CvatPolygonWriter, CvatWriter
from odise_mm.io.labelme import LabelmeMaskWriter, LabelmeWriter
from odise_mm.io.labelstudio import LabelStudioWriter
from odise_mm.io.masks import MaskWriter, SemanticWriter
from odise_mm.io.panoptic import PanopticWriter
from odise_mm.io.tables import JsonlWriter, NpzWriter, ParquetWriter
from odise_mm.io.voc import VocWriter
from odise_mm.io.yolo import YoloWriter

FORMATS: dict[str, type[LabelWriter]] = {
    "coco": CocoWriter,
    "coco_panoptic": PanopticWriter,
    "coco_polygons": CocoPolygonWriter,
    "cvat": CvatWriter,
    "cvat_polygons": CvatPolygonWriter,
    "jsonl": JsonlWriter,
    "labelme": LabelmeWriter,
    "labelme_masks": LabelmeMaskWriter,
    "labelstudio": LabelStudioWriter,
    "masks": MaskWriter,
    "npz": NpzWriter,
    "parquet": ParquetWriter,
    "semantic": SemanticWriter,
    "voc": VocWriter,
    "yolo": YoloWriter,
}
"""Writers by name. A plugin may add its own."""

__all__ = ["FORMATS", "LabelWriter"]
