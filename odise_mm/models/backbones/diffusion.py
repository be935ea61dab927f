"""Features of a frozen text-to-image diffusion model (ODISE, arXiv 2303.04803, section 3.3).

One forward pass at a small noise level; features are the inputs of chosen residual blocks of the
VAE and of the UNet. Equations 2 and 3 are :meth:`DiffusionBackbone.forward`; its equation 1
(adding noise) is :meth:`DiffusionBackbone.add_noise`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from odise_mm.models.backbones.base import Backbone
from odise_mm.models.backbones.diffusion_arch import DiffusionArch, get_arch
from odise_mm.models.backbones.diffusion_text import CONTEXT_LENGTH, PromptEncoder
from odise_mm.models.backbones.diffusion_weights import DiffusionWeights
from odise_mm.registry import MODELS
from odise_mm.utils.frozen import is_meta_context, materialise

MAX_STRIDE = 32


class Condition(NamedTuple):
    """What a captioner tells a diffusion model.

    Attributes:
        context: text conditioning, (N, tokens, context width).
        time: added to the time embedding of every step, (N, steps, time width), or None.
    """

    context: Tensor
    time: Tensor | None = None


class Taps(NamedTuple):
    """Residual blocks whose *input* is a feature, counted from 0 in the order they are run.

    Attributes:
        vae_encoder: of the encoder, two per level in Stable Diffusion (0 to 7).
        unet: of the UNet's up-sampling half, three per level (0 to 11); the skip connection is
            concatenated already.
        vae_decoder: of the decoder, which is run on the clean latent, three per level (0 to 11).
    """

    vae_encoder: tuple[int, ...] = ()
    unet: tuple[int, ...] = ()
    vae_decoder: tuple[int, ...] = ()


PAPER_TAPS = Taps(vae_encoder=(5, 7), unet=(2, 5, 8, 11), vae_decoder=(2, 5))


@MODELS.register_module()
class DiffusionBackbone(Backbone):
    """Raw feature maps of image tiles from a frozen latent diffusion model.

    Nothing behind the UNet's and the VAE decoder's last tap exists: those layers are neither built
    nor loaded nor run. (The VAE's encoder is whole: it makes the latent.)

    Args:
        arch: name of a preset (``sd_v1``, ``sd_v2``, ``tiny``) or the fields of a
            :class:`~odise_mm.models.backbones.diffusion_arch.DiffusionArch`.
        weights: hub id, diffusers folder or original file; None leaves random weights.
        taps: which features, see :class:`Taps`; the paper's eight by default.
        steps: diffusion time steps t (paper's default (0,)). A negative one means the clean latent
            at time step 0. The UNet's features of several steps are concatenated along channels.
        noise_seed: seed of the one fixed noise that all images share (published: 42).
        use_checkpoint: recompute the UNet's activations in the backward pass (training only).

    Attributes:
        channels: channels of every feature map, in the order of ``forward``'s list.
        strides: its stride in pixels of the tile, at most 32: a coarser map is used as stride 32.
        empty_context: embedding of the empty prompt, (1, 77, context width); zeros without weights.
        context_width, time_width: widths that a :class:`Condition` has to have.
        divisor: edges of a tile have to be multiples of it, 64 in Stable Diffusion.

    Raises:
        ValueError: unknown architecture, a tap or step that does not exist.
        odise_mm.utils.checkpoint.CheckpointError: weights missing or of another architecture.
    """

    def __init__(
        self,
        arch: str | dict | DiffusionArch = "sd_v1",
        weights: str | None = None,
        taps: Taps | dict | Sequence[Sequence[int]] = PAPER_TAPS,
        steps: Sequence[int] = (0,),
        noise_seed: int = 42,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        from diffusers import AutoencoderKL, UNet2DConditionModel

        self.arch = get_arch(arch)
        self.taps = _as_taps(taps)
        self.steps = tuple(steps)
        self.use_checkpoint = use_checkpoint
        if not self.steps or max(self.steps) > 999:
            raise ValueError(f"steps={self.steps}: name at least one, each at most 999")

        with torch.device("meta"):
            vae = AutoencoderKL(**self.arch.vae)
            unet = UNet2DConditionModel(**self.arch.unet)
        self.context_width = unet.config.cross_attention_dim
        self.time_width = unet.time_embedding.linear_2.out_features
        self.channels, self.strides = self._describe(unet, vae)
        # Each level but the last halves the map, and what comes up must fit what went down.
        self.divisor = 2 ** (len(vae.encoder.down_blocks) + len(unet.down_blocks) - 2)
        all_keys = {"unet": frozenset(unet.state_dict()), "vae": frozenset(vae.state_dict())}
        self._prune(unet, vae)
        self.unet = unet if self.taps.unet else None
        self.vae = vae

        self._prompts = PromptEncoder(self.arch, weights)
        empty = torch.zeros(1, CONTEXT_LENGTH, self.context_width)
        if not is_meta_context():
            if weights is None:
                materialise(self)
            else:
                source = DiffusionWeights(weights, self.arch)
                parts = {"vae": self.vae, "unet": self.unet}
                for name, module in parts.items():
                    if module is not None:
                        unused = all_keys[name] - frozenset(module.state_dict())
                        source.fill(module, name, unused)
                # This encoder is used once and dropped: it takes no memory afterwards.
                empty = PromptEncoder(self.arch, weights, source)([""], "cpu")
        self.register_buffer("empty_context", empty, persistent=False)
        with torch.device("cpu"):
            generator = torch.Generator("cpu").manual_seed(noise_seed)
            size = self.arch.latent_size
            noise = torch.randn(1, self.vae.config.latent_channels, size, size, generator=generator)
        self.register_buffer("noise", noise, persistent=False)
        self._signal_and_noise = _noise_schedule(self.arch.betas)
        self.freeze()

    def describe(self) -> dict:
        """What other parts want to know of this one, by the names of their arguments."""
        return super().describe() | {
            "empty_context": self.empty_context,
            "time_width": self.time_width,
            "num_steps": len(self.steps),
            "prompt_encoder": self.encode_prompts,
        }

    def encode_prompts(self, texts: Sequence[str]) -> Tensor:
        """Conditioning of texts, (len(texts), 77, context width) float32 on this one's device.

        The diffusion model's own text encoder is built and loaded at the first call, from where
        the other weights are. It is no part of this module: neither counted nor in a state dict.
        """
        if self.device.type == "meta":
            return torch.empty(len(texts), *self.empty_context.shape[1:], device="meta")
        return self._prompts(texts, self.device)

    def forward(self, tiles: Tensor, condition: Condition | None = None) -> list[Tensor]:
        """Feature maps of a batch of tiles.

        Args:
            tiles: (N, 3, S, S) in [0, 1], RGB; S a multiple of 64.
            condition: from a captioner; the empty prompt by default. Gradients reach it through the
                UNet; nothing else here tracks any.

        Returns:
            One (N, channels[i], S / s, S / s) map for every tap: encoder, UNet, decoder. s is the
            true stride, which may exceed ``strides[i]``, see there.

        Raises:
            ValueError: S is no multiple of what the UNet needs.
        """
        height, width = tiles.shape[-2:]
        if height % self.divisor or width % self.divisor:
            raise ValueError(
                f"tiles of {height} x {width} pixels: the diffusion model needs multiples of "
                f"{self.divisor}; check tile_size and the data preprocessor's pad_size_divisor"
            )
        condition = condition or Condition(self.empty_context.expand(len(tiles), -1, -1))
        with self.own_precision():
            with torch.no_grad():
                latent, encoder_taps = self.encode(tiles)
                decoder_taps = self._decoder_taps(latent)
            per_step = [
                self._unet_taps(self.add_noise(latent, step), step, index, condition)
                for index, step in enumerate(self.steps)
            ]
        unet_taps = [torch.cat(maps, dim=1) for maps in zip(*per_step, strict=True)]
        return [*encoder_taps, *unet_taps, *decoder_taps]

    def encode(self, tiles: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Latent of the tiles (mean of the posterior, scaled) and the encoder's taps.

        Args:
            tiles: (N, 3, S, S) in [0, 1].

        Returns:
            (N, 4, S / 8, S / 8) and a list of maps.
        """
        encoder = self.vae.encoder
        taps: dict[int, Tensor] = {}
        hidden = encoder.conv_in(tiles.to(self.dtype) * 2 - 1)
        block = 0
        for level in encoder.down_blocks:
            for resnet in level.resnets:
                if block in self.taps.vae_encoder:
                    taps[block] = hidden
                hidden = resnet(hidden, temb=None)
                block += 1
            for downsampler in level.downsamplers or ():
                hidden = downsampler(hidden)
        hidden = encoder.mid_block(hidden)
        hidden = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(hidden)))
        mean = self.vae.quant_conv(hidden).chunk(2, dim=1)[0]
        return self.arch.scaling_factor * mean, [taps[block] for block in self.taps.vae_encoder]

    def add_noise(self, latent: Tensor, step: int) -> Tensor:
        """x_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps (paper, equation 1); z itself for t < 0."""
        if step < 0:
            return latent
        noise = self.noise
        if noise.shape[-2:] != latent.shape[-2:]:
            noise = F.interpolate(
                noise.float(), latent.shape[-2:], mode="bicubic", align_corners=False
            )
        signal, sigma = self._signal_and_noise[step]
        return signal * latent + sigma * noise.to(latent)

    def _unet_taps(self, noisy: Tensor, step: int, index: int, condition: Condition) -> list:
        if self.unet is None:
            return []
        unet = self.unet
        context = condition.context.to(noisy)
        time = unet.time_proj(torch.full((len(noisy),), max(step, 0), device=noisy.device))
        time = unet.time_embedding(time.to(noisy))
        if condition.time is not None:
            time = time + condition.time[:, index].to(noisy)

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
        if block == self.taps.unet[-1]:  # the last tap is the input of a block that is not built
            taps[block] = torch.cat([hidden, skips.pop()], dim=1)
        return [taps[block] for block in self.taps.unet]

    def _decoder_taps(self, latent: Tensor) -> list[Tensor]:
        if not self.taps.vae_decoder:
            return []
        decoder = self.vae.decoder
        taps: dict[int, Tensor] = {}
        hidden = decoder.conv_in(self.vae.post_quant_conv(latent / self.arch.scaling_factor))
        hidden = decoder.mid_block(hidden)
        block = 0
        for level in decoder.up_blocks:
            for resnet in level.resnets:
                if block in self.taps.vae_decoder:
                    taps[block] = hidden
                block += 1
                hidden = resnet(hidden, temb=None)
            for upsampler in level.upsamplers or ():
                hidden = upsampler(hidden)
        taps[block] = hidden  # the last tap is the input of a block that is not built
        return [taps[block] for block in self.taps.vae_decoder]

    def _run(self, layer: nn.Module, *inputs: Tensor, **options: bool):
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False, **options)
        return layer(*inputs, **options)

    def _describe(self, unet: nn.Module, vae: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Channels and strides of all taps, from the layers alone."""
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
                        f"taps.{name} names block {tap}, but this architecture's {name} has blocks "
                        f"0 to {len(blocks) - 1}"
                    )
                block, stride = blocks[tap]
                channels.append(block.in_channels * repeat)
                strides.append(min(stride, MAX_STRIDE))
        return tuple(channels), tuple(strides)

    def _prune(self, unet: nn.Module, vae: nn.Module) -> None:
        """Remove what lies behind the last tap of the UNet and of the VAE's decoder."""
        unet.conv_norm_out = unet.conv_act = unet.conv_out = None
        if self.taps.unet:
            unet.up_blocks = _keep_before(unet.up_blocks, self.taps.unet[-1])
        if not self.taps.vae_decoder:
            vae.decoder = vae.post_quant_conv = None
            return
        vae.decoder.up_blocks = _keep_before(vae.decoder.up_blocks, self.taps.vae_decoder[-1])
        vae.decoder.conv_norm_out = vae.decoder.conv_act = vae.decoder.conv_out = None


def _keep_before(levels: nn.ModuleList, tap: int) -> nn.ModuleList:
    """The layers that are run before residual block ``tap``."""
    kept = []
    first = 0
    for level in levels:
        count = min(tap - first, len(level.resnets))
        complete = count == len(level.resnets)
        first += len(level.resnets)
        if complete and tap >= first:
            kept.append(level)
            continue
        if count > 0:
            level.resnets = level.resnets[:count]
            if hasattr(level, "attentions") and len(level.attentions) > count:
                level.attentions = level.attentions[:count]
            level.upsamplers = None
            kept.append(level)
        break
    return nn.ModuleList(kept)


def _as_taps(taps: Taps | dict | Sequence[Sequence[int]]) -> Taps:
    if isinstance(taps, dict):
        unknown = set(taps) - set(Taps._fields)
        if unknown:
            raise ValueError(
                f"taps of {', '.join(sorted(unknown))}: there are only {', '.join(Taps._fields)}"
            )
        taps = Taps(**taps)
    taps = Taps(*(tuple(sorted(blocks)) for blocks in taps))
    if not any(taps):
        raise ValueError("taps: name at least one residual block")
    return taps


def _noise_schedule(betas: tuple[float, float]) -> list[tuple[float, float]]:
    """(sqrt(abar_t), sqrt(1 - abar_t)) of the "scaled linear" schedule, float64 rounded to 32."""
    first, last = np.sqrt(np.asarray(betas, dtype=np.float64))
    kept = np.cumprod(1 - np.linspace(first, last, 1000, dtype=np.float64) ** 2)
    signal, noise = np.sqrt(kept).astype(np.float32), np.sqrt(1 - kept).astype(np.float32)
    return list(zip(signal.tolist(), noise.tolist(), strict=True))
