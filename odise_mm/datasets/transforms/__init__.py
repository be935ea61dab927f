"""Transforms of data pipelines."""

from odise_mm.datasets.transforms.loading import LoadImage, ResizeKeepRatio

__all__ = ["LoadImage", "ResizeKeepRatio"]
