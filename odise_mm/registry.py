"""Registries of odise_mm, children of mmdet's, so that a config can use components of both.

``type='DiffusionBackbone'`` finds ours, ``type='mmdet.MSDeformAttnPixelDecoder'`` finds mmdet's.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from mmdet import registry as mmdet
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import Registry


def _child(parent: Registry, location: str, build: Callable | None = None) -> Registry:
    return Registry(
        parent.name, build_func=build, parent=parent, scope="odise_mm", locations=[location]
    )


def _build_dataset(cfg: Any, **kwargs: Any) -> Any:
    # Imported on first use, like the locations below: this module must not depend on the
    # components that it registers.
    return import_module("odise_mm.datasets.wrappers").build_dataset(cfg, **kwargs)


MODELS = _child(mmdet.MODELS, "odise_mm.models")
TASK_UTILS = _child(mmdet.TASK_UTILS, "odise_mm.models")
TRANSFORMS = _child(mmdet.TRANSFORMS, "odise_mm.datasets.transforms")
DATASETS = _child(mmdet.DATASETS, "odise_mm.datasets", _build_dataset)
DATA_SAMPLERS = _child(mmdet.DATA_SAMPLERS, "odise_mm.datasets")
METRICS = _child(mmdet.METRICS, "odise_mm.evaluation")
HOOKS = _child(mmdet.HOOKS, "odise_mm.engine")
LOOPS = _child(mmdet.LOOPS, "odise_mm.engine")
OPTIMIZERS = _child(mmdet.OPTIMIZERS, "odise_mm.engine")
OPTIM_WRAPPERS = _child(mmdet.OPTIM_WRAPPERS, "odise_mm.engine")
OPTIM_WRAPPER_CONSTRUCTORS = _child(mmdet.OPTIM_WRAPPER_CONSTRUCTORS, "odise_mm.engine")
RUNNERS = _child(MMENGINE_RUNNERS, "odise_mm.engine")
VISUALIZERS = _child(mmdet.VISUALIZERS, "odise_mm.visualization")
# We register nothing in these. Without them, mmengine warns when it builds its own components.
for _registry in (
    mmdet.PARAM_SCHEDULERS,
    mmdet.EVALUATOR,
    mmdet.LOG_PROCESSORS,
    mmdet.MODEL_WRAPPERS,
    mmdet.VISBACKENDS,
    mmdet.WEIGHT_INITIALIZERS,
):
    _child(_registry, "odise_mm.engine")
