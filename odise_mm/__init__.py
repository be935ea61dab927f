"""Open-vocabulary segmentation with diffusion models, on OpenMMLab.

Importing the package checks the versions of what it stands on and makes mmcv-lite do where there is
no compiled mmcv (:mod:`odise_mm.utils.mmcv_ops`). It imports neither torch nor any OpenMMLab
package, so that it stays quick.
"""

from odise_mm.utils.mmcv_ops import offer_stand_in as _offer_stand_in
from odise_mm.utils.requirements import check_requirements as _check_requirements
from odise_mm.version import __version__

_check_requirements()
_offer_stand_in()

__all__ = ["__version__"]
