"""Small models with random weights, and models on the meta device."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from torch import Tensor, nn

import odise_mm.models
from odise_mm.registry import MODELS

CONFIGS = Path(odise_mm.__file__).parents[1] / "configs"
TINY_CLIP = dict(
    embed_dim=64,
    quick_gelu=True,
    vision_cfg=dict(image_size=56, layers=2, width=128, head_width=64, patch_size=14),
    text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=2, layers=2),
)


def config_files() -> list[str]:
    """Return the paths of all model configs, relative to ``configs/``."""
    files = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.py"))
    return [str(file) for file in files if file.parts[0] != "_base_"]


def load_config(name: str) -> Config:
    """Load a config by its path in ``configs/``."""
    return Config.fromfile(CONFIGS / name)


@lru_cache(maxsize=4)
def meta_model(name: str) -> nn.Module:
    """Build the full-size model of a config on the meta device."""
    with torch.device("meta"):
        return MODELS.build(load_config(name).model)


def random_weights(module: nn.Module, seed: int = 0, scale: float = 1.0) -> nn.Module:
    """Draw all parameters from a normal distribution, and return the module.

    Matrices preserve the scale of their input, so that outputs vary.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if name.endswith("logit_scale"):
            continue
        value = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            value *= scale / (value.numel() / len(value)) ** 0.5
        else:
            value = 0.1 * value + float(name.endswith("weight"))
        parameter.data.copy_(value)
    return module


@lru_cache(maxsize=1)
def clip() -> odise_mm.models.FrozenCLIP:
    """Return a tiny CLIP, shared by all tests that do not modify it."""
    model = odise_mm.models.FrozenCLIP(TINY_CLIP)
    random_weights(model, seed=1, scale=1.5)
    model.model.token_embedding.weight.data *= 8
    return model


def head_config(**changes: Any) -> dict:
    """Return the published head's config with 64 channels, 12 queries and 2 + 3 layers."""
    head = deepcopy(load_config("odise/odise_coco_label.py").model.head)
    head.update(feat_channels=64, out_channels=64, num_queries=12)
    encoder, decoder = head.pixel_decoder.encoder, head.transformer_decoder
    encoder.num_layers, decoder.num_layers = 2, 3
    for layer in (encoder.layer_cfg, decoder.layer_cfg):
        for part in layer.values():
            part.embed_dims = 64
        layer.ffn_cfg.feedforward_channels = 128
    head.pixel_decoder.positional_encoding.num_feats = 32
    head.positional_encoding.num_feats = 32
    head.update(changes)
    return head


def segmentor_config(**changes: Any) -> ConfigDict:
    """Return the config of a whole model with tiles of 64 pixels, much smaller than odise_tiny."""
    model = load_config("toy/odise_tiny.py").model
    model.head = head_config()
    model.neck.update(out_channels=64, bottleneck_channels=32)
    model.classifiers[0].embed_dim = 64
    model.tile_size = 64
    model.update(changes)
    return model


def segmentor(seed: int = 0, **changes: Any) -> odise_mm.models.OpenVocabSegmentor:
    """Build :func:`segmentor_config` with random parameters that produce segments."""
    model = MODELS.build(segmentor_config(**changes))
    random_weights(model, seed)
    # Random layers make all queries similar. These factors keep them different.
    head = model.head
    for embedding in (head.query_feat, head.query_embed):
        embedding.weight.data.mul_(embedding.weight.shape[1] ** 0.5)
    for name, parameter in head.transformer_decoder.named_parameters():
        if "out_proj" in name or "ffn.layers.1" in name:
            parameter.data.mul_(0.2)
    head.mask_embedding.pool_proj[1].weight.data.mul_(0.3)
    head.mask_embed[-1].weight.data.mul_(2)
    model.classifiers[0].null_embedding.data.mul_(-0.1)
    for frozen in (model.backbone, model.clip):
        random_weights(frozen, seed + 1)
    return model.eval()


def random_image(height: int, width: int, seed: int = 0) -> Tensor:
    """Draw a smooth image with edges, uint8 (3, height, width)."""
    rng = np.random.RandomState(seed)
    ys, xs = np.mgrid[:height, :width]
    waves = [
        np.sin(ys * f + p) * np.cos(xs * g + q)
        for f, g, p, q in rng.uniform(0.01, 0.2, (3, 4)) * [1, 1, 30, 30]
    ]
    image = np.stack(waves) * 90 + 128 + 60 * ((ys // 17 + xs // 23) % 2)
    return torch.from_numpy(image.clip(0, 255).astype(np.uint8))


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Return the largest difference divided by the reference's standard deviation."""
    assert value.shape == reference.shape, (value.shape, reference.shape)
    return float((value - reference).abs().max() / reference.std())
