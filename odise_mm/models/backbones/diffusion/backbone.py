"""Features of a frozen latent diffusion model (ODISE, arXiv 2303.04803, section 3.3).

The features are the inputs of selected residual blocks of the VAE and the UNet, in a single forward
pass at a low noise level. :meth:`DiffusionBackbone.add_noise` implements equation 1 of the paper,
:meth:`DiffusionBackbone.forward` equations 2 and 3.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odise_mm.models.backbones.diffusion.arch_from_files import get_arch
from odise_mm.models.backbones.diffusion.condition import (
    Condition,
    PromptEncoder,
    condition_kind,
)
from odise_mm.models.backbones.diffusion.latent import (
    LatentBackbone,
    as_steps,
    drop_decoder,
    step_tensor,
    vae_levels_stride,
)
from odise_mm.models.backbones.diffusion.presets import DiffusionArch
from odise_mm.models.backbones.diffusion.support import FIRST_STAGES, check_supported
from odise_mm.models.backbones.diffusion.taps import PAPER_TAPS, Taps, as_taps, keep_before
from odise_mm.models.backbones.diffusion.weights import DiffusionWeights
from odise_mm.models.frozen import is_meta_context, materialize
from odise_mm.registry import MODELS
from odise_mm.utils.settings import check_flag, check_whole

MAX_STRIDE = 32


@MODELS.register_module()
class DiffusionBackbone(LatentBackbone):
    """Raw feature maps of image tiles from a frozen latent diffusion model.

    Layers after the last tap of the UNet and of the VAE decoder are removed: they are neither
    loaded nor run. The VAE encoder is complete, because it computes the latent.

    A first stage with quantization (``VQModel``, in LDM) quantizes the latent before its decoder,
    as in its own training. The UNet gets the latent before quantization.

    Args:
        arch: name of a preset (``sd_v1``, ``sd_v2``, ``sdxl``, ``ldm_cin256``, ``tiny``, ...), the
            fields of a :class:`~odise_mm.models.backbones.diffusion.presets.DiffusionArch`, or a
            diffusers folder or hub id whose config files describe the architecture.
        weights: hub id, diffusers folder or original checkpoint file. None: random weights.
        taps: the features to return, see :class:`Taps`. Defaults to the eight of the paper.
        steps: diffusion time steps t (the paper uses (0,)). A negative step means the clean latent
            at time step 0. The UNet features of several steps are concatenated along channels.
        noise_seed: seed of the fixed noise that is added to all images (published: 42).
        use_checkpoint: recompute the UNet's activations in the backward pass (training only).
        unet: ``dict(weights=...)`` loads another UNet of the same architecture, such as CleanDIFT
            (arXiv 2412.03439): a file with diffusers or original key names, a diffusers folder or
            hub id, or ``hf://owner/name/file``. All other parts come from ``weights``.

    Attributes:
        channels: number of channels of each feature map, in the order that ``forward`` returns
            them.
        strides: stride of each feature map in pixels of the tile. At most 32: coarser maps are
            used as if they had stride 32.
        empty_context: condition for no text or class, (1, tokens, context width). In Stable
            Diffusion, the 77 tokens of the empty prompt. Zeros without weights.
        context_width: width of :attr:`Condition.context`.
        time_width: width of :attr:`Condition.time`.
        divisor: height and width of a tile must be multiples of this; 64 in Stable Diffusion.

    Raises:
        ValueError: unknown architecture; a tap or step that does not exist; a UNet with more inputs
            than a latent, a time step and the ``condition`` of the architecture.
        CheckpointError: the weights are missing or belong to another architecture.
    """

    denoiser = "UNet"

    def __init__(
        self,
        arch: str | dict | DiffusionArch = "sd_v1",
        weights: str | None = None,
        taps: Taps | dict | Sequence[Sequence[int]] = PAPER_TAPS,
        steps: Sequence[int] = (0,),
        noise_seed: int = 42,
        use_checkpoint: bool = False,
        unet: dict | None = None,
    ) -> None:
        super().__init__()
        import diffusers

        unet_weights = _unet_weights(unet, weights)
        self.arch = get_arch(arch)
        kind = condition_kind(self.arch)
        self.taps = as_taps(taps)
        self.steps = as_steps(steps)
        self.scaling_factor = self.arch.scaling_factor
        check_flag("use_checkpoint", use_checkpoint)
        self.use_checkpoint = use_checkpoint
        check_whole("noise_seed", noise_seed, least=0, most=2**63 - 1)

        if self.arch.first_stage not in FIRST_STAGES:
            raise ValueError(f"first_stage={self.arch.first_stage!r} must be one of {FIRST_STAGES}")
        with torch.device("meta"):
            vae = getattr(diffusers, self.arch.first_stage)(**self.arch.vae)
            unet = diffusers.UNet2DConditionModel(**self.arch.unet)
        self._latent_channels = vae.config.get("vq_embed_dim") or vae.config.latent_channels
        check_supported(unet, vae, kind, self._latent_channels)
        self.context_width = kind.shape[1]
        self.time_width = unet.time_embedding.linear_2.out_features
        self.channels, self.strides = self._describe(unet, vae)
        repeats = (1, len(self.steps), 1)
        self.in_steps = tuple(
            n for n, blocks in zip(repeats, self.taps, strict=True) for _ in blocks
        )
        # Each level but the last halves the map. Sizes must be even for the skip connections to
        # match the upsampled maps.
        self.divisor = vae_levels_stride(vae) * 2 ** (len(unet.down_blocks) - 1)
        self.tile_divisor = self.divisor
        all_keys = {"unet": frozenset(unet.state_dict()), "vae": frozenset(vae.state_dict())}
        self._prune(unet, vae)
        self.unet = unet if self.taps.unet else None
        self.vae = vae

        self._kind = kind
        self._prompts = PromptEncoder(kind, weights)
        empty = torch.zeros(1, *kind.shape)
        if not is_meta_context():
            if weights is None:
                materialize(self)
            else:
                empty = self._load(weights, unet_weights, all_keys)
        self.register_buffer("empty_context", empty, persistent=False)
        arch = self.arch
        self._set_noise(noise_seed, arch.latent_size, arch.betas, arch.beta_schedule)
        self.freeze()

    @classmethod
    def fetch_weights(cls, **settings: Any) -> None:
        """See :meth:`FrozenModule.fetch_weights`."""
        weights = settings.get("weights")
        if weights is not None:
            with torch.device("meta"):
                backbone = cls(**settings)
            backbone._sources(weights, _unet_weights(settings.get("unet"), weights))

    def _sources(
        self, weights: str, unet_weights: str | None
    ) -> tuple[DiffusionWeights, DiffusionWeights]:
        """Return the sources of all weights and of the UNet's, downloaded if necessary."""
        parts = ["vae"] + (["unet"] if self.unet is not None and not unet_weights else [])
        source = DiffusionWeights(weights, self.arch, [*parts, *self._kind.parts])
        if self.unet is None or not unet_weights:
            return source, source
        return source, DiffusionWeights(unet_weights, self.arch, ["unet"])

    def _load(
        self, weights: str, unet_weights: str | None, keys: dict[str, frozenset[str]]
    ) -> Tensor:
        """Load the weights of the remaining layers.

        Args:
            weights: see the class.
            unet_weights: source of the UNet's weights, if it is a different one.
            keys: keys of all layers, including removed ones, by part.

        Returns:
            The empty condition.
        """
        source, unet_source = self._sources(weights, unet_weights)
        source.fill(self.vae, "vae", keys["vae"] - frozenset(self.vae.state_dict()))
        if self.unet is not None:
            unet_source.fill(self.unet, "unet", keys["unet"] - frozenset(self.unet.state_dict()))
        return self._kind.empty(source)

    def describe(self) -> dict:
        """Return values that other parts are built with, keyed by their argument names."""
        return super().describe() | {"prompt_encoder": self.encode_prompts}

    def encode_prompts(self, texts: Sequence[str]) -> Tensor:
        """Encode texts as conditions.

        The text encoder of the diffusion model is built and loaded on the first call, from the same
        source as the other weights. It is not a submodule, so it does not appear in the parameters
        or the state dict.

        Args:
            texts: the prompts.

        Returns:
            (len(texts), tokens, context width) float32 on the device of the backbone.

        Raises:
            ConfigError: the model has no text encoder.
        """
        if self.device.type == "meta" and self._kind.encoders:
            return torch.empty(len(texts), *self._kind.shape, device="meta")
        return self._prompts(texts, self.device)

    def _encoder_blocks(self) -> Sequence[int]:
        return self.taps.vae_encoder

    def _denoiser_taps(
        self, noisy: Tensor, step: int | Tensor, index: int, condition: Condition, tiles: Tensor
    ) -> list[Tensor]:
        if self.unet is None:
            return []
        unet = self.unet
        time = unet.time_embedding(unet.time_proj(step_tensor(step, noisy)).to(noisy))
        if condition.time is not None:
            time = time + condition.time[:, index].to(noisy)
        context = condition.context.to(noisy)
        time, context = self._kind.enter(unet, time, context, tuple(tiles.shape[-2:]))

        hidden = unet.conv_in(noisy)
        skips = [hidden]
        for block in unet.down_blocks:
            if getattr(block, "has_cross_attention", False):
                hidden, new = self._run(block, hidden, time, context)
            else:
                hidden, new = self._run(block, hidden, time)
            skips.extend(new)
        hidden = self._run(unet.mid_block, hidden, time, context)

        taps: dict[int, Tensor] = {}
        block = 0
        for level in unet.up_blocks:
            attentions = getattr(level, "attentions", [None] * len(level.resnets))
            for resnet, attention in zip(level.resnets, attentions, strict=True):
                hidden = torch.cat([hidden, skips.pop()], dim=1)
                if block in self.taps.unet:
                    taps[block] = hidden
                block += 1
                hidden = self._run(resnet, hidden, time)
                if attention is not None:
                    hidden = self._run(attention, hidden, context, return_dict=False)[0]
            for upsampler in level.upsamplers or ():
                hidden = upsampler(hidden)
        if block == self.taps.unet[-1]:  # input of a block that was removed
            taps[block] = torch.cat([hidden, skips.pop()], dim=1)
        return [taps[block] for block in self.taps.unet]

    def _decoder_taps(self, latent: Tensor) -> list[Tensor]:
        if not self.taps.vae_decoder:
            return []
        decoder = self.vae.decoder
        taps: dict[int, Tensor] = {}
        hidden = latent / self.scaling_factor
        if self.arch.first_stage == "VQModel":
            hidden = _nearest_codes(hidden, self.vae.quantize.embedding)
        if self.vae.post_quant_conv is not None:
            hidden = self.vae.post_quant_conv(hidden)
        hidden = decoder.mid_block(decoder.conv_in(hidden))
        block = 0
        for level in decoder.up_blocks:
            for resnet in level.resnets:
                if block in self.taps.vae_decoder:
                    taps[block] = hidden
                block += 1
                hidden = resnet(hidden, temb=None)
            for upsampler in level.upsamplers or ():
                hidden = upsampler(hidden)
        taps[block] = hidden  # possibly the input of a block that was removed
        return [taps[block] for block in self.taps.vae_decoder]

    def _describe(self, unet: nn.Module, vae: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the channels and strides of all taps, computed from the layers."""
        encoder = [(r, 2**i) for i, b in enumerate(vae.encoder.down_blocks) for r in b.resnets]
        top = 2 ** (len(vae.encoder.down_blocks) - 1)
        depth = len(unet.up_blocks) - 1
        ups = [(r, top * 2 ** (depth - i)) for i, b in enumerate(unet.up_blocks) for r in b.resnets]
        decoder = [(r, top // 2**i) for i, b in enumerate(vae.decoder.up_blocks) for r in b.resnets]
        channels: list[int] = []
        strides: list[int] = []
        for name, blocks in zip(Taps._fields, (encoder, ups, decoder), strict=True):
            repeat = len(self.steps) if name == "unet" else 1
            for tap in getattr(self.taps, name):
                if not 0 <= tap < len(blocks):
                    raise ValueError(
                        f"taps.{name}: block {tap} does not exist; this architecture's {name} has "
                        f"blocks 0 to {len(blocks) - 1}, as (block, channels, stride): "
                        f"{[(i, b.in_channels, s) for i, (b, s) in enumerate(blocks)]}"
                    )
                block, stride = blocks[tap]
                channels.append(block.in_channels * repeat)
                strides.append(min(stride, MAX_STRIDE))
        return tuple(channels), tuple(strides)

    def _prune(self, unet: nn.Module, vae: nn.Module) -> None:
        """Remove all layers after the last tap of the UNet and of the VAE's decoder."""
        unet.conv_norm_out = unet.conv_act = unet.conv_out = None
        if self.taps.unet:
            unet.up_blocks = keep_before(unet.up_blocks, self.taps.unet[-1])
        if not self.taps.vae_decoder:
            drop_decoder(vae)
            return
        vae.decoder.up_blocks = keep_before(vae.decoder.up_blocks, self.taps.vae_decoder[-1])
        vae.decoder.conv_norm_out = vae.decoder.conv_act = vae.decoder.conv_out = None


def _nearest_codes(latent: Tensor, codebook: nn.Embedding) -> Tensor:
    """Replace each position of a latent, (N, C, h, w), by the nearest entry of the codebook."""
    # One image at a time: the distances of one 128 x 128 latent to 8192 codes take half a GB.
    codes = codebook.weight.float()
    chosen = [torch.cdist(one.flatten(1).T.float(), codes).argmin(dim=1) for one in latent]
    return codebook(torch.stack(chosen)).transpose(1, 2).reshape(latent.shape)


def _unet_weights(unet: dict | None, weights: str | None) -> str | None:
    """Return the source given by ``unet=dict(weights=...)``, or None."""
    unknown = set(unet or {}) - {"weights"}
    if unknown:
        raise ValueError(
            f"unknown keys in unet: {', '.join(sorted(unknown))}; the only key is: weights"
        )
    chosen = (unet or {}).get("weights")
    if chosen is not None and weights is None:
        raise ValueError(f"unet.weights={chosen!r}: set `weights` as well, for the other parts")
    return chosen
