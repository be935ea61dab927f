"""Transforms for data pipelines."""

from odise_mm.datasets.transforms.loading import LargeScaleJitter, LoadImage, ResizeKeepRatio
from odise_mm.datasets.transforms.panoptic import DrawWords, LoadPanopticMap, PanopticMapToMasks

__all__ = [
    "DrawWords",
    "LargeScaleJitter",
    "LoadImage",
    "LoadPanopticMap",
    "PanopticMapToMasks",
    "ResizeKeepRatio",
]
