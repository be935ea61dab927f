"""Open-vocabulary segmentation with diffusion models, on OpenMMLab.

Importing the package checks the versions of what it stands on and prepares mmcv and mmengine (see
:mod:`odise_mm.utils.mmcv_ops` and :mod:`odise_mm.utils.resume`). It imports neither torch nor any
OpenMMLab package, so that it stays quick: both preparations wait until mmcv or mmengine is used.
"""

from odise_mm.utils.mmcv_ops import install as _install_mmcv_ops
from odise_mm.utils.requirements import check_requirements as _check_requirements
from odise_mm.utils.resume import install as _install_resume
from odise_mm.version import __version__

_check_requirements()
_install_mmcv_ops()
_install_resume()

__all__ = ["__version__"]
