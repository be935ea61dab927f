"""Prompts to the conditioning of a text-to-image diffusion model, by its own text encoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from odise_mm.models.backbones.diffusion_arch import DiffusionArch
from odise_mm.models.backbones.diffusion_weights import DiffusionWeights
from odise_mm.utils.frozen import same_random_weights
from odise_mm.utils.precision import full_precision

if TYPE_CHECKING:
    from open_clip import SimpleTokenizer

CONTEXT_LENGTH = 77
CACHE_SIZE = 256


class PromptEncoder:
    """Text encoder of a diffusion model, built and loaded at the first call.

    It is no module: it is in no state dict and in no parameter count, and models that never call
    it never pay for it.

    Args:
        arch: whose text encoder.
        weights: the source that the backbone has, see
            :class:`~odise_mm.models.backbones.diffusion_weights.DiffusionWeights`; None: random
            weights, the same every time.
        source: that source where it is open already.
    """

    def __init__(
        self, arch: DiffusionArch, weights: str | None, source: DiffusionWeights | None = None
    ) -> None:
        self.arch = arch
        self.weights = weights
        self._source = source
        self._encoder: nn.Module | None = None
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], device: torch.device | str) -> Tensor:
        """Last hidden states, (len(texts), 77, context width) float32 on ``device``.

        A text is cut after 75 tokens, as the diffusion model's own pipeline does. Embeddings of the
        last 256 texts are remembered.
        """
        missing = [text for text in dict.fromkeys(texts) if text not in self._cache]
        found = {text: self._cache[text] for text in texts if text in self._cache}
        if missing:
            found.update(zip(missing, self._embed(missing, torch.device(device)), strict=True))
        for text, embedding in found.items():
            self._cache[text] = embedding
            self._cache.move_to_end(text)
        while len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        width = self.arch.text["hidden_size"]
        empty = torch.empty(0, CONTEXT_LENGTH, width, device=device)
        return torch.stack([found[text].to(device) for text in texts]) if texts else empty

    def _embed(self, texts: Sequence[str], device: torch.device) -> Tensor:
        if self._encoder is None:
            self._encoder = self._build()
        encoder = self._encoder.to(device)
        tokens = tokenize(texts, self.arch.pad_token).to(device)
        with full_precision(tokens):
            return encoder(tokens).last_hidden_state

    def _build(self) -> nn.Module:
        if self.weights is None:
            from transformers import CLIPTextConfig, CLIPTextModel

            with torch.device("cpu"), same_random_weights():
                encoder = CLIPTextModel(CLIPTextConfig(**self.arch.text))
        else:
            source = self._source or DiffusionWeights(self.weights, self.arch)
            encoder = source.text_encoder()
        return encoder.eval().requires_grad_(False)


def tokenize(texts: Sequence[str], pad_token: int) -> Tensor:
    """Token numbers of CLIP's byte pair encoding, (len(texts), 77).

    Start token, at most 75 tokens of the text, end token, and ``pad_token`` up to 77. The
    vocabulary is open_clip's bundled copy: nothing is downloaded.
    """
    tokenizer = _tokenizer()
    rows = torch.full((len(texts), CONTEXT_LENGTH), pad_token)
    for row, text in zip(rows, texts, strict=True):
        middle = tokenizer.encode(text)[: CONTEXT_LENGTH - 2]
        tokens = [tokenizer.sot_token_id, *middle, tokenizer.eot_token_id]
        row[: len(tokens)] = torch.tensor(tokens)
    return rows


@cache
def _tokenizer() -> SimpleTokenizer:
    from open_clip import SimpleTokenizer

    return SimpleTokenizer()
