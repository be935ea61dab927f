"""Registries of odise_mm: children of mmdet's, so that a config may name parts of either.

``type='DiffusionBackbone'`` finds ours; ``type='mmdet.MSDeformAttnPixelDecoder'`` finds mmdet's.
"""

from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.registry import TRANSFORMS as MMDET_TRANSFORMS
from mmdet.registry import VISUALIZERS as MMDET_VISUALIZERS
from mmengine.registry import Registry

from odise_mm.utils.resume import allow_training_state

allow_training_state()  # whoever resumes builds a model first

MODELS = Registry("model", parent=MMDET_MODELS, scope="odise_mm", locations=["odise_mm.models"])
TRANSFORMS = Registry(
    "transform",
    parent=MMDET_TRANSFORMS,
    scope="odise_mm",
    locations=["odise_mm.datasets.transforms"],
)
VISUALIZERS = Registry(
    "visualizer",
    parent=MMDET_VISUALIZERS,
    scope="odise_mm",
    locations=["odise_mm.visualization"],
)
