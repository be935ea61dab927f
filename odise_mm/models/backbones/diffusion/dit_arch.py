"""Architectures of diffusion transformers, as config values of diffusers.

Weights and licenses: Stable Diffusion 3 and 3.5 (stabilityai/stable-diffusion-3-medium-diffusers,
-3.5-medium, -3.5-large), Stability AI Community License, gated; FLUX.1 [dev]
(black-forest-labs/FLUX.1-dev), FLUX.1 [dev] Non-Commercial License, gated; FLUX.1 [schnell]
(black-forest-labs/FLUX.1-schnell), Apache-2.0; PixArt-Sigma
(PixArt-alpha/PixArt-Sigma-XL-2-1024-MS), CreativeML Open RAIL++-M. Nothing was downloaded, so the
presets were not compared with the config files on the hub. A hub id as ``arch`` reads those files.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from odise_mm.checkpoints.hub import hub_files, locate
from odise_mm.errors import ConfigError
from odise_mm.models.backbones.diffusion.arch_from_files import (
    SCHEDULER,
    ConfigFiles,
    arguments,
    choose_arch,
    read_betas,
)
from odise_mm.models.backbones.diffusion.presets import CLIP_L, SD_VAE_BLOCKS, LatentArch

CLASSES = {
    "sd3": "SD3Transformer2DModel",
    "flux": "FluxTransformer2DModel",
    "pixart": "PixArtTransformer2DModel",
}
TEXT_ENCODERS: dict[str, dict[str, str]] = {
    "sd3": {
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    },
    "flux": {"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"},
    "pixart": {"text_encoder": "T5EncoderModel"},
}
"""Class in transformers of each text encoder, by family."""


@dataclass(frozen=True)
class DiTArch(LatentArch):
    """Architecture of a latent diffusion model with a transformer.

    Attributes:
        family: ``sd3`` (Stable Diffusion 3 and 3.5), ``flux`` or ``pixart``.
        transformer: arguments of the transformer, a class of diffusers (:data:`CLASSES`).
        vae: arguments of ``diffusers.AutoencoderKL``, with ``scaling_factor`` and ``shift_factor``.
        texts: arguments of the text encoders' configs in transformers, by the names of their
            weights (:data:`TEXT_ENCODERS`). ``text_encoder_3`` of ``sd3`` may be missing: its
            tokens are zeros, as in diffusers' pipeline.
        pad_tokens: tokens that fill up the prompt of the CLIP text encoders.
        t5_length: number of T5's tokens. ``pixart`` masks the padding, which leaves one token of
            the empty prompt.
        latent_size: height and width of the fixed noise, usually the latent of a 512-pixel tile.
        betas: first and last beta of the noise schedule of 1,000 steps. None: flow matching.
        beta_schedule: see :class:`~odise_mm.models.backbones.diffusion.presets.DiffusionArch`.
        guidance: guidance scale, an input of FLUX.1 [dev] (the pipeline's default: 3.5).
        origin: URL for downloading the weights manually, shown in messages.
    """

    family: str
    transformer: dict[str, Any]
    vae: dict[str, Any]
    texts: dict[str, dict[str, Any]] = field(default_factory=dict)
    pad_tokens: tuple[int, int] = (49407, 0)
    t5_length: int = 256
    latent_size: int = 64
    betas: tuple[float, float] | None = None
    beta_schedule: str = "linear"
    guidance: float = 3.5
    origin: str = ""

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            ConfigError: unknown family, or the wrong text encoders.
        """
        if self.family not in CLASSES:
            raise ConfigError(f"family={self.family!r} must be one of {list(CLASSES)}")
        known = TEXT_ENCODERS[self.family]
        needed = set(known) - {"text_encoder_3"}
        if not needed <= set(self.texts) <= set(known):
            raise ConfigError(
                f"texts of family {self.family} must contain {', '.join(known)}; found "
                f"{', '.join(self.texts) or 'nothing'}"
            )

    @property
    def text_parts(self) -> tuple[str, ...]:
        """See :attr:`LatentArch.text_parts`."""
        return tuple(self.texts)

    def text_encoder(self, part: str) -> tuple[str, dict[str, Any]]:
        """See :meth:`LatentArch.text_encoder`."""
        return TEXT_ENCODERS[self.family][part], self.texts[part]


_T5_FIELDS = (
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_heads",
    "vocab_size",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "feed_forward_proj",
    "layer_norm_epsilon",
)
_FILES = (
    "transformer/config.json",
    "vae/config.json",
    SCHEDULER,
    "text_encoder*/config.json",
    "tokenizer*/special_tokens_map.json",
    "tokenizer*/tokenizer_config.json",
)


def get_dit_arch(arch: str | dict[str, Any] | DiTArch) -> DiTArch:
    """Return an architecture given the name of a preset, its fields, or a model's config files.

    Args:
        arch: a name in :data:`DIT_ARCHITECTURES`, the fields of a :class:`DiTArch`, or a diffusers
            folder or hub id. Only its config files are read.

    Raises:
        ValueError: unknown name. The message lists the known ones.
        ConfigError: a config file is missing or describes something that is not supported.
    """
    return choose_arch(arch, DiTArch, DIT_ARCHITECTURES, read_dit_arch)


def read_dit_arch(source: str) -> DiTArch:
    """Read the architecture from the config files of a diffusers folder or hub id.

    No weights are read.

    Args:
        source: folder or hub id.

    Raises:
        ConfigError: a file is missing, or describes a class that is not supported.
        odise_mm.errors.CheckpointError: the path does not exist, or the hub cannot be reached.
    """
    folder = locate(source, ", ".join(_FILES), lambda: hub_files(source, _FILES))
    files = ConfigFiles(folder, source, _FILES[:4], DIT_ARCHITECTURES)
    transformer = files.read("transformer/config.json", tuple(CLASSES.values()))
    vae = files.read("vae/config.json", ("AutoencoderKL",))
    family = {name: key for key, name in CLASSES.items()}[transformer["_class_name"]]
    texts = {}
    for part, cls in TEXT_ENCODERS[family].items():
        if part == "text_encoder_3" and not (folder / part).is_dir():
            continue
        texts[part] = _t5(files, part) if cls == "T5EncoderModel" else files.text_encoder(part)
    fields: dict[str, Any] = {}
    if family == "sd3":
        fields["pad_tokens"] = (files.pad_token("tokenizer"), files.pad_token("tokenizer_2"))
    if family == "flux":  # FLUX.1 [dev] and [schnell]
        fields["t5_length"] = 512 if transformer.get("guidance_embeds") else 256
    if family == "pixart":
        fields["betas"], fields["beta_schedule"] = read_betas(files)
    elif files.read(SCHEDULER).get("_class_name") != "FlowMatchEulerDiscreteScheduler":
        raise ConfigError(
            f"{files.name(SCHEDULER)}: {CLASSES[family]} needs a FlowMatchEulerDiscreteScheduler"
        )
    levels = len(vae.get("block_out_channels", (64,)))
    return DiTArch(
        family=family,
        transformer=arguments(transformer),
        vae=arguments(vae),
        texts=texts,
        latent_size=512 // 2 ** (levels - 1),
        **fields,
    )


def _t5(files: ConfigFiles, part: str) -> dict[str, Any]:
    config = files.read(f"{part}/config.json")
    if config.get("model_type") != "t5":
        raise ConfigError(
            f"{files.name(part)}/config.json describes a {config.get('model_type')}; supported: t5"
        )
    return {key: config[key] for key in _T5_FIELDS if key in config}


_T5_XXL = dict(
    d_model=4096,
    d_kv=64,
    d_ff=10240,
    num_layers=24,
    num_heads=64,
    vocab_size=32128,
    feed_forward_proj="gated-gelu",
)
_CLIP_L_PROJECTED = CLIP_L | {"projection_dim": 768}
_CLIP_G = dict(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    hidden_act="gelu",
    projection_dim=1280,
)
_WIDTHS = (128, 256, 512, 512)
_VAE_16 = SD_VAE_BLOCKS | dict(
    block_out_channels=_WIDTHS,
    layers_per_block=2,
    latent_channels=16,
    use_quant_conv=False,
    use_post_quant_conv=False,
)
_SD3 = DiTArch(
    family="sd3",
    transformer=dict(
        sample_size=128,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=192,
    ),
    vae=_VAE_16 | dict(scaling_factor=1.5305, shift_factor=0.0609),
    texts=dict(text_encoder=_CLIP_L_PROJECTED, text_encoder_2=_CLIP_G, text_encoder_3=_T5_XXL),
    origin="https://huggingface.co/stabilityai/stable-diffusion-3-medium-diffusers",
)
_FLUX = DiTArch(
    family="flux",
    transformer=dict(guidance_embeds=True),
    vae=_VAE_16 | dict(scaling_factor=0.3611, shift_factor=0.1159),
    texts=dict(text_encoder=CLIP_L, text_encoder_2=_T5_XXL),
    t5_length=512,
    origin="https://huggingface.co/black-forest-labs/FLUX.1-dev",
)

_TINY_T5 = dict(
    d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
)
_TINY_CLIP = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    hidden_act="quick_gelu",
)
_TINY_VAE = _VAE_16 | dict(block_out_channels=(32, 32, 64, 64), layers_per_block=1)

DIT_ARCHITECTURES: dict[str, DiTArch] = {
    # Esser et al., arXiv 2403.03206
    "sd3_medium": _SD3,
    "sd35_medium": replace(
        _SD3,
        transformer=_SD3.transformer
        | dict(pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13))),
        origin="https://huggingface.co/stabilityai/stable-diffusion-3.5-medium",
    ),
    "sd35_large": replace(
        _SD3,
        transformer=_SD3.transformer
        | dict(
            num_layers=38,
            num_attention_heads=38,
            caption_projection_dim=2432,
            qk_norm="rms_norm",
        ),
        origin="https://huggingface.co/stabilityai/stable-diffusion-3.5-large",
    ),
    "flux_dev": _FLUX,
    "flux_schnell": replace(
        _FLUX,
        transformer=dict(guidance_embeds=False),
        t5_length=256,
        origin="https://huggingface.co/black-forest-labs/FLUX.1-schnell",
    ),
    # Chen et al., arXiv 2403.04692
    "pixart_sigma": DiTArch(
        family="pixart",
        transformer=dict(
            sample_size=128,
            num_layers=28,
            num_attention_heads=16,
            attention_head_dim=72,
            cross_attention_dim=1152,
            caption_channels=4096,
            interpolation_scale=2,
            use_additional_conditions=False,
        ),
        vae=SD_VAE_BLOCKS
        | dict(block_out_channels=_WIDTHS, layers_per_block=2, scaling_factor=0.13025),
        texts=dict(text_encoder=_T5_XXL),
        betas=(0.0001, 0.02),
        origin="https://huggingface.co/PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    ),
    # The same structures at a fraction of the cost, for tests.
    "tiny_sd3": DiTArch(
        family="sd3",
        transformer=dict(
            sample_size=16,
            num_layers=4,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=48,
            pos_embed_max_size=24,
            qk_norm="rms_norm",
            dual_attention_layers=(0, 1),
        ),
        vae=_TINY_VAE | dict(scaling_factor=1.5305, shift_factor=0.0609),
        texts=dict(
            text_encoder=_TINY_CLIP | {"projection_dim": 32},
            text_encoder_2=_TINY_CLIP | {"projection_dim": 16},
            text_encoder_3=_TINY_T5,
        ),
        t5_length=8,
    ),
    "tiny_flux": DiTArch(
        family="flux",
        transformer=dict(
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=64,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 6, 6),
            guidance_embeds=True,
        ),
        vae=_TINY_VAE | dict(scaling_factor=0.3611, shift_factor=0.1159),
        texts=dict(text_encoder=_TINY_CLIP, text_encoder_2=_TINY_T5),
        t5_length=8,
    ),
    "tiny_pixart": DiTArch(
        family="pixart",
        transformer=dict(
            sample_size=16,
            num_layers=4,
            num_attention_heads=2,
            attention_head_dim=18,
            cross_attention_dim=36,
            caption_channels=64,
            use_additional_conditions=False,
        ),
        vae=_TINY_VAE
        | dict(
            latent_channels=4,
            use_quant_conv=True,
            use_post_quant_conv=True,
            scaling_factor=0.13025,
        ),
        texts=dict(text_encoder=_TINY_T5),
        betas=(0.0001, 0.02),
    ),
}
