"""Summary of a config's model: parameters by part, feature maps and FLOPs, on the meta device."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from odise_mm.analysis import published
from odise_mm.analysis.inference_cost import count_flops, make_vocabulary
from odise_mm.analysis.meta import build_on_meta, load_model_config, short_edge
from odise_mm.analysis.parts import part_of
from odise_mm.config.finding import config_folders
from odise_mm.models import DiffusionBackbone, DiTBackbone, OpenVocabSegmentor
from odise_mm.models.backbones.diffusion.latent import LatentBackbone
from odise_mm.models.frozen import trained_names


def all_configs() -> list[str]:
    """List the files of all configs.

    If the working directory and this package both have a config of one name, the package's counts.
    """
    found: dict[Path, Path] = {}
    for folder in config_folders():
        found |= {path.relative_to(folder): path for path in folder.rglob("*.py")}
    return [str(found[name]) for name in sorted(found) if "_base_" not in name.parts]


def summarize(config: str, size: int | None = None) -> dict[str, Any]:
    """Summarize a config's model in plain numbers.

    Args:
        config: Config file, or its name under ``configs/``.
        size: Edge of the square image that FLOPs are counted for, in pixels. Defaults to the short
            edge that the config tests with.

    Returns:
        ``config``, ``trained`` and ``frozen`` (parameters by part), ``taps``, ``size`` and
        ``flops`` (of one image). For the published architecture also ``variant``,
        ``published_trained``, ``published_frozen`` and ``fewer_positions``. For a diffusion
        backbone also ``not_built``.
    """
    cfg = load_model_config(config)
    size = size or short_edge(cfg)
    is_published = published.is_published_architecture(cfg.model)
    model = build_on_meta(cfg)
    trained, frozen = count_parameters(model)
    summary: dict[str, Any] = {
        "config": config,
        "trained": trained,
        "frozen": frozen,
        "taps": [],
        "size": size,
    }
    # The model itself, or the one that makes masks for it. Other sources have no feature maps.
    for part in model.modules():
        if isinstance(part, OpenVocabSegmentor):
            summary["taps"] = list_taps(part.backbone)
            if isinstance(part.backbone, LatentBackbone):
                summary["not_built"] = count_not_built(part.backbone)
    if is_published:
        variant = "label" if model.classifiers[0].null_embedding is not None else "caption"
        numbers = published.PARAMETERS[variant]
        summary["variant"] = variant
        summary["published_trained"] = dict(numbers.trained)
        summary["published_frozen"] = dict(numbers.frozen)
        summary["fewer_positions"] = _positions_of_larger_image(model)
    model.vocabulary = make_vocabulary()
    summary["flops"] = sum(count_flops(model, size).values())
    return summary


def count_parameters(model: OpenVocabSegmentor) -> tuple[dict[str, int], dict[str, int]]:
    """Count trained and frozen parameters by part; shared parameters count once."""
    trained_ids = {id(model.get_parameter(name)) for name in trained_names(model)}
    trained: Counter[str] = Counter()
    frozen: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts = trained if id(parameter) in trained_ids else frozen
        counts[part_of(name)] += parameter.numel()
    return dict(trained), dict(frozen)


def count_not_built(backbone: LatentBackbone) -> dict[str, dict[str, int]]:
    """Count the diffusion model's parameters that the backbone does not load.

    The complete models of diffusers and transformers, built on the meta device, are compared with
    the backbone.

    Returns:
        For every part, the number of parameters of each module that is missing as a whole.
    """
    arch = backbone.arch
    with torch.device("meta"):
        if isinstance(backbone, DiTBackbone):
            denoiser = (backbone.family.build(), backbone.transformer)
            vae = diffusers.AutoencoderKL(**arch.vae)
        else:
            denoiser = (diffusers.UNet2DConditionModel(**arch.unet), backbone.unet)
            vae = getattr(diffusers, arch.first_stage)(**arch.vae)
        texts = []
        for text in arch.text_parts:
            name, fields = arch.text_encoder(text)
            cls = getattr(transformers, name)
            texts.append(cls(cls.config_class(**fields)))
    missing: dict[str, dict[str, int]] = {}
    for is_vae, whole, kept in ((False, *denoiser), (True, vae, backbone.vae)):
        held = {name for name, _ in kept.named_parameters()} if kept is not None else set()
        for module, count in _missing_modules(whole, held).items():
            part = "VAE encoder" if is_vae else backbone.denoiser
            if is_vae and module.startswith(("decoder", "post_quant_conv", "quantize")):
                part = "VAE decoder"
            missing.setdefault(part, {})[module or "all"] = count
    for number, text in enumerate(texts, start=1):
        part = "diffusion text encoder" + (f" {number}" if len(texts) > 1 else "")
        missing[part] = {"all": sum(p.numel() for p in text.parameters())}
    return missing


def _missing_modules(whole: nn.Module, held: set[str]) -> dict[str, int]:
    """Count the parameters that are not held, by the outermost module that is missing entirely."""
    prefixes = {""} if held else set()
    for name in held:
        pieces = name.split(".")
        prefixes.update(".".join(pieces[:end]) for end in range(1, len(pieces)))
    missing: Counter[str] = Counter()
    for name, parameter in whole.named_parameters():
        if name in held:
            continue
        pieces = name.split(".")
        ancestors = (".".join(pieces[:end]) for end in range(len(pieces)))
        missing[next((a for a in ancestors if a not in prefixes), name)] += parameter.numel()
    return dict(missing)


def _positions_of_larger_image(model: OpenVocabSegmentor) -> int:
    """Return how many more position parameters CLIP has than at the paper's image size."""
    visual = model.clip.visual
    positions, width = visual.positional_embedding.shape
    fewer = (published.PAPER_CLIP_IMAGE_SIZE // visual.patch_size[0]) ** 2 + 1
    return (positions - fewer) * width


def list_taps(backbone: nn.Module) -> list[dict[str, Any]]:
    """List the origin (``tap``), channels and stride of every feature map."""
    described = backbone.describe()
    channels, strides = described["in_channels"], described["in_strides"]
    if isinstance(backbone, DiffusionBackbone):
        names = [
            f"input of {where.replace('_', ' ')}, block {block}"
            for where, blocks in backbone.taps._asdict().items()
            for block in blocks
        ]
    elif isinstance(backbone, DiTBackbone):
        names = [f"input of transformer block {block}" for block in backbone.taps]
    else:
        names = [f"map {index}" for index in range(len(channels))]
    return [
        {"tap": name, "channels": width, "stride": stride}
        for name, width, stride in zip(names, channels, strides, strict=True)
    ]
