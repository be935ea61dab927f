"""A backbone's feature maps of a whole image, before the neck, and their clusters."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from odise_mm.analysis.clustering import cluster
from odise_mm.checkpoints.published import from_published, is_published, known_names
from odise_mm.checkpoints.safe_loading import differences, load_state_dict
from odise_mm.config.building import build_part, config_errors, make_test_pipeline
from odise_mm.config.walking import named_weights
from odise_mm.errors import CheckpointError, ConfigError
from odise_mm.models.segmentors.open_vocab_segmentor import OpenVocabSegmentor
from odise_mm.models.segmentors.tiling import TileGrid
from odise_mm.registry import MODELS
from odise_mm.utils.precision import autocast

Step = Callable[[int, int], None]


def build_parts(cfg: Config, weights: str | None = None) -> tuple[nn.Module, bool]:
    """Build only the backbone and the captioner of a model.

    Args:
        cfg: Config of the model.
        weights: Checkpoint of the trained parts. None leaves them as at the start of training.

    Returns:
        A module with the children ``backbone`` and ``captioner`` (which may be None), and whether
        all of its weights are random.

    Raises:
        ConfigError: A part cannot be built.
        CheckpointError: The weights are missing or do not fit the model.
    """
    init_default_scope(cfg.get("default_scope", "odise_mm"))
    model_cfg = cfg.get("model") or {}
    if not model_cfg.get("backbone"):
        raise ConfigError(f"{cfg.filename}: the config has no `model.backbone`")
    used = [model_cfg.backbone, *([model_cfg.captioner] if model_cfg.get("captioner") else [])]
    parts = nn.Module()
    shared: dict[str, Any] = {}
    with config_errors(cfg), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classes = [MODELS.get(part["type"]) for part in used]
        wanted = {name for cls in classes if cls for name in inspect.signature(cls).parameters}
        if {"clip", "text_encoder"} & wanted and model_cfg.get("clip"):
            used.append(model_cfg.clip)
            # A child module, so that it moves to the device together with the parts that share it.
            parts.clip = shared["clip"] = build_part(model_cfg.clip, MODELS)
            encoder = model_cfg.get("text_encoder") or {"type": "TextEncoder"}
            shared["text_encoder"] = build_part(encoder, MODELS, **shared)
        parts.backbone = build_part(model_cfg.backbone, MODELS, **shared)
        shared |= parts.backbone.describe()
        parts.captioner = None
        if model_cfg.get("captioner"):
            parts.captioner = build_part(model_cfg.captioner, MODELS, **shared)
    if weights is not None:
        _load_trained(parts, weights)
    return parts.eval(), not any(named_weights(part) for part in used)


def _load_trained(parts: nn.Module, file: str) -> None:
    state = load_state_dict(file, fits=known_names(parts))
    if is_published(state):
        state, _ = from_published(state)
    state = {k: v for k, v in state.items() if k.startswith(("backbone.", "captioner."))}
    wrong = differences(state, parts.state_dict())
    if wrong:
        raise CheckpointError(f"{file} does not fit this config's captioner: {wrong}")
    parts.load_state_dict(state)


def cluster_image(
    parts: nn.Module,
    cfg: Config,
    image: np.ndarray,
    indices: list[int],
    count: int,
    name: str,
    device: torch.device,
    step: Step = lambda done, total: None,
) -> np.ndarray:
    """Cluster the backbone's features of an image.

    Args:
        parts: Module from :func:`build_parts`, or a whole segmentor.
        cfg: Config of the model. Its test pipeline resizes the image.
        image: (H, W, 3) uint8, BGR.
        indices: Indices of the feature maps to use.
        count: Number of clusters.
        name: Name of the model in error messages.
        device: Device of the parts.
        step: Progress callback, see :func:`extract`.

    Returns:
        Cluster index of every pixel, (H, W) int32, from 0.

    Raises:
        FeatureError: See :func:`cluster`.
        FloatingPointError: The features are not finite.
    """
    inputs = model_input(cfg, image)
    seen = tuple(inputs.shape[-2:])
    maps, levels = extract(parts, cfg, padded(inputs, cfg).to(device), indices, step)
    vectors = to_vectors(maps, levels, seen).cpu()
    if not torch.isfinite(vectors).all():
        raise FloatingPointError(f"{name}: the features are not finite numbers")
    labels = cluster(vectors.numpy(), count)
    # Every position of the map covers stride x stride pixels of the model's input.
    stride = min(levels)
    whole = labels.repeat(stride, 0).repeat(stride, 1)[: seen[0], : seen[1]]
    size = (image.shape[1], image.shape[0])
    return cv2.resize(whole.astype("int32"), size, interpolation=cv2.INTER_NEAREST)


def model_input(cfg: Config, image: np.ndarray) -> Tensor:
    """Run the config's test pipeline on an image; the output is (3, h, w) uint8, BGR."""
    return make_test_pipeline(cfg)(dict(img=image, img_path=None))["inputs"]


def padded(inputs: Tensor, cfg: Config) -> Tensor:
    """Run the config's data preprocessor, which scales to [0, 1] and pads.

    Args:
        inputs: (3, h, w) uint8, BGR.
        cfg: Config of the model.

    Returns:
        (3, H, W) float32.
    """
    with config_errors(cfg):
        preprocessor = MODELS.build(cfg.model.data_preprocessor)
    shape = tuple(inputs.shape[-2:])
    sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape))
    return preprocessor(dict(inputs=[inputs], data_samples=[sample]))["inputs"][0]


def extract(
    parts: nn.Module, cfg: Config, image: Tensor, indices: list[int], step: Step
) -> tuple[list[Tensor], list[int]]:
    """Extract the backbone's feature maps of a whole image, tile by tile as the segmentor does.

    Args:
        parts: Module from :func:`build_parts`.
        cfg: Config of the model.
        image: (3, H, W) in [0, 1], padded to a multiple of 64.
        indices: Indices of the feature maps to extract.
        step: Called after each batch with the number of finished tiles and of all tiles.

    Returns:
        A map (C, H / stride, W / stride) for every index, and their strides. Strides are rounded
        to powers of two, and the maps resized accordingly (nearest neighbor), as by the neck.
    """
    defaults = _defaults(OpenVocabSegmentor)
    tile_size = cfg.model.get("tile_size", defaults["tile_size"])
    batch = cfg.model.get("max_tiles_per_batch", defaults["max_tiles_per_batch"])
    grid = TileGrid.of(tuple(image.shape[-2:]), tile_size)
    tiles = grid.cut(image)
    strides = [2 ** round(math.log2(parts.backbone.strides[i])) for i in indices]
    found: list[list[Tensor]] = [[] for _ in indices]
    with torch.no_grad(), autocast(image, cfg.get("precision", "fp32")):
        for first in range(0, len(tiles), batch):
            some = tiles[first : first + batch]
            condition = (
                () if parts.captioner is None else (parts.captioner(some, [None] * len(some)),)
            )
            maps = parts.backbone(some, *condition)
            for kept, index, stride in zip(found, indices, strides, strict=True):
                size = tuple(side // stride for side in grid.tile)
                kept.append(F.interpolate(maps[index].float(), size))
            step(min(first + batch, len(tiles)), len(tiles))
    return [grid.join(torch.cat(kept)) for kept in found], strides


def _defaults(cls: type) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(cls).parameters.items()}


def to_vectors(maps: Sequence[Tensor], strides: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Concatenate maps at the resolution of the finest one, crop the padding and normalize.

    Args:
        maps: Maps (C, h, w) of the padded image.
        strides: Strides of the maps.
        size: Height and width of the image without padding, in pixels.

    Returns:
        (rows, columns, sum of C) float32, every channel with mean 0 and variance 1.
    """
    finest = min(range(len(maps)), key=lambda i: strides[i])
    shape = maps[finest].shape[-2:]
    joined = torch.cat([F.interpolate(m[None].float(), shape)[0] for m in maps])
    rows, columns = (-(-side // strides[finest]) for side in size)
    vectors = joined[:, :rows, :columns].permute(1, 2, 0)
    mean, deviation = vectors.mean((0, 1)), vectors.std((0, 1), correction=0)
    # Constant channels become 0 instead of amplified rounding errors.
    return (vectors - mean) / torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, torch.inf)
