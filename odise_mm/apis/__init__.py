"""The one door for people and programs: :class:`OpenVocabInferencer`."""

from odise_mm.apis.building import ConfigError, DeviceError
from odise_mm.apis.inferencer import OpenVocabInferencer
from odise_mm.apis.memory import DeviceMemoryError

__all__ = ["ConfigError", "DeviceError", "DeviceMemoryError", "OpenVocabInferencer"]
