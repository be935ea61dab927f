"""What both text encoders read."""

from __future__ import annotations

from odise_mm.models.clip.word_tokenizer import WordTokenizer
from projects.toy_world import captions

CONTEXT_LENGTH = 32
"""Tokens of a text: the longest caption has 30 words, start and end are two more."""

TEMPLATES = ("{}", "a {}", "a photo of a {}.")
"""How names are written in training; the last is the package's own way to ask for one."""

WORDS: tuple[str, ...] = tuple(sorted({*captions.words(), "photo", "of"}))


def tokenizer() -> WordTokenizer:
    """The tokenizer of all models here."""
    return WordTokenizer(WORDS, CONTEXT_LENGTH)
