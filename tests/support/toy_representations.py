"""Small replacements with random weights for the backbones of configs/ablation/representation.

A laptop cannot run the published networks. Each replacement has the same class as the original
backbone and the same properties: plain or pyramid, with or without a condition.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config

from tests.support.parts import CONFIGS

PLAIN = dict(levels=(4, 8, 16, 32))  # neck of backbones whose maps all have one stride
FIRST_BLOCKS = (0, 1, 2, 3)

_SD_LEVELS = (32, 64, 128, 128)
_SD_V2 = dict(
    unet=dict(
        sample_size=64,
        block_out_channels=_SD_LEVELS,
        cross_attention_dim=64,
        attention_head_dim=(2, 4, 8, 8),
        use_linear_projection=True,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    ),
    vae=dict(
        block_out_channels=_SD_LEVELS,
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ),
    text=dict(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act="gelu",
    ),
    pad_token=0,
)


def _diffusion(**arguments: Any) -> dict[str, Any]:
    return dict(backbone=dict(_delete_=True, type="DiffusionBackbone", **arguments))


def _dit(arch: str, **neck: Any) -> dict[str, Any]:
    taps = (0, 1, 2, 3)
    steps = (100, 260, 500) if neck else (260,)
    backbone = dict(_delete_=True, type="DiTBackbone", arch=arch, taps=taps, steps=steps)
    return dict(backbone=backbone, neck={**PLAIN, **neck})


def _timm(model: str, plain: bool = True, **arguments: Any) -> dict[str, Any]:
    backbone = dict(_delete_=True, type="TimmBackbone", model=model, **arguments)
    return dict(captioner=None, backbone=backbone, **(dict(neck=PLAIN) if plain else {}))


def _open_clip(plain: bool, **vision: Any) -> dict[str, Any]:
    model = dict(embed_dim=64, vision_cfg=vision)
    backbone = dict(_delete_=True, type="OpenCLIPBackbone", model=model)
    return dict(captioner=None, backbone=backbone, **(dict(neck=PLAIN) if plain else {}))


def _convnext(name: str) -> dict[str, Any]:
    return _open_clip(plain=False, timm_model_name=name, timm_pool="avg", image_size=64)


REPRESENTATIONS: dict[str, dict[str, Any]] = {
    "aimv2_h": _timm("aimv2_large_patch14_224", out_indices=FIRST_BLOCKS),
    "beit_v2": _timm("beitv2_base_patch16_224", out_indices=FIRST_BLOCKS, image_size=128),
    "cleandift": _diffusion(arch=_SD_V2, steps=(-1,)),
    "clip_convnext_l": _convnext("test_convnext"),
    "clip_convnext_xxl": _convnext("test_convnext2"),
    "clip_h": _open_clip(
        plain=True, image_size=56, layers=4, width=128, head_width=64, patch_size=14
    ),
    "convnext": _timm("test_convnext", plain=False),
    "deit3_h": _timm("deit3_small_patch16_224", out_indices=FIRST_BLOCKS),
    "dino_b": _timm("vit_small_patch16_224", out_indices=FIRST_BLOCKS),
    "dino_v2": _timm("vit_small_patch14_dinov2", out_indices=FIRST_BLOCKS),
    "dino_v3": _timm("vit_small_patch16_dinov3", out_indices=FIRST_BLOCKS),
    "eva02": _timm("eva02_tiny_patch14_224", out_indices=FIRST_BLOCKS),
    "flux_dev": _dit("tiny_flux"),
    "flux_schnell": _dit("tiny_flux"),
    "flux_schnell_steps": _dit("tiny_flux", join_steps=True),
    "ldm": _diffusion(
        arch="tiny_ldm", taps=dict(vae_encoder=(5,), unet=(2, 5, 8, 11), vae_decoder=(2,))
    ),
    "mae_h": _timm("test_vit"),
    "moco_v3": _timm("vit_tiny_patch16_224", out_indices=FIRST_BLOCKS),
    "mvit_v2": _timm("mvitv2_tiny", plain=False, image_size=128),
    "pe_spatial": _timm("vit_pe_spatial_tiny_patch16_512", out_indices=FIRST_BLOCKS),
    "pixart_sigma": _dit("tiny_pixart"),
    "radio_v4_h": _timm("vit_base_patch16_radio_v3", out_indices=FIRST_BLOCKS),
    "sam": _timm("samvit_base_patch16", out_indices=FIRST_BLOCKS),
    "sam2_hiera_l": _timm("sam2_hiera_tiny", plain=False),
    "sd35_medium": _dit("tiny_sd3"),
    "sd3_medium": _dit("tiny_sd3"),
    "sd_v2": _diffusion(arch=_SD_V2),
    "sdxl": _diffusion(
        arch="tiny_sdxl", taps=dict(vae_encoder=(5, 7), unet=(2, 5, 8), vae_decoder=(2, 5))
    ),
    "siglip2": _timm("vit_base_patch16_siglip_224", out_indices=FIRST_BLOCKS),
    "swin": _timm("swin_tiny_patch4_window7_224", plain=False),
    "tips_v2_l": _timm("vit_base_patch14_reg1_tipsv2", out_indices=FIRST_BLOCKS),
}


def write_config(name: str, folder: Path) -> Path:
    """Write the config of an ablation with its replacement, for training in the toy world."""
    path = folder / f"{name}.py"
    base = CONFIGS / "_base_/ablation_toy.py"
    path.write_text(f"_base_ = [{str(base)!r}]\nmodel = {REPRESENTATIONS[name]!r}\n")
    return path


def load(name: str, folder: Path) -> Config:
    """Write the config of an ablation, see :func:`write_config`, and load it."""
    return Config.fromfile(write_config(name, folder))
