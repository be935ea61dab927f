"""The three families of diffusion transformers: how to build, condition and run their blocks.

The layers are those of diffusers. A family runs them in the order of the forward pass of its model,
and stops before the last tapped block.

A condition is a tensor (N, tokens, width), so captioners work with all families:

| family | rows of the empty condition |
|---|---|
| ``sd3`` | 77 tokens of both CLIP text encoders, concatenated and padded with zeros; T5's tokens; a
  last row with both CLIP embeddings of the whole text, padded with zeros |
| ``flux`` | T5's tokens; a last row with CLIP's embedding of the whole text, padded with zeros |
| ``pixart`` | T5's tokens without padding: the end token |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odise_mm.models.backbones.diffusion.dit_arch import CLASSES, DiTArch
from odise_mm.models.backbones.diffusion.text import CONTEXT_LENGTH, tokenize
from odise_mm.models.backbones.diffusion.weights import DiffusionWeights

T5_END = 1  # the other tokens of an empty prompt are padding, 0


class Stream(NamedTuple):
    """Inputs of a transformer block.

    Attributes:
        hidden: image tokens, (N, h * w, C).
        context: tokens of the condition, (N, tokens, C).
        time: embedding of time step and whole text, (N, C); in ``pixart`` the six modulations,
            (N, 6 * C).
        rotary: cosines and sines of the positions, in ``flux``.
    """

    hidden: Tensor
    context: Tensor
    time: Tensor
    rotary: tuple[Tensor, Tensor] | None = None


class Family:
    """Base class of the families.

    Args:
        arch: the architecture.

    Attributes:
        shape: number of tokens and width of a condition.
        pooled: width of the embedding of the whole text, in the last row of a condition; 0: none.
        kept: modules and parameters that compute the first AdaLN of a block.
    """

    kept: tuple[str, ...] = ("norm1", "norm")

    def __init__(self, arch: DiTArch) -> None:
        self.arch = arch
        self.config = self._defaults()
        self.shape: tuple[int, int] = (arch.t5_length, self.config["joint_attention_dim"])
        self.pooled: int = self.config["pooled_projection_dim"]

    def _defaults(self) -> dict[str, Any]:
        """Return the config of the transformer, including values that the config leaves out."""
        import inspect

        import diffusers

        parameters = inspect.signature(getattr(diffusers, CLASSES[self.arch.family])).parameters
        defaults = {name: value.default for name, value in parameters.items()}
        return defaults | self.arch.transformer

    @property
    def width(self) -> int:
        """Number of channels of the image tokens."""
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]

    @property
    def patch(self) -> int:
        """Height and width of a patch of the latent."""
        return self.config["patch_size"]

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the complete model."""
        return self.config["num_layers"]

    def build(self, blocks: int | None = None) -> nn.Module:
        """Build the transformer of diffusers.

        Args:
            blocks: number of blocks that are built. None: all.
        """
        import diffusers

        count = {} if blocks is None else self._counts(blocks)
        return getattr(diffusers, CLASSES[self.arch.family])(**(self.arch.transformer | count))

    def _counts(self, blocks: int) -> dict[str, int]:
        return {"num_layers": blocks}

    def blocks(self, transformer: nn.Module) -> list[nn.Module]:
        """Return all blocks in the order of execution."""
        return list(transformer.transformer_blocks)

    def prune(self, transformer: nn.Module, modulated: bool) -> None:
        """Remove what is not needed for the input of the last block that was built.

        Args:
            transformer: the transformer, changed in place.
            modulated: keep the first AdaLN of the last block.
        """
        transformer.norm_out = transformer.proj_out = None
        last = self.blocks(transformer)[-1]
        if modulated:
            for name in [*last._modules, *last._parameters]:
                if name not in self.kept:
                    setattr(last, name, None)
            return
        lists = (transformer.transformer_blocks, getattr(transformer, _SINGLE, ()))
        del (lists[1] if len(lists[1]) else lists[0])[-1]

    def misfits(self, latent_channels: int) -> list[str]:
        """Return what does not match in the architecture.

        Args:
            latent_channels: channels of the latent.
        """
        config = self.config
        wrong = []
        if config["in_channels"] != latent_channels * self._packed():
            wrong.append(
                f"{config['in_channels']} input channels for a latent with {latent_channels}"
            )
        for part in self.arch.text_parts:
            name, fields = self.arch.text_encoder(part)
            width = fields.get("d_model", 512)
            if name == "T5EncoderModel" and width != self.shape[1]:
                wrong.append(f"a {part} of width {width} for conditions {self.shape[1]} wide")
        whole = self._pooled_width()
        if whole != self.pooled:
            wrong.append(f"pooled_projection_dim={self.pooled} instead of {whole}")
        if self.pooled > self.shape[1]:
            wrong.append(f"pooled_projection_dim={self.pooled} above {self.shape[1]}")
        return wrong

    def _packed(self) -> int:
        return 1

    def _pooled_width(self) -> int:
        return 0

    def largest(self) -> int | None:
        """Return the largest height and width of the latent. None: any size."""
        return None

    def empty(self, source: DiffusionWeights) -> Tensor:
        """Return the condition of the empty prompt, (1, tokens, width).

        Args:
            source: the weights. Each text encoder is built, loaded, run and dropped in turn.
        """
        raise NotImplementedError

    def _t5(self, source: DiffusionWeights, part: str, length: int) -> Tensor:
        tokens = torch.zeros(1, length, dtype=torch.long)
        tokens[:, 0] = T5_END
        return source.text_encoder(part)(tokens).last_hidden_state

    def enter(
        self,
        transformer: nn.Module,
        noisy: Tensor,
        step: Tensor,
        condition: Tensor,
        change: Tensor | None,
    ) -> Stream:
        """Compute the inputs of the first block.

        Args:
            transformer: the transformer.
            noisy: noisy latent, (N, C, h, w).
            step: time step, (N,), in [0, 999].
            condition: (N, tokens, width).
            change: tensor that is added to the embedding of the time step, (N, width of the image
                tokens), or None.
        """
        context, whole = condition[:, :-1], condition[:, -1, : self.pooled]
        hidden, rotary = self._embed(transformer, noisy, context.shape[1])
        time = self._embed_time(transformer, step, whole)
        if change is not None:
            time = time + change
        return Stream(hidden, transformer.context_embedder(context), time, rotary)

    def _embed(
        self, transformer: nn.Module, noisy: Tensor, tokens: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        return transformer.pos_embed(noisy).contiguous(), None

    def _embed_time(self, transformer: nn.Module, step: Tensor, whole: Tensor) -> Tensor:
        return transformer.time_text_embed(step, whole)

    def run(self, run: Callable[..., Any], block: nn.Module, stream: Stream) -> Stream:
        """Run a block.

        Args:
            run: calls a module with its inputs.
            block: the block.
            stream: its inputs.
        """
        context, hidden = run(block, stream.hidden, stream.context, stream.time)
        return stream._replace(hidden=hidden, context=context)

    def modulate(self, block: nn.Module, stream: Stream) -> Tensor:
        """Apply the first AdaLN of a block to the image tokens: norm, scale and shift."""
        return block.norm1(stream.hidden, emb=stream.time)[0]


_SINGLE = "single_transformer_blocks"


class SD3(Family):
    """Stable Diffusion 3 and 3.5 (MMDiT, arXiv 2403.03206)."""

    def __init__(self, arch: DiTArch) -> None:
        super().__init__(arch)
        self.shape = (CONTEXT_LENGTH + arch.t5_length + 1, self.shape[1])

    def _pooled_width(self) -> int:
        texts = self.arch.texts
        return sum(texts[part].get("projection_dim", 512) for part in _CLIPS)

    def misfits(self, latent_channels: int) -> list[str]:
        """See :meth:`Family.misfits`."""
        wrong = super().misfits(latent_channels)
        both = sum(self.arch.texts[part]["hidden_size"] for part in _CLIPS)
        if both > self.shape[1]:
            wrong.append(f"joint_attention_dim={self.shape[1]} for two text encoders of {both}")
        return wrong

    def largest(self) -> int | None:
        """See :meth:`Family.largest`."""
        return self.config["pos_embed_max_size"] * self.patch

    def empty(self, source: DiffusionWeights) -> Tensor:
        """See :meth:`Family.empty`."""
        outputs = [
            source.text_encoder(part)(tokenize([""], pad), output_hidden_states=True)
            for part, pad in zip(_CLIPS, self.arch.pad_tokens, strict=True)
        ]
        clip = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        whole = torch.cat([output.text_embeds for output in outputs], dim=-1)[:, None]
        t5 = torch.zeros(1, self.arch.t5_length, self.shape[1])
        if "text_encoder_3" in self.arch.texts:
            t5 = self._t5(source, "text_encoder_3", self.arch.t5_length)
        return torch.cat([_widen(clip, t5), t5, _widen(whole, t5)], dim=1)


_CLIPS = ("text_encoder", "text_encoder_2")


class Flux(Family):
    """FLUX.1: blocks with two streams, followed by blocks with one."""

    def __init__(self, arch: DiTArch) -> None:
        super().__init__(arch)
        self.shape = (arch.t5_length + 1, self.shape[1])

    @property
    def patch(self) -> int:
        """See :attr:`Family.patch`; the pipeline packs 2 x 2 pixels of the latent into a token."""
        return 2

    @property
    def num_blocks(self) -> int:
        """See :attr:`Family.num_blocks`; double blocks come first."""
        return self.config["num_layers"] + self.config["num_single_layers"]

    def _counts(self, blocks: int) -> dict[str, int]:
        double = min(blocks, self.config["num_layers"])
        return {"num_layers": double, "num_single_layers": blocks - double}

    def blocks(self, transformer: nn.Module) -> list[nn.Module]:
        """See :meth:`Family.blocks`."""
        return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]

    def _packed(self) -> int:
        return self.patch**2

    def _pooled_width(self) -> int:
        return self.arch.texts["text_encoder"]["hidden_size"]

    def empty(self, source: DiffusionWeights) -> Tensor:
        """See :meth:`Family.empty`."""
        tokens = tokenize([""], self.arch.pad_tokens[0])
        whole = source.text_encoder("text_encoder")(tokens).pooler_output[:, None]
        t5 = self._t5(source, "text_encoder_2", self.arch.t5_length)
        return torch.cat([t5, _widen(whole, t5)], dim=1)

    def _embed(
        self, transformer: nn.Module, noisy: Tensor, tokens: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        packed = F.pixel_unshuffle(noisy, self.patch)
        rows, columns = packed.shape[-2:]
        positions = torch.zeros(tokens + rows * columns, 3, device=noisy.device)
        grid = positions[tokens:].view(rows, columns, 3)
        grid[..., 1] = torch.arange(rows, device=noisy.device)[:, None]
        grid[..., 2] = torch.arange(columns, device=noisy.device)
        hidden = transformer.x_embedder(packed.flatten(2).transpose(1, 2))
        return hidden, transformer.pos_embed(positions)

    def _embed_time(self, transformer: nn.Module, step: Tensor, whole: Tensor) -> Tensor:
        if not self.config["guidance_embeds"]:
            return transformer.time_text_embed(step, whole)
        guidance = torch.full_like(step, 1000 * self.arch.guidance, dtype=torch.float32)
        return transformer.time_text_embed(step, guidance, whole)

    def run(self, run: Callable[..., Any], block: nn.Module, stream: Stream) -> Stream:
        """See :meth:`Family.run`."""
        context, hidden = run(block, *stream)
        return stream._replace(hidden=hidden, context=context)

    def modulate(self, block: nn.Module, stream: Stream) -> Tensor:
        """See :meth:`Family.modulate`."""
        norm = block.norm1 if hasattr(block, "norm1") else block.norm
        return norm(stream.hidden, emb=stream.time)[0]


class PixArt(Family):
    """PixArt-Sigma (arXiv 2403.04692): cross-attention, and one AdaLN for all blocks."""

    kept = ("norm1", "scale_shift_table")

    def __init__(self, arch: DiTArch) -> None:
        self.arch = arch
        self.config = self._defaults()
        context = self.config["caption_channels"] or self.config["cross_attention_dim"]
        self.shape = (1, context)
        self.pooled = 0

    def prune(self, transformer: nn.Module, modulated: bool) -> None:
        """See :meth:`Family.prune`."""
        super().prune(transformer, modulated)
        transformer.scale_shift_table = None

    def misfits(self, latent_channels: int) -> list[str]:
        """See :meth:`Family.misfits`."""
        wrong = super().misfits(latent_channels)
        sizes = self.config["use_additional_conditions"]
        # diffusers' own rule
        if sizes or (sizes is None and self.config["sample_size"] == 128):
            wrong.append("use_additional_conditions (PixArt-alpha)")
        return wrong

    def empty(self, source: DiffusionWeights) -> Tensor:
        """See :meth:`Family.empty`."""
        # The pipeline masks the padding in the text encoder and in the transformer.
        return self._t5(source, "text_encoder", 1)

    def enter(
        self,
        transformer: nn.Module,
        noisy: Tensor,
        step: Tensor,
        condition: Tensor,
        change: Tensor | None,
    ) -> Stream:
        """See :meth:`Family.enter`."""
        hidden = transformer.pos_embed(noisy)
        adaln = transformer.adaln_single
        time = adaln.emb(step, None, None, batch_size=len(noisy), hidden_dtype=hidden.dtype)
        if change is not None:
            time = time + change
        if transformer.caption_projection is not None:
            condition = transformer.caption_projection(condition)
        return Stream(hidden, condition, adaln.linear(adaln.silu(time)))

    def run(self, run: Callable[..., Any], block: nn.Module, stream: Stream) -> Stream:
        """See :meth:`Family.run`."""
        # No masks: the condition has no padding.
        hidden = run(block, stream.hidden, None, stream.context, None, stream.time)
        return stream._replace(hidden=hidden)

    def modulate(self, block: nn.Module, stream: Stream) -> Tensor:
        """See :meth:`Family.modulate`."""
        table = block.scale_shift_table[None] + stream.time.unflatten(1, (6, -1))
        shift, scale = table[:, :1], table[:, 1:2]
        return block.norm1(stream.hidden) * (1 + scale) + shift


FAMILIES: dict[str, type[Family]] = {"sd3": SD3, "flux": Flux, "pixart": PixArt}


def _widen(narrow: Tensor, wide: Tensor) -> Tensor:
    """Pad the last dimension with zeros."""
    return F.pad(narrow, (0, wide.shape[-1] - narrow.shape[-1]))
