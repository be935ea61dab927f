"""Public interface for inference: :class:`OpenVocabInferencer` and its errors."""

from odise_mm.apis.inferencer import OpenVocabInferencer
from odise_mm.errors import ConfigError, DeviceError, DeviceMemoryError, OdiseError

__all__ = ["ConfigError", "DeviceError", "DeviceMemoryError", "OdiseError", "OpenVocabInferencer"]
