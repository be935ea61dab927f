"""Open-vocabulary segmentation with diffusion models, on OpenMMLab.

Importing the package checks the versions of its dependencies and lets it work with mmcv-lite if
mmcv has no compiled operators (:mod:`odise_mm.utils.mmcv_ops`). To stay quick, the import loads
neither torch nor any OpenMMLab package: :class:`OpenVocabInferencer`, :class:`Vocabulary` and
:class:`SegmentationResult` are imported on first access.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from odise_mm.moved import offer_old_names as _offer_old_names
from odise_mm.utils.mmcv_ops import offer_stand_in as _offer_stand_in
from odise_mm.utils.requirements import check_requirements as _check_requirements
from odise_mm.version import __version__

if _TYPE_CHECKING:
    from odise_mm.apis import OpenVocabInferencer
    from odise_mm.structures import SegmentationResult
    from odise_mm.vocabulary import Vocabulary

_check_requirements()
_offer_stand_in()
_offer_old_names()

__all__ = ["OpenVocabInferencer", "SegmentationResult", "Vocabulary", "__version__"]
_HOMES = {
    "OpenVocabInferencer": "odise_mm.apis",
    "SegmentationResult": "odise_mm.structures",
    "Vocabulary": "odise_mm.vocabulary",
}


def __getattr__(name: str) -> _Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_import_module(_HOMES[name]), name)
    globals()[name] = value  # later accesses skip __getattr__
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
