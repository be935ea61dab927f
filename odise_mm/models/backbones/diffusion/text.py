"""Prompts to the token numbers that a diffusion model's text encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from open_clip import SimpleTokenizer

CONTEXT_LENGTH = 77


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
