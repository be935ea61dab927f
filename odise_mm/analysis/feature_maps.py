"""Feature maps of a model's backbone of a whole image, before the neck, and their clusters."""

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
    """A model's backbone and captioner alone.

    Args:
        cfg: of the model.
        weights: of its trained part; None: as it begins its training.

    Returns:
        A module with ``backbone`` and ``captioner`` (which may be None), and whether none of its
        parts has real weights.

    Raises:
        ConfigError: a part that cannot be built.
        CheckpointError: weights that are missing or of another model.
    """
    init_default_scope(cfg.get("default_scope", "odise_mm"))
    model_cfg = cfg.get("model") or {}
    if not model_cfg.get("backbone"):
        raise ConfigError(f"{cfg.filename}: has no `model.backbone`")
    used = [model_cfg.backbone, *([model_cfg.captioner] if model_cfg.get("captioner") else [])]
    parts = nn.Module()
    shared: dict[str, Any] = {}
    with config_errors(cfg), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classes = [MODELS.get(part["type"]) for part in used]
        wanted = {name for cls in classes if cls for name in inspect.signature(cls).parameters}
        if {"clip", "text_encoder"} & wanted and model_cfg.get("clip"):
            used.append(model_cfg.clip)
            # a child, so that it moves with the parts that it is lent to
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
        raise CheckpointError(f"{file} was not made for this config's captioner: {wrong}")
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
    """Clusters of the features that a model's backbone has of an image.

    Args:
        parts: from :func:`build_parts`, or a whole segmentor.
        cfg: of the model; its test pipeline resizes the image.
        image: (H, W, 3) uint8 BGR.
        indices: of the maps.
        count: of the clusters.
        name: what errors call the features.
        device: of the parts.
        step: see :func:`extract`.

    Returns:
        (H, W) int32, from 0.

    Raises:
        FeatureError: see :func:`cluster`.
        FloatingPointError: features that are not finite.
    """
    inputs = model_input(cfg, image)
    seen = tuple(inputs.shape[-2:])
    maps, levels = extract(parts, cfg, padded(inputs, cfg).to(device), indices, step)
    vectors = to_vectors(maps, levels, seen).cpu()
    if not torch.isfinite(vectors).all():
        raise FloatingPointError(f"{name}: the features are not finite numbers")
    labels = cluster(vectors.numpy(), count)
    # every place of the map covers its stride's pixels of what the backbone saw
    stride = min(levels)
    whole = labels.repeat(stride, 0).repeat(stride, 1)[: seen[0], : seen[1]]
    size = (image.shape[1], image.shape[0])
    return cv2.resize(whole.astype("int32"), size, interpolation=cv2.INTER_NEAREST)


def model_input(cfg: Config, image: np.ndarray) -> Tensor:
    """An image as the config's test pipeline hands it to the model: (3, h, w) uint8 BGR."""
    return make_test_pipeline(cfg)(dict(img=image, img_path=None))["inputs"]


def padded(inputs: Tensor, cfg: Config) -> Tensor:
    """What a model with the config's preprocessor sees of uint8 BGR (3, h, w)."""
    with config_errors(cfg):
        preprocessor = MODELS.build(cfg.model.data_preprocessor)
    shape = tuple(inputs.shape[-2:])
    sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape))
    return preprocessor(dict(inputs=[inputs], data_samples=[sample]))["inputs"][0]


def extract(
    parts: nn.Module, cfg: Config, image: Tensor, indices: list[int], step: Step
) -> tuple[list[Tensor], list[int]]:
    """Raw maps of a whole image, through the same tiles as the segmentor's.

    Args:
        parts: from :func:`build_parts`.
        cfg: of the model.
        image: (3, H, W) in [0, 1], padded to a multiple of 64.
        indices: of the maps.
        step: called with the number of tiles done and of all.

    Returns:
        (C, H / stride, W / stride) for every index, and the strides: each the power of two that is
        nearest to the map's own, to which its map of a tile is resized (nearest) as by the neck.
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
            told = () if parts.captioner is None else (parts.captioner(some, [None] * len(some)),)
            maps = parts.backbone(some, *told)
            for kept, index, stride in zip(found, indices, strides, strict=True):
                size = tuple(side // stride for side in grid.tile)
                kept.append(F.interpolate(maps[index].float(), size))
            step(min(first + batch, len(tiles)), len(tiles))
    return [grid.join(torch.cat(kept)) for kept in found], strides


def _defaults(cls: type) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(cls).parameters.items()}


def to_vectors(maps: Sequence[Tensor], strides: Sequence[int], size: tuple[int, int]) -> Tensor:
    """One vector for every place of the finest map, padding left out.

    Args:
        maps: each (C, h, w) over the padded image.
        strides: of the maps.
        size: height and width of the image without padding, in pixels.

    Returns:
        (rows, columns, all C) float32, every channel with mean 0 and variance 1.
    """
    finest = min(range(len(maps)), key=lambda i: strides[i])
    shape = maps[finest].shape[-2:]
    joined = torch.cat([F.interpolate(m[None].float(), shape)[0] for m in maps])
    rows, columns = (-(-side // strides[finest]) for side in size)
    vectors = joined[:, :rows, :columns].permute(1, 2, 0)
    mean, deviation = vectors.mean((0, 1)), vectors.std((0, 1), correction=0)
    # channels that say nothing have no scale
    return (vectors - mean) / torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, torch.inf)
