"""Features of frozen latent diffusion models."""

from odise_mm.models.backbones.diffusion.backbone import DiffusionBackbone
from odise_mm.models.backbones.diffusion.condition import Condition
from odise_mm.models.backbones.diffusion.dit import DiTBackbone
from odise_mm.models.backbones.diffusion.taps import Taps

__all__ = ["Condition", "DiTBackbone", "DiffusionBackbone", "Taps"]
