"""Labeling of large collections of images: in shards, by any number of processes, resumable."""

from odise_mm.labeling.label import LabelSummary, label_images

__all__ = ["LabelSummary", "label_images"]
