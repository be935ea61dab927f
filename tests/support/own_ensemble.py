"""An ensemble outside the package, as a user would write one."""

from odise_mm.models import GeometricEnsemble
from odise_mm.registry import MODELS


@MODELS.register_module()
class OwnEnsemble(GeometricEnsemble):
    """GeometricEnsemble under another name."""
