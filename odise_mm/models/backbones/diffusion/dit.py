"""Features of a frozen diffusion transformer (Stable Diffusion 3 and 3.5, FLUX.1, PixArt-Sigma)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odise_mm.errors import ConfigError
from odise_mm.models.backbones.diffusion.condition import Condition
from odise_mm.models.backbones.diffusion.dit_arch import DiTArch, get_dit_arch
from odise_mm.models.backbones.diffusion.dit_families import FAMILIES
from odise_mm.models.backbones.diffusion.latent import (
    LatentBackbone,
    as_steps,
    drop_decoder,
    step_tensor,
    vae_levels_stride,
)
from odise_mm.models.backbones.diffusion.support import vae_misfits
from odise_mm.models.backbones.diffusion.weights import DiffusionWeights
from odise_mm.models.frozen import is_meta_context, materialize, same_random_weights
from odise_mm.registry import MODELS
from odise_mm.utils.settings import check_flag, check_whole, is_whole


@MODELS.register_module()
class DiTBackbone(LatentBackbone):
    """Raw feature maps of image tiles from a frozen diffusion transformer.

    A feature is the *input* of a transformer block: the image tokens as a map. All maps have one
    stride, that of the latent times the patch (8 x 2), so the neck needs
    ``levels=(4, 8, 16, 32)``. Blocks after the last tap, the last tapped block except for its first
    norm, and the VAE's decoder are neither built nor loaded nor run.

    The residual stream of diffusion transformers has a few channels with massive values at all
    positions. ``modulate`` applies the first adaptive norm (AdaLN) of the tapped block to its
    input, which normalizes these channels (DiTF, arXiv 2505.18584).

    The condition is that of the empty prompt. It is computed when the weights are loaded, by all
    text encoders of the model, one after the other; they are not kept.
    :class:`~odise_mm.models.ImplicitCaptioner` and :class:`~odise_mm.models.EmptyCaptioner` work
    with all families, but captioners that encode texts do not.

    Args:
        arch: name of a preset (``sd3_medium``, ``sd35_medium``, ``sd35_large``, ``flux_dev``,
            ``flux_schnell``, ``pixart_sigma``, ``tiny_sd3``, ...), the fields of a
            :class:`~odise_mm.models.backbones.diffusion.dit_arch.DiTArch`, or a diffusers folder or
            hub id whose config files describe the architecture.
        weights: hub id or diffusers folder. None: random weights, the same every time.
        taps: blocks whose inputs are returned, counted from 0, in ascending order. FLUX.1 counts
            double blocks first, then single blocks. By default, the blocks at 1/8, 1/4, 3/8 and 1/2
            of the depth; in FLUX.1 these are 7, 14, 21 and 28, and 28 is DiTF's.
        steps: diffusion time steps t, at most 999. The input of flow-matching models (Stable
            Diffusion 3, FLUX.1) is (1 - t / 1000) z + t / 1000 noise. The features of several steps
            are concatenated along channels; ``join_steps`` of the neck learns a weight for each.
        modulate: apply the first AdaLN of the tapped blocks. False returns the residual stream.
        noise_seed: seed of the fixed noise that is added to all images.
        use_checkpoint: recompute the transformer's activations in the backward pass (training
            only).

    Attributes:
        taps: the blocks whose inputs are returned.

    Raises:
        ValueError: unknown architecture.
        ConfigError: a tap or step that does not exist; an architecture whose parts do not match.
        CheckpointError: the weights are missing or belong to another architecture.
    """

    denoiser = "diffusion transformer"

    def __init__(
        self,
        arch: str | dict | DiTArch,
        weights: str | None = None,
        taps: Sequence[int] | None = None,
        steps: Sequence[int] = (0,),
        modulate: bool = True,
        noise_seed: int = 42,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        import diffusers

        self.arch = get_dit_arch(arch)
        self.family = FAMILIES[self.arch.family](self.arch)
        self.steps = as_steps(steps)
        self.taps = _as_taps(taps, self.family.num_blocks)
        for name, flag in (("modulate", modulate), ("use_checkpoint", use_checkpoint)):
            check_flag(name, flag)
        self.modulate = modulate
        self.use_checkpoint = use_checkpoint
        check_whole("noise_seed", noise_seed, least=0, most=2**63 - 1)

        with torch.device("meta"):
            vae = diffusers.AutoencoderKL(**self.arch.vae)
        vae_keys = frozenset(vae.state_dict())
        self._latent_channels = vae.config.latent_channels
        wrong = vae_misfits(vae) + self.family.misfits(self._latent_channels)
        if wrong:
            raise ConfigError(f"DiTBackbone does not support this model: it has {', '.join(wrong)}")
        self.scaling_factor = vae.config.scaling_factor
        self.shift_factor = vae.config.shift_factor or 0.0
        drop_decoder(vae)
        self.vae = vae
        stride = vae_levels_stride(vae) * self.family.patch
        self.divisor = self.tile_divisor = stride
        self.context_width = self.family.shape[1]
        self.time_width = self.family.width
        self.channels = (self.family.width * len(self.steps),) * len(self.taps)
        self.strides = (stride,) * len(self.taps)
        self.in_steps = (len(self.steps),) * len(self.taps)

        empty = torch.zeros(1, *self.family.shape)
        if weights is None or is_meta_context():
            with same_random_weights():
                self.transformer = self._build()
            materialize(self.vae)
        else:
            with torch.device("meta"):
                self.transformer = self._build()
            empty = self._load(weights, vae_keys)
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
            backbone._source(weights)

    def _build(self) -> torch.nn.Module:
        transformer = self.family.build(self.taps[-1] + 1)
        self.family.prune(transformer, self.modulate)
        return transformer

    def _source(self, weights: str) -> DiffusionWeights:
        """Return the source of all weights, downloaded if necessary."""
        return DiffusionWeights(weights, self.arch, ["vae", "transformer", *self.arch.text_parts])

    def _load(self, weights: str, vae_keys: frozenset[str]) -> Tensor:
        """Load the weights of the remaining layers, and return the empty condition.

        The text encoders come first, because the largest is dropped before the transformer is read.
        """
        source = self._source(weights)
        with torch.no_grad():
            empty = self.family.empty(source)
        source.fill(self.vae, "vae", vae_keys - frozenset(self.vae.state_dict()))
        with torch.device("meta"):
            keys = frozenset(self.family.build().state_dict())
        unused = keys - frozenset(self.transformer.state_dict())
        source.fill(self.transformer, "transformer", unused)
        self._fill_positions()
        return empty

    def _fill_positions(self) -> None:
        """Compute the position embeddings that are not part of the weights (PixArt-Sigma)."""
        missing = [name for name, buffer in self.transformer.named_buffers() if buffer.is_meta]
        if not missing:
            return
        with torch.device("cpu"):
            computed = dict(self.family.build(0).named_buffers())
        for name in missing:
            module, _, buffer = name.rpartition(".")
            setattr(self.transformer.get_submodule(module), buffer, computed[name])

    def forward(self, tiles: Tensor, condition: Condition | None = None) -> list[Tensor]:
        """Compute the feature maps of a batch of tiles, see :meth:`LatentBackbone.forward`.

        Raises:
            ValueError: see :meth:`LatentBackbone.forward`; or the tiles are larger than the
                position embeddings.
        """
        height, width = tiles.shape[-2:]
        largest = self.family.largest()
        stride = self.divisor // self.family.patch
        if largest is not None and max(height, width) > largest * stride:
            raise ValueError(
                f"tiles of {height} x {width} pixels: this diffusion transformer has position "
                f"embeddings for at most {largest * stride} x {largest * stride}; use a smaller "
                "tile_size"
            )
        return super().forward(tiles, condition)

    def _denoiser_taps(
        self, noisy: Tensor, step: int | Tensor, index: int, condition: Condition, tiles: Tensor
    ) -> list[Tensor]:
        family = self.family
        change = None if condition.time is None else condition.time[:, index].to(noisy)
        context = condition.context.to(noisy)
        time = step_tensor(step, noisy)
        stream = family.enter(self.transformer, noisy, time, context, change)
        size = [edge // family.patch for edge in noisy.shape[-2:]]
        blocks = family.blocks(self.transformer)
        maps = []
        for number in range(self.taps[-1] + 1):
            if number in self.taps:
                tokens = family.modulate(blocks[number], stream) if self.modulate else stream.hidden
                maps.append(tokens.transpose(1, 2).unflatten(2, size))
            if number < self.taps[-1]:
                stream = family.run(self._run, blocks[number], stream)
        return maps


def _as_taps(taps: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Check the taps of a config.

    Args:
        taps: blocks, or None.
        count: number of blocks.

    Raises:
        ConfigError: not a list of blocks that exist, in ascending order.
    """
    if taps is None:
        return tuple(sorted({count * eighth // 8 for eighth in (1, 2, 3, 4)}))
    listed = isinstance(taps, Sequence) and not isinstance(taps, str) and len(taps) > 0
    if not listed or not all(map(is_whole, taps)) or list(taps) != sorted(set(taps)):
        raise ConfigError(f"taps={taps!r} must be a list of integers in ascending order")
    outside = [tap for tap in taps if not 0 <= tap < count]
    if outside:
        raise ConfigError(
            f"taps contains {', '.join(map(str, outside))}, but the transformer has blocks 0 to "
            f"{count - 1}"
        )
    return tuple(int(tap) for tap in taps)
