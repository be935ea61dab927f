"""Registries of odise_mm: children of mmdet's, so that a config may name parts of either.

``type='DiffusionBackbone'`` finds ours; ``type='mmdet.MSDeformAttnPixelDecoder'`` finds mmdet's.
"""

from mmdet.registry import DATASETS as MMDET_DATASETS
from mmdet.registry import HOOKS as MMDET_HOOKS
from mmdet.registry import METRICS as MMDET_METRICS
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.registry import TRANSFORMS as MMDET_TRANSFORMS
from mmdet.registry import VISUALIZERS as MMDET_VISUALIZERS
from mmengine.registry import Registry

MODELS = Registry("model", parent=MMDET_MODELS, scope="odise_mm", locations=["odise_mm.models"])
DATASETS = Registry(
    "dataset", parent=MMDET_DATASETS, scope="odise_mm", locations=["odise_mm.datasets"]
)
TRANSFORMS = Registry(
    "transform",
    parent=MMDET_TRANSFORMS,
    scope="odise_mm",
    locations=["odise_mm.datasets.transforms"],
)
HOOKS = Registry("hook", parent=MMDET_HOOKS, scope="odise_mm", locations=["odise_mm.engine"])
METRICS = Registry(
    "metric", parent=MMDET_METRICS, scope="odise_mm", locations=["odise_mm.evaluation"]
)
VISUALIZERS = Registry(
    "visualizer",
    parent=MMDET_VISUALIZERS,
    scope="odise_mm",
    locations=["odise_mm.visualization"],
)
