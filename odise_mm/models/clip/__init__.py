"""Frozen CLIP: sources of its weights, text encoder and tokenizers."""

from odise_mm.models.clip.frozen_clip import FrozenCLIP
from odise_mm.models.clip.text_encoder import TextEncoder
from odise_mm.models.clip.word_tokenizer import WordTokenizer

__all__ = ["FrozenCLIP", "TextEncoder", "WordTokenizer"]
