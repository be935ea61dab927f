"""What a latent diffusion model is told about an image: three kinds, one interface.

A condition is one tensor, (N, tokens, width), whatever the kind: a captioner need not know which.
Each kind says how the empty condition comes about, how texts become conditions, and how a condition
enters the UNet.

| kind | a condition's rows |
|---|---|
| ``text`` | the last hidden states of the text encoder, 77 tokens (Stable Diffusion 1 and 2) |
| ``text_and_size`` | hidden states of two text encoders side by side, 77 tokens; in a 78th row the
  second one's embedding of the whole text, filled up with zeros (SDXL) |
| ``class`` | one row of a table of classes (LDM, arXiv 2112.10752, section 4.3) |
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
from odise_mm.models.backbones.diffusion.weights import DiffusionWeights, random_text_encoder
from odise_mm.models.clip.word_tokenizer import WordTokenizer
from odise_mm.models.frozen import same_random_weights
from odise_mm.utils.locks import Lock
from odise_mm.utils.precision import full_precision

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

CACHE_SIZE = 256


class ConditionKind:
    """How a UNet is told of an image.

    Attributes:
        encoders: the text encoders among the parts of the weights; none for other kinds.
        parts: of the weights, which the empty condition is made from.
        shape: tokens and width of a condition.
        zero_empty_prompt: the empty text's condition is zeros, without asking a text encoder.
    """

    encoders: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    shape: tuple[int, int]
    zero_empty_prompt = False

    def __init__(self, arch: DiffusionArch) -> None:
        self.arch = arch

    def misfits(self, unet: Mapping[str, Any]) -> list[str]:
        """What in a UNet's config is not for conditions of this kind."""
        kind = unet["addition_embed_type"]
        return [] if kind is None else [f"addition_embed_type={kind!r}"]

    def empty(self, source: DiffusionWeights) -> Tensor:
        """The empty condition, (1, tokens, width)."""
        raise NotImplementedError

    def build(self, source: DiffusionWeights | None) -> list[nn.Module]:
        """The text encoders; None: with random weights, the same every time.

        Raises:
            ConfigError: there are none in this kind.
        """
        raise NotImplementedError

    def embed(self, encoders: Sequence[nn.Module], texts: Sequence[str]) -> Tensor:
        """Conditions of texts, (len(texts), tokens, width), on the encoders' device."""
        raise NotImplementedError

    def enter(
        self, unet: UNet2DConditionModel, time: Tensor, context: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """What the UNet gets.

        Args:
            unet: the UNet.
            time: time embedding, (N, time width).
            context: conditions, (N, tokens, width).
            size: of the tiles in pixels, height and width.

        Returns:
            The time embedding and the cross-attention's tokens.
        """
        return time, context


class TextCondition(ConditionKind):
    """A prompt's hidden states."""

    encoders = ("text_encoder",)

    def __init__(self, arch: DiffusionArch) -> None:
        super().__init__(arch)
        for name in ("text", "text_2")[: len(self.encoders)]:
            if not getattr(arch, name):
                raise ValueError(f"an architecture of condition={arch.condition!r} needs {name}")
        self.parts = self.encoders
        self.tokenizer = _word_tokenizer(arch) if arch.words else None
        length = self.tokenizer.context_length if self.tokenizer else CONTEXT_LENGTH
        self.shape = (length, arch.text["hidden_size"])

    def empty(self, source: DiffusionWeights) -> Tensor:
        # ODISE section 3.3: the implicit caption is added to the embedding of the empty prompt. The
        # encoder is built, used once and dropped: it takes no memory afterwards.
        with torch.no_grad():
            return self.embed(self.build(source), [""])

    def build(self, source: DiffusionWeights | None) -> list[nn.Module]:
        if source is not None:
            return [source.text_encoder(part) for part in self.encoders]
        with same_random_weights():
            return [random_text_encoder(self.arch, part) for part in self.encoders]

    def embed(self, encoders: Sequence[nn.Module], texts: Sequence[str]) -> Tensor:
        read = self.tokenizer or partial(tokenize, pad_token=self.arch.pad_token)
        return encoders[0](read(texts).to(encoders[0].device)).last_hidden_state


class TextAndSizeCondition(TextCondition):
    """SDXL: two text encoders' hidden states before the last layer; the whole text and sizes.

    Podell et al., arXiv 2307.01952, section 2. The sizes (of the original image and of the
    result) are the tile's, the crop begins at (0, 0).
    """

    encoders = ("text_encoder", "text_encoder_2")

    def __init__(self, arch: DiffusionArch) -> None:
        if arch.words:
            raise ValueError("condition='text_and_size' has text encoders of byte pairs, not words")
        super().__init__(arch)
        self.width = arch.text_2.get("projection_dim", 512)  # transformers' own default
        self.shape = (CONTEXT_LENGTH + 1, arch.text["hidden_size"] + arch.text_2["hidden_size"])
        if self.width > self.shape[1]:
            raise ValueError(f"projection_dim={self.width} is wider than a token: {self.shape[1]}")
        self.zero_empty_prompt = arch.zero_empty_prompt
        self.parts = () if arch.zero_empty_prompt else self.encoders

    def misfits(self, unet: Mapping[str, Any]) -> list[str]:
        kind, width = unet["addition_embed_type"], unet["projection_class_embeddings_input_dim"]
        if kind != "text_time":
            return [f"addition_embed_type={kind!r}"]
        wanted = self.width + 6 * unet["addition_time_embed_dim"]
        return [] if width == wanted else [f"additional embeddings of {width}, not {wanted}"]

    def empty(self, source: DiffusionWeights) -> Tensor:
        return torch.zeros(1, *self.shape) if self.zero_empty_prompt else super().empty(source)

    def embed(self, encoders: Sequence[nn.Module], texts: Sequence[str]) -> Tensor:
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
        tokens, whole = context[:, :-1], context[:, -1, : self.width]
        sizes = torch.tensor((*size, 0, 0, *size), device=time.device).expand(len(time), -1)
        added = {"text_embeds": whole, "time_ids": sizes}
        return time + unet.get_aug_embed(time, tokens, added), tokens


class ClassCondition(ConditionKind):
    """A class of the training data, or none: one row of a learned table."""

    parts = ("class_embedding",)

    def __init__(self, arch: DiffusionArch) -> None:
        super().__init__(arch)
        if arch.classes < 1:
            raise ValueError("an architecture of condition='class' needs classes")
        self.shape = (1, arch.unet["cross_attention_dim"])

    def empty(self, source: DiffusionWeights) -> Tensor:
        # The last row was trained on images whose class was withheld.
        return source.class_embedding()[-1:, None].clone()

    def build(self, source: DiffusionWeights | None) -> list[nn.Module]:
        raise ConfigError(
            "this diffusion model knows classes, not texts: it has no text encoder for captions. "
            "Take ImplicitCaptioner or EmptyCaptioner, or a text-to-image model"
        )


KINDS = {"text": TextCondition, "text_and_size": TextAndSizeCondition, "class": ClassCondition}


def condition_kind(arch: DiffusionArch) -> ConditionKind:
    """The kind that an architecture names.

    Raises:
        ValueError: an unknown kind, or fields of the architecture that it needs are missing.
    """
    if arch.condition not in KINDS:
        raise ValueError(f"condition={arch.condition!r}: one of {list(KINDS)}")
    return KINDS[arch.condition](arch)


def _word_tokenizer(arch: DiffusionArch) -> WordTokenizer:
    tokenizer = WordTokenizer(arch.words, arch.text.get("max_position_embeddings", 77))
    size = arch.text.get("vocab_size")
    if size != tokenizer.vocab_size:
        raise ValueError(
            f"text has vocab_size={size}, but {len(tokenizer.words)} words need "
            f"{tokenizer.vocab_size}: these, start, end and padding"
        )
    return tokenizer


class PromptEncoder:
    """Text encoders of a diffusion model, built and loaded at the first call.

    It is no module: it is in no state dict and in no parameter count, and models that never call
    it never pay for it. Several threads may call it; one at a time is served.

    Args:
        kind: how the model is told of a text.
        weights: the source that the backbone has; None: random weights, the same every time.
    """

    def __init__(self, kind: ConditionKind, weights: str | None) -> None:
        self.kind = kind
        self.weights = weights
        self._encoders: list[nn.Module] | None = None
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = Lock()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], device: torch.device | str) -> Tensor:
        """Conditions, (len(texts), tokens, width) float32 on ``device``.

        A text is cut after 75 tokens (the positions of the encoder, less two), as the diffusion
        model's own pipeline does. Those of the last 256 texts are remembered.

        Raises:
            ConfigError: the model has no text encoder.
            CheckpointError: its weights cannot be read.
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
            # Loading overwrites them; but a training's random numbers must not move.
            with same_random_weights():
                self._encoders = self.kind.build(source)
        with full_precision(torch.empty(0, device=device)):
            return self.kind.embed([e.to(device) for e in self._encoders], texts)


class Condition(NamedTuple):
    """What a captioner tells a diffusion model.

    Attributes:
        context: what the UNet is told, (N, tokens, context width); its rows are explained in
            :mod:`~odise_mm.models.backbones.diffusion.condition`.
        time: added to the time embedding of every step, (N, steps, time width), or None.
        step: one step in [0, 999], a tensor without axes that may be learned; takes the place of
            the backbone's only one. None: the backbone's own.
    """

    context: Tensor
    time: Tensor | None = None
    step: Tensor | None = None
