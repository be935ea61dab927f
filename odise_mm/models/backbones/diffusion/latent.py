"""What all backbones on latent diffusion models share: the latent, its noise, steps, conditions."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from odise_mm.errors import ConfigError
from odise_mm.models.backbones.base import Backbone
from odise_mm.models.backbones.diffusion.condition import Condition
from odise_mm.utils.settings import is_whole


class LatentBackbone(Backbone):
    """Base class of the features of a frozen latent diffusion model.

    A subclass builds the VAE and the denoiser (a UNet or a transformer), sets the attributes, calls
    :meth:`_set_noise`, and implements :meth:`_denoiser_taps`.

    Attributes:
        vae: the first stage, an ``AutoencoderKL`` or ``VQModel`` of diffusers.
        scaling_factor: factor from the latent of the first stage to the input of the denoiser.
        shift_factor: subtracted from the latent of the first stage before it is scaled.
        steps: diffusion time steps.
        empty_context: condition for no text or class, (1, tokens, context width). Zeros without
            weights.
        context_width: width of :attr:`Condition.context`.
        time_width: width of :attr:`Condition.time`.
        divisor: height and width of a tile must be multiples of this.
        use_checkpoint: recompute the denoiser's activations in the backward pass.
        in_steps: number of time steps that are concatenated in each feature map.
        denoiser: name of the denoiser in tables of parts.
    """

    denoiser: str
    in_steps: tuple[int, ...]
    vae: nn.Module
    empty_context: Tensor
    noise: Tensor
    noise_levels: Tensor
    steps: tuple[int, ...]
    context_width: int
    time_width: int
    divisor: int
    use_checkpoint: bool
    scaling_factor: float
    shift_factor: float = 0.0
    _latent_channels: int

    def _set_noise(
        self, seed: int, size: int, betas: tuple[float, float] | None, schedule: str
    ) -> None:
        """Register the fixed noise, (1, C, size, size), and its schedule.

        Args:
            seed: seed of the noise.
            size: height and width of the noise.
            betas, schedule: see :func:`noise_schedule`.
        """
        with torch.device("cpu"):
            generator = torch.Generator("cpu").manual_seed(seed)
            noise = torch.randn(1, self._latent_channels, size, size, generator=generator)
        self.register_buffer("noise", noise, persistent=False)
        self._signal_and_noise = noise_schedule(betas, schedule)
        levels = torch.tensor(self._signal_and_noise)
        self.register_buffer("noise_levels", levels, persistent=False)

    def freeze(self) -> None:
        """See :meth:`FrozenModule.freeze`. The weights of the VAE become channels-last.

        CPUs run the VAE's large maps faster in that layout. The denoiser is not faster in it.
        """
        from odise_mm.models.backbones.diffusion.frozen_blocks import use_frozen_blocks

        super().freeze()
        use_frozen_blocks(self)
        self.vae.to(memory_format=torch.channels_last)

    def describe(self) -> dict:
        """Return values that other parts are built with, keyed by their argument names."""
        return super().describe() | {
            "empty_context": self.empty_context,
            "time_width": self.time_width,
            "num_steps": len(self.steps),
            "in_steps": self.in_steps,
        }

    def forward(self, tiles: Tensor, condition: Condition | None = None) -> list[Tensor]:
        """Compute the feature maps of a batch of tiles.

        Args:
            tiles: (N, 3, H, W) in [0, 1], RGB. H and W must be multiples of ``divisor``.
            condition: condition from a captioner. Defaults to the empty condition. Gradients flow
                to it through the denoiser (and through the noise level, if it has a step), and to
                nothing else.

        Returns:
            One (N, channels[i], H / s, W / s) map for each tap, in the order VAE encoder, denoiser,
            VAE decoder. s is the actual stride, which may be larger than ``strides[i]``.

        Raises:
            ValueError: H or W is not a multiple of ``divisor``; the condition has a step, but the
                backbone has several.
        """
        height, width = tiles.shape[-2:]
        if height % self.divisor or width % self.divisor:
            raise ValueError(
                f"tiles of {height} x {width} pixels: the diffusion model needs multiples of "
                f"{self.divisor}; check tile_size and the data preprocessor's pad_size_divisor"
            )
        condition = condition or Condition(self.empty_context.expand(len(tiles), -1, -1))
        steps = self.steps if condition.step is None else (condition.step,)
        if len(steps) != len(self.steps):
            raise ValueError(
                f"a learned step replaces a single step, but the backbone has steps={self.steps}"
            )
        with self.own_precision():
            with torch.no_grad():
                latent, encoder_taps = self.encode(tiles)
                decoder_taps = self._decoder_taps(latent)
            per_step = [
                self._denoiser_taps(self.add_noise(latent, step), step, index, condition, tiles)
                for index, step in enumerate(steps)
            ]
        denoiser_taps = [torch.cat(maps, dim=1) for maps in zip(*per_step, strict=True)]
        return [*encoder_taps, *denoiser_taps, *decoder_taps]

    def encode(self, tiles: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute the latent of the tiles and the encoder's features.

        Args:
            tiles: (N, 3, H, W) in [0, 1], RGB.

        Returns:
            The latent, (N, C, H / s, W / s), and the list of feature maps. The latent is the mean
            of the posterior, or the encoder's output before quantization, minus the shift and times
            the scaling factor. C and s are 4 and 8 in Stable Diffusion 1 and 2, 16 and 8 in Stable
            Diffusion 3 and FLUX, 3 and 4 in LDM.
        """
        if tiles.device.type != "cpu" or len(tiles) == 1:
            return self._encode(tiles)
        # One by one: the largest maps would not fit into a CPU's caches anyway.
        latents, taps = zip(*map(self._encode, tiles.split(1)), strict=True)
        return torch.cat(latents), [torch.cat(maps) for maps in zip(*taps, strict=True)]

    def _encode(self, tiles: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute :meth:`encode` for all tiles together."""
        encoder = self.vae.encoder
        wanted = self._encoder_blocks()
        taps: dict[int, Tensor] = {}
        hidden = encoder.conv_in(tiles.to(self.dtype) * 2 - 1)
        block = 0
        for level in encoder.down_blocks:
            for resnet in level.resnets:
                if block in wanted:
                    taps[block] = hidden
                hidden = resnet(hidden, temb=None)
                block += 1
            for downsampler in level.downsamplers or ():
                hidden = downsampler(hidden)
        hidden = encoder.mid_block(hidden)
        hidden = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(hidden)))
        if self.vae.quant_conv is not None:
            hidden = self.vae.quant_conv(hidden)
        mean = hidden[:, : self._latent_channels]
        if self.shift_factor:
            mean = mean - self.shift_factor
        latent = self.scaling_factor * mean
        # the denoiser is not channels-last, see `freeze`
        return latent.contiguous(), [taps[block] for block in wanted]

    def add_noise(self, latent: Tensor, step: int | Tensor) -> Tensor:
        """Return the noisy latent x_t of a time step, see :func:`noise_schedule`.

        Args:
            latent: z, (N, C, h, w).
            step: t. For a negative number, z is returned unchanged. A tensor in [0, 999] may be
                fractional: both factors are interpolated linearly between the entries of the
                schedule, and gradients flow to the tensor.

        Returns:
            (N, C, h, w)
        """
        if isinstance(step, int) and step < 0:
            return latent
        noise = self.noise
        if noise.shape[-2:] != latent.shape[-2:]:
            noise = F.interpolate(
                noise.float(), latent.shape[-2:], mode="bicubic", align_corners=False
            )
        if isinstance(step, int):
            signal, sigma = self._signal_and_noise[step]
            return signal * latent + sigma * noise.to(latent)
        levels = self.noise_levels
        below = step.detach().floor().long().clamp(0, len(levels) - 1).reshape(1)
        above = (below + 1).clamp(max=len(levels) - 1)
        ends = (levels.index_select(0, index)[0] for index in (below, above))
        signal, sigma = torch.lerp(*ends, (step - below).to(levels)).unbind()
        return (signal * latent.to(levels) + sigma * noise.to(levels)).to(latent)

    def _encoder_blocks(self) -> Sequence[int]:
        """Return the blocks of the VAE encoder whose inputs are features."""
        return ()

    def _decoder_taps(self, latent: Tensor) -> list[Tensor]:
        """Compute the features of the VAE decoder from the clean latent."""
        return []

    def _denoiser_taps(
        self, noisy: Tensor, step: int | Tensor, index: int, condition: Condition, tiles: Tensor
    ) -> list[Tensor]:
        """Compute the features of the denoiser for one time step.

        Args:
            noisy: noisy latent, (N, C, h, w).
            step: the time step; negative for the clean latent, a tensor if it is learned.
            index: number of the step in ``steps``.
            condition: see :meth:`forward`.
            tiles: (N, 3, H, W), for their size.
        """
        raise NotImplementedError

    def _run(self, layer: nn.Module, *inputs: Tensor, **options: Any):
        """Run a layer; recompute its activations in the backward pass if configured so."""
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False, **options)
        return layer(*inputs, **options)


def step_tensor(step: int | Tensor, noisy: Tensor) -> Tensor:
    """Return a time step as a tensor, (N,); negative steps become 0."""
    if isinstance(step, int):
        step = torch.full((), max(step, 0), device=noisy.device)
    return step.expand(len(noisy))


def vae_levels_stride(vae: nn.Module) -> int:
    """Return the stride of the latent in pixels: all levels but the last halve the map."""
    return 2 ** (len(vae.encoder.down_blocks) - 1)


def drop_decoder(vae: nn.Module) -> None:
    """Remove all layers that only the decoder of a VAE needs."""
    vae.decoder = vae.post_quant_conv = None
    vae.quantize = None


def as_steps(steps: Sequence[int]) -> tuple[int, ...]:
    """Check the time steps of a config.

    Raises:
        ConfigError: not a list of integers, each at most 999.
    """
    listed = isinstance(steps, Sequence) and not isinstance(steps, str) and len(steps) > 0
    if not listed or not all(is_whole(step) and step <= 999 for step in steps):
        raise ConfigError(
            f"steps={steps!r} must be a list of at least one integer, each at most 999"
        )
    return tuple(operator.index(step) for step in steps)


def noise_schedule(betas: tuple[float, float] | None, schedule: str) -> list[tuple[float, float]]:
    """Return the factors of the latent and of the noise for all time steps t from 0 to 999.

    Diffusion: sqrt(abar_t) and sqrt(1 - abar_t) (ODISE, equation 1). Flow matching: 1 - sigma and
    sigma, with sigma = t / 1000, as in ``FlowMatchEulerDiscreteScheduler`` of diffusers. The
    scheduler's ``shift`` only changes which steps are sampled.

    Args:
        betas: first and last beta of the 1,000 steps. None: flow matching.
        schedule: ``scaled_linear`` or ``linear``; see
            :class:`~odise_mm.models.backbones.diffusion.presets.DiffusionArch`.

    Returns:
        1,000 pairs, rounded from float64 to float32.

    Raises:
        ValueError: unknown schedule.
    """
    if betas is None:
        sigma = np.arange(1000, dtype=np.float64) / 1000
        return _pairs(1 - sigma, sigma)
    if schedule not in ("scaled_linear", "linear"):
        raise ValueError(f"beta_schedule={schedule!r} must be scaled_linear or linear")
    first, last = np.asarray(betas, dtype=np.float64)
    if schedule == "linear":
        all_betas = np.linspace(first, last, 1000, dtype=np.float64)
    else:
        all_betas = np.linspace(np.sqrt(first), np.sqrt(last), 1000, dtype=np.float64) ** 2
    kept = np.cumprod(1 - all_betas)
    return _pairs(np.sqrt(kept), np.sqrt(1 - kept))


def _pairs(signal: np.ndarray, noise: np.ndarray) -> list[tuple[float, float]]:
    columns = (values.astype(np.float32).tolist() for values in (signal, noise))
    return list(zip(*columns, strict=True))
