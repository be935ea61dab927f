"""Conditions of latent diffusion models: three kinds with one interface.

A condition of any kind is a tensor (N, tokens, width), so captioners work with all kinds. A kind
defines the empty condition, how texts are converted to conditions, and how the UNet uses them.

| kind | rows of a condition |
|---|---|
| ``text`` | last hidden states of the text encoder, 77 tokens (Stable Diffusion 1 and 2) |
| ``text_and_size`` | hidden states of two text encoders, concatenated along the width, 77 tokens;
  a 78th row holds the second encoder's embedding of the whole text, padded with zeros (SDXL) |
| ``class`` | one row of the table of class embeddings (LDM, arXiv 2112.10752, section 4.3) |
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odise_mm.errors import ConfigError
from odise_mm.models.backbones.diffusion.presets import DiffusionArch
from odise_mm.models.backbones.diffusion.text import CONTEXT_LENGTH, tokenize
from odise_mm.models.backbones.diffusion.weights import DiffusionWeights, build_text_encoder
from odise_mm.models.clip.word_tokenizer import WordTokenizer
from odise_mm.models.frozen import same_random_weights
from odise_mm.utils.locks import Lock
from odise_mm.utils.precision import full_precision

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

CACHE_SIZE = 256


class ConditionKind:
    """Base class of the kinds of conditions.

    Args:
        arch: the architecture of the diffusion model.

    Attributes:
        encoders: names of the text encoders in the weights. Empty for kinds without texts.
        parts: names of the weights that the empty condition is computed from.
        shape: number of tokens and width of a condition.
        zero_empty_prompt: the condition of the empty text is all zeros; no text encoder is used.
    """

    encoders: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    shape: tuple[int, int]
    zero_empty_prompt = False

    def __init__(self, arch: DiffusionArch) -> None:
        self.arch = arch

    def misfits(self, unet: Mapping[str, Any]) -> list[str]:
        """Return the settings of a UNet that do not match this kind of condition.

        Args:
            unet: config of the UNet.
        """
        kind = unet["addition_embed_type"]
        return [] if kind is None else [f"addition_embed_type={kind!r}"]

    def empty(self, source: DiffusionWeights) -> Tensor:
        """Return the empty condition, (1, tokens, width).

        Args:
            source: the weights of the diffusion model.
        """
        raise NotImplementedError

    def build(self, source: DiffusionWeights | None) -> list[nn.Module]:
        """Build the text encoders.

        Args:
            source: the weights. None: random weights, the same every time.

        Raises:
            ConfigError: this kind has no text encoders.
        """
        raise NotImplementedError

    def embed(self, encoders: Sequence[nn.Module], texts: Sequence[str]) -> Tensor:
        """Encode texts as conditions.

        Args:
            encoders: the result of :meth:`build`.
            texts: the prompts.

        Returns:
            (len(texts), tokens, width) on the device of the encoders.
        """
        raise NotImplementedError

    def enter(
        self, unet: UNet2DConditionModel, time: Tensor, context: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Convert conditions to the inputs of the UNet's blocks.

        Args:
            unet: the UNet.
            time: time embedding, (N, time width).
            context: conditions, (N, tokens, width).
            size: height and width of the tiles in pixels.

        Returns:
            The time embedding, (N, time width), and the tokens for cross-attention,
            (N, tokens, width).
        """
        return time, context


class TextCondition(ConditionKind):
    """Hidden states of a prompt (Stable Diffusion 1 and 2)."""

    encoders = ("text_encoder",)

    def __init__(self, arch: DiffusionArch) -> None:
        super().__init__(arch)
        for name in ("text", "text_2")[: len(self.encoders)]:
            if not getattr(arch, name):
                raise ValueError(f"condition={arch.condition!r}: the architecture must set {name}")
        self.parts = self.encoders
        self.tokenizer = _word_tokenizer(arch) if arch.words else None
        length = self.tokenizer.context_length if self.tokenizer else CONTEXT_LENGTH
        self.shape = (length, arch.text["hidden_size"])

    def empty(self, source: DiffusionWeights) -> Tensor:
        """See :meth:`ConditionKind.empty`."""
        # ODISE section 3.3: the implicit caption is added to the embedding of the empty prompt. The
        # encoder is needed only once, so it is not kept in memory.
        with torch.no_grad():
            return self.embed(self.build(source), [""])

    def build(self, source: DiffusionWeights | None) -> list[nn.Module]:
        """See :meth:`ConditionKind.build`."""
        if source is not None:
            return [source.text_encoder(part) for part in self.encoders]
        with same_random_weights():
            return [build_text_encoder(self.arch, part) for part in self.encoders]

    def embed(self, encoders: Sequence[nn.Module], texts: Sequence[str]) -> Tensor:
        """See :meth:`ConditionKind.embed`."""
        to_tokens = self.tokenizer or partial(tokenize, pad_token=self.arch.pad_token)
        return encoders[0](to_tokens(texts).to(encoders[0].device)).last_hidden_state


class TextAndSizeCondition(TextCondition):
    """Hidden states of two text encoders, embedding of the whole text, and image sizes (SDXL).

    Source: Podell et al., arXiv 2307.01952, section 2. The hidden states are those before the last
    layer. Original and target size are the size of the tile, and the crop starts at (0, 0).
    """

    encoders = ("text_encoder", "text_encoder_2")

    def __init__(self, arch: DiffusionArch) -> None:
        if arch.words:
            raise ValueError(
                "condition='text_and_size' does not support words: it needs byte pair encoding"
            )
        super().__init__(arch)
        self.width = arch.text_2.get("projection_dim", 512)  # transformers' own default
        self.shape = (CONTEXT_LENGTH + 1, arch.text["hidden_size"] + arch.text_2["hidden_size"])
        if self.width > self.shape[1]:
            raise ValueError(
                f"text_2.projection_dim={self.width} exceeds the width of a token, {self.shape[1]}"
            )
        self.zero_empty_prompt = arch.zero_empty_prompt
        self.parts = () if arch.zero_empty_prompt else self.encoders

    def misfits(self, unet: Mapping[str, Any]) -> list[str]:
        """See :meth:`ConditionKind.misfits`."""
        kind, width = unet["addition_embed_type"], unet["projection_class_embeddings_input_dim"]
        if kind != "text_time":
            return [f"addition_embed_type={kind!r}"]
        wanted = self.width + 6 * unet["addition_time_embed_dim"]
        return (
            []
            if width == wanted
            else [f"projection_class_embeddings_input_dim={width} instead of {wanted}"]
        )

    def empty(self, source: DiffusionWeights) -> Tensor:
        """See :meth:`ConditionKind.empty`."""
        return torch.zeros(1, *self.shape) if self.zero_empty_prompt else super().empty(source)

    def embed(self, encoders: Sequence[nn.Module], texts: Sequence[str]) -> Tensor:
        """See :meth:`ConditionKind.embed`."""
        pads = (self.arch.pad_token, self.arch.pad_token_2)
        outputs = [
            encoder(tokenize(texts, pad).to(encoder.device), output_hidden_states=True)
            for encoder, pad in zip(encoders, pads, strict=True)
        ]
        tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        whole = outputs[1].text_embeds[:, None]
        whole = F.pad(whole, (0, tokens.shape[-1] - self.width))
        return torch.cat([tokens, whole], dim=1)

    def enter(
        self, unet: UNet2DConditionModel, time: Tensor, context: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`ConditionKind.enter`."""
        tokens, whole = context[:, :-1], context[:, -1, : self.width]
        sizes = torch.tensor((*size, 0, 0, *size), device=time.device).expand(len(time), -1)
        added = {"text_embeds": whole, "time_ids": sizes}
        return time + unet.get_aug_embed(time, tokens, added), tokens


class ClassCondition(ConditionKind):
    """Embedding of a class of the diffusion model's training data, or of "no class" (LDM)."""

    parts = ("class_embedding",)

    def __init__(self, arch: DiffusionArch) -> None:
        super().__init__(arch)
        if arch.classes < 1:
            raise ValueError("condition='class': the architecture must set classes")
        self.shape = (1, arch.unet["cross_attention_dim"])

    def empty(self, source: DiffusionWeights) -> Tensor:
        """See :meth:`ConditionKind.empty`."""
        # The last row was trained on images without a class.
        return source.class_embedding()[-1:, None].clone()

    def build(self, source: DiffusionWeights | None) -> list[nn.Module]:
        """See :meth:`ConditionKind.build`."""
        raise ConfigError(
            "this diffusion model is conditioned on classes and has no text encoder for captions. "
            "Use ImplicitCaptioner or EmptyCaptioner, or a text-to-image model"
        )


KINDS = {"text": TextCondition, "text_and_size": TextAndSizeCondition, "class": ClassCondition}


def condition_kind(arch: DiffusionArch) -> ConditionKind:
    """Return the kind of condition that an architecture uses.

    Raises:
        ValueError: unknown kind, or the architecture lacks fields that the kind needs.
    """
    if arch.condition not in KINDS:
        raise ValueError(f"condition={arch.condition!r} must be one of {list(KINDS)}")
    return KINDS[arch.condition](arch)


def _word_tokenizer(arch: DiffusionArch) -> WordTokenizer:
    tokenizer = WordTokenizer(arch.words, arch.text.get("max_position_embeddings", 77))
    size = arch.text.get("vocab_size")
    if size != tokenizer.vocab_size:
        raise ValueError(
            f"text.vocab_size={size} must be {tokenizer.vocab_size}: {len(tokenizer.words)} words, "
            "start, end and padding"
        )
    return tokenizer


class PromptEncoder:
    """Text encoders of a diffusion model, built and loaded on the first call.

    It is not an ``nn.Module``, so it does not appear in state dicts or parameter counts, and models
    that do not use it need no memory for it. Calls are thread-safe; they run one at a time.

    Args:
        kind: the kind of condition that the diffusion model uses.
        weights: source of the backbone's weights. None: random weights, the same every time.
    """

    def __init__(self, kind: ConditionKind, weights: str | None) -> None:
        self.kind = kind
        self.weights = weights
        self._encoders: list[nn.Module] | None = None
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = Lock()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], device: torch.device | str) -> Tensor:
        """Encode texts as conditions.

        Texts are truncated to 75 tokens (the encoder's context length minus two), as in the
        pipeline of the diffusion model. The conditions of the last 256 texts are cached.

        Args:
            texts: the prompts.
            device: device of the result.

        Returns:
            (len(texts), tokens, width) float32.

        Raises:
            ConfigError: the model has no text encoder.
            CheckpointError: the weights of the text encoder cannot be read.
        """
        with self._lock:
            found = self._find(texts, torch.device(device))
        result = torch.empty(len(texts), *self.kind.shape, device=device)
        for row, text in zip(result, texts, strict=True):
            row.copy_(found[text])
        return result

    def _find(self, texts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        found = {text: self._cache[text] for text in texts if text in self._cache}
        if self.kind.zero_empty_prompt:
            found[""] = torch.zeros(self.kind.shape, device=device)
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing:
            found.update(zip(missing, self._embed(missing, device), strict=True))
        for text, embedding in found.items():
            self._cache[text] = embedding
            self._cache.move_to_end(text)
        while len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return found

    def _embed(self, texts: Sequence[str], device: torch.device) -> Tensor:
        if self._encoders is None:
            source = None
            if self.weights is not None:
                source = DiffusionWeights(self.weights, self.kind.arch, self.kind.encoders)
            # Without this, initialization would change the random numbers of a training run.
            with same_random_weights():
                self._encoders = self.kind.build(source)
        with full_precision(torch.empty(0, device=device)):
            return self.kind.embed([e.to(device) for e in self._encoders], texts)


class Condition(NamedTuple):
    """Output of a captioner: the condition of a diffusion model.

    Attributes:
        context: condition of the UNet, (N, tokens, context width). See
            :mod:`~odise_mm.models.backbones.diffusion.condition` for the rows.
        time: tensor that is added to the time embedding of each step, (N, steps, time width), or
            None.
        step: time step in [0, 999], a scalar tensor that may be learned. It replaces the single
            step of the backbone. None: use the backbone's steps.
    """

    context: Tensor
    time: Tensor | None = None
    step: Tensor | None = None
