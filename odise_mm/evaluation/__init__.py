"""Metrics: panoptic quality, AP, mIoU, average recall."""

from odise_mm.evaluation.instance_ap import AverageRecall, InstanceAP, LVISInstanceAP
from odise_mm.evaluation.panoptic_quality import PanopticQuality
from odise_mm.evaluation.semantic_iou import SemanticIoU

__all__ = ["AverageRecall", "InstanceAP", "LVISInstanceAP", "PanopticQuality", "SemanticIoU"]
