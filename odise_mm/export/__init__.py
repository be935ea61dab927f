"""Export of whole models: torch.export programs and ONNX graphs, with what is needed to use them.

See docs/export.md.
"""

from odise_mm.export.exporting import FORMATS, TOLERANCE, Exported, export_model, scale_of
from odise_mm.export.names import write_names

__all__ = ["FORMATS", "TOLERANCE", "Exported", "export_model", "scale_of", "write_names"]
