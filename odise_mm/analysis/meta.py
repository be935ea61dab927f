"""Models on torch's meta device, where tensors have shapes but take no memory."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from odise_mm.config.building import build_model
from odise_mm.config.finding import load_config
from odise_mm.models import OpenVocabSegmentor
from odise_mm.models.heads.mask2former_head import Frame
from odise_mm.models.postprocess import semantic_inference
from odise_mm.models.segmentors.results import resize_for_results


def load_model_config(config: str, weights: bool = False) -> Config:
    """Load a config.

    Args:
        config: Config file, or its name under ``configs/``.
        weights: Keep the pre-trained weights that the model's parts name; else all are set to None.
    """
    cfg = load_config(config)
    if not weights:
        _drop_weights(cfg.model)
    return cfg


def short_edge(cfg: Config) -> int:
    """Return the short edge, in pixels, that the test pipeline resizes to; 512 if it doesn't."""
    scales = [step["scale"] for step in cfg.get("test_pipeline") or [] if "scale" in step]
    return min(scales[-1]) if scales and isinstance(scales[-1], (tuple, list)) else 512


def _drop_weights(node: Any) -> None:
    if isinstance(node, dict):
        if "weights" in node:
            node["weights"] = None
        for value in node.values():
            _drop_weights(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _drop_weights(value)


def build_on_meta(cfg: Config) -> OpenVocabSegmentor:
    """Build a config's model with every tensor on the meta device, in eval mode."""
    with torch.device("meta"):
        model = build_model(cfg)
    return model.to("meta").eval().requires_grad_(False)


class _SizesStayReal(TorchFunctionMode):
    """Mode that keeps integer tensors on the CPU, so that code can read sizes from them.

    mmdet's pixel decoder keeps the sizes of its feature maps in integer tensors, moves them to the
    features' device and reads them there, which the meta device cannot do. In this mode they stay
    on the CPU, and operations that mix both devices return meta tensors.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.to and not args[0].is_meta and not args[0].is_floating_point():
            return args[0]
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if any(t.is_meta for t in tensors):
            args = tuple(_to_meta(a) for a in args)
            kwargs = {key: _to_meta(a) for key, a in kwargs.items()}
        return func(*args, **kwargs)


def _to_meta(value: Any) -> Any:
    # Scalars on the CPU can be mixed with tensors on any device.
    if isinstance(value, Tensor) and not value.is_meta and value.ndim:
        return torch.empty_like(value, device="meta")
    return value


@contextmanager
def running_on_meta() -> Iterator[None]:
    """Context in which models from :func:`build_on_meta` can be called, without gradients."""
    with _SizesStayReal(), torch.no_grad():
        yield


def run_on_meta(model: OpenVocabSegmentor, height: int, width: int) -> Callable[[], None]:
    """Run the model on one image, up to the class probabilities of the masks.

    Args:
        model: Model from :func:`build_on_meta`.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        A function that does the post-processing. It leaves out panoptic and instance results,
        which depend on values and contain no matrix products to count.
    """
    divisor = getattr(model.data_preprocessor, "pad_size_divisor", 1)
    size = (height, width)
    padded = tuple(-(-side // divisor) * divisor for side in size)
    with running_on_meta():
        sample = DetDataSample(metainfo=dict(img_shape=size, pad_shape=padded))
        (found,) = model.segment(torch.empty(1, 3, *padded, device="meta"), [sample])
        probabilities = model.probabilities(found)

    def post_process() -> None:
        with running_on_meta():
            frame = (found.prediction.frames or [Frame(padded, size)])[0]
            masks = resize_for_results(found.prediction.masks[0], frame, size, model.test_cfg)
            if model.test_cfg["semantic"]:
                semantic_inference(probabilities[0], masks)

    return post_process


def flop_counter() -> FlopCounterMode:
    """Make torch's FLOP counter (2 per multiply-add) count the attention kernels of all devices.

    By default it ignores the flash attention kernel for CPUs, and the fused kernel for inference
    with multi-head attention, a single operator that includes the projections.
    """
    aten = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
            aten._native_multi_head_attention: _multi_head_flops,
            torch.ops.mkldnn._linear_pointwise: _linear_flops,
        },
    )


def _linear_flops(rows: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * math.prod(rows) * weight[0]


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any):
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(
    gradient: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any
):
    return sdpa_backward_flop_count(gradient, query, key, value)


def _multi_head_flops(
    query: Any, key: Any, value: Any, width: int, heads: int, *_: Any, **__: Any
) -> int:
    batch, length, _ = query
    source = key[1]
    projections = 2 * batch * width * width * (2 * length + 2 * source)
    return projections + 4 * batch * length * source * width
