"""Words and templates that both text encoders read."""

from __future__ import annotations

from odise_mm.models.clip.word_tokenizer import WordTokenizer
from projects.toy_world import captions

CONTEXT_LENGTH = 32
"""Tokens per text: the longest caption has 30 words, plus the start and end tokens."""

TEMPLATES = ("{}", "a {}", "a photo of a {}.")
"""Prompt templates for names in training; the last one is the package's default."""

WORDS: tuple[str, ...] = tuple(sorted({*captions.words(), "photo", "of"}))


def tokenizer() -> WordTokenizer:
    """Return the tokenizer of all models in this project."""
    return WordTokenizer(WORDS, CONTEXT_LENGTH)
