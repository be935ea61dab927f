"""Tokenization of prompts for the text encoder of a diffusion model."""

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
    """Tokenize texts with CLIP's byte pair encoding.

    A row holds the start token, at most 75 tokens of the text, the end token, and padding. The
    vocabulary is the one bundled with open_clip; nothing is downloaded.

    Args:
        texts: the prompts.
        pad_token: the token for padding.

    Returns:
        (len(texts), 77) int64.
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
