"""Architectures of text-to-image latent diffusion models, as diffusers' own config values.

Weights and licences: Stable Diffusion v1 (CompVis/stable-diffusion-v1-*), CreativeML Open RAIL-M;
Stable Diffusion v2 (stabilityai/stable-diffusion-2-*), CreativeML Open RAIL++-M.
"""

from dataclasses import dataclass, field
from typing import Any

SD_UNET_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SD_VAE_BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
}


@dataclass(frozen=True)
class DiffusionArch:
    """One architecture.

    Attributes:
        unet: arguments of ``diffusers.UNet2DConditionModel``.
        vae: arguments of ``diffusers.AutoencoderKL``.
        text: arguments of ``transformers.CLIPTextConfig``, for the embedding of the empty prompt.
        scaling_factor: factor between the VAE's posterior mean and the latent.
        latent_size: edge of the latent the model was trained on; the fixed noise has this size.
        pad_token: what the tokenizer fills a prompt up with, after start and end token.
        betas: first and last of the "scaled linear" noise schedule of 1,000 steps.
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    scaling_factor: float = 0.18215
    latent_size: int = 64
    pad_token: int = 49407
    betas: tuple[float, float] = field(default=(0.00085, 0.012))


ARCHITECTURES: dict[str, DiffusionArch] = {
    # Rombach et al., arXiv 2112.10752; what the published ODISE runs on (v1-3).
    "sd_v1": DiffusionArch(
        unet=dict(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=768,
            # diffusers' name for the number of heads in these configs
            attention_head_dim=8,
            **SD_UNET_BLOCKS,
        ),
        vae=dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **SD_VAE_BLOCKS),
        text=dict(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            hidden_act="quick_gelu",
        ),
    ),
    # Stable Diffusion 2.x: OpenCLIP ViT-H text encoder without its last layer, 64 channels a head.
    "sd_v2": DiffusionArch(
        unet=dict(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
            **SD_UNET_BLOCKS,
        ),
        vae=dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **SD_VAE_BLOCKS),
        text=dict(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=23,
            num_attention_heads=16,
            hidden_act="gelu",
        ),
        pad_token=0,
    ),
    # The same structure at a thousandth of the cost: tests and the demo without weights.
    "tiny": DiffusionArch(
        unet=dict(
            sample_size=64,
            block_out_channels=(32, 64, 128, 128),
            cross_attention_dim=64,
            attention_head_dim=8,
            **SD_UNET_BLOCKS,
        ),
        vae=dict(block_out_channels=(32, 64, 128, 128), layers_per_block=2, **SD_VAE_BLOCKS),
        text=dict(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_act="quick_gelu",
        ),
    ),
}


def get_arch(arch: str | dict[str, Any] | DiffusionArch) -> DiffusionArch:
    """An architecture from a preset's name or from the fields of :class:`DiffusionArch`.

    Raises:
        ValueError: for an unknown name; the known ones are listed.
    """
    if isinstance(arch, DiffusionArch):
        return arch
    if isinstance(arch, dict):
        return DiffusionArch(**arch)
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown diffusion architecture {arch!r}: one of {list(ARCHITECTURES)}")
    return ARCHITECTURES[arch]
