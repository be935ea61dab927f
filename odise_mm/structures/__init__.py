"""Segmentation results of one image, and their forms in other libraries."""

from odise_mm.structures.queries import REASONS, MaskFate, Queries, ResultSettings
from odise_mm.structures.result import (
    INSTANCE_OFFSET,
    Evidence,
    Instances,
    Segment,
    SegmentationResult,
    to_mmdet_panoptic,
)

__all__ = [
    "INSTANCE_OFFSET",
    "REASONS",
    "Evidence",
    "Instances",
    "MaskFate",
    "Queries",
    "ResultSettings",
    "Segment",
    "SegmentationResult",
    "to_mmdet_panoptic",
]
