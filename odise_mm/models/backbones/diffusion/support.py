"""Check whether :class:`DiffusionBackbone` supports a diffusion model."""

from __future__ import annotations

from torch import nn

from odise_mm.models.backbones.diffusion.condition import ConditionKind

FIRST_STAGES = ("AutoencoderKL", "VQModel")


FIRST_STAGE_LEVELS = frozenset(("DownEncoderBlock2D", "UpDecoderBlock2D"))


UNET_LEVELS = frozenset(
    ("DownBlock2D", "CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn")
    + ("UpBlock2D", "CrossAttnUpBlock2D")
)


# Options of diffusers' UNet that add inputs or change the order of layers, with the values that
# turn them off. The backbone runs the layers itself and does not implement these options.
UNET_WITHOUT = {
    "center_input_sample": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "encoder_hid_dim_type": None,
    "encoder_hid_dim": None,
    "time_embedding_type": "positional",
    "time_embedding_act_fn": None,
}


def check_supported(
    unet: nn.Module, vae: nn.Module, kind: ConditionKind, latent_channels: int
) -> None:
    """Raise if a diffusion model has inputs or layers that :class:`DiffusionBackbone` lacks.

    Args:
        unet: the UNet.
        vae: the first stage.
        kind: the kind of condition that the architecture specifies.
        latent_channels: channels of the latent.

    Raises:
        ValueError: something is not supported. The message lists all of it.
    """
    config = unet.config
    needs = [
        f"{name}={config[name]!r}"
        for name, plain in UNET_WITHOUT.items()
        if config.get(name, plain) != plain
    ]
    levels = [*config.down_block_types, config.mid_block_type, *config.up_block_types]
    needs += [f"a {level}" for level in dict.fromkeys(levels) if level not in UNET_LEVELS]
    needs += vae_misfits(vae)
    if config.in_channels != latent_channels:
        needs.append(f"{config.in_channels} input channels for a latent with {latent_channels}")
    if config.cross_attention_dim != kind.shape[1]:
        needs.append(
            f"cross_attention_dim={config.cross_attention_dim} for conditions {kind.shape[1]} wide"
        )
    needs += kind.misfits(config)
    if vae.config.get("shift_factor") is not None:
        needs.append("a first stage that shifts its latents")
    if needs:
        raise ValueError(
            f"the diffusion backbone does not support this model: it has {', '.join(needs)}; "
            f"supported are UNets of {', '.join(sorted(UNET_LEVELS))} and first stages of "
            f"{', '.join(sorted(FIRST_STAGE_LEVELS))}"
        )


def vae_misfits(vae: nn.Module) -> list[str]:
    """Return what is not supported in a first stage.

    Args:
        vae: the first stage.
    """
    config = vae.config
    stages = dict.fromkeys((*config.down_block_types, *config.up_block_types))
    needs = [f"a {level}" for level in stages if level not in FIRST_STAGE_LEVELS]
    if config.get("norm_type", "group") != "group":
        needs.append(f"norm_type={config.norm_type!r}")
    if config.get("latents_mean") is not None:
        needs.append("a first stage that shifts its latents by latents_mean")
    return needs
