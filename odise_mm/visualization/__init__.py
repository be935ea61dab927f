"""Drawing of results."""

from odise_mm.moved import renamed
from odise_mm.visualization.colors import class_colors
from odise_mm.visualization.panoptic import draw_panoptic
from odise_mm.visualization.visualizer import OpenVocabVisualizer

__getattr__ = renamed(__name__)
__all__ = ["OpenVocabVisualizer", "class_colors", "draw_panoptic"]
