"""Pictures of results."""

from odise_mm.visualization.colours import class_colours
from odise_mm.visualization.panoptic import draw_panoptic
from odise_mm.visualization.visualizer import OpenVocabVisualizer

__all__ = ["OpenVocabVisualizer", "class_colours", "draw_panoptic"]
