"""Texts to token numbers by a list of words: for small text encoders that know one word list."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from odise_mm.errors import VocabularyError
from odise_mm.utils.files import regular_file, write_text

WORDS_FILE = "words.txt"
"""What a folder with a model calls its list of words."""

_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")
_SPECIAL = 3  # pad, start, end


class WordTokenizer:
    """One token for every word of a list, in place of CLIP's byte pair encoding.

    A text is read in lower case; a word is letters and digits, with hyphens or apostrophes inside
    ("polka-dot"); all else separates words. Token 0 fills texts up, words count from 1 in the
    list's order, then come the start and the end token, so that the end token has the highest
    number, by which CLIP's text towers find it.

    A word that is not in the list is an error, not an "unknown" token: no training has ever said
    what such a token means, so that the numbers would be meaningless without a sign of it.

    Args:
        words: all of them, in lower case, each once; or a text file with one word per line.
        context_length: tokens of a text, start and end included. Longer ones are cut.

    Attributes:
        words: the list.
        vocab_size: numbers of tokens, words and the three others.
        pad_token_id, sot_token_id, eot_token_id: the numbers of those three.

    Raises:
        VocabularyError: a file that cannot be read; no words, one twice, or something that is not
            one word in lower case.
    """

    def __init__(self, words: str | os.PathLike[str] | Sequence[str], context_length: int) -> None:
        source = "the list of words"
        if isinstance(words, str | os.PathLike):
            source = str(words)
            words = _read(words)
        self.words = tuple(words)
        self.context_length = context_length
        self._numbers = {word: number for number, word in enumerate(self.words, 1)}
        for word in self.words:
            if word != word.lower() or not _WORD.fullmatch(word):
                raise VocabularyError(f"{source}: {word!r} is not one word in lower case")
        if len(self._numbers) < len(self.words) or not self.words:
            twice = [word for word in self._numbers if self.words.count(word) > 1]
            wrong = f"{', '.join(twice)} more than once" if twice else "no words"
            raise VocabularyError(f"{source} has {wrong}")
        self.pad_token_id = 0
        self.sot_token_id = len(self.words) + 1
        self.eot_token_id = len(self.words) + 2
        self.vocab_size = len(self.words) + _SPECIAL

    def encode(self, text: str) -> list[int]:
        """Numbers of the words of a text, without start and end.

        Raises:
            VocabularyError: a word that is not in the list; similar ones are named.
        """
        found = []
        for word in _WORD.findall(text.lower()):
            if word not in self._numbers:
                raise VocabularyError(
                    f"{text!r}: the text encoder knows {len(self.words)} words, and {word!r} is "
                    f"none of them ({self._hint(word)})"
                )
            found.append(self._numbers[word])
        return found

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Start token, words, end token, then padding: (len(texts), context_length) int64.

        Raises:
            VocabularyError: see :meth:`encode`.
        """
        texts = [texts] if isinstance(texts, str) else texts
        rows = torch.full((len(texts), self.context_length), self.pad_token_id)
        for row, text in zip(rows, texts, strict=True):
            middle = self.encode(text)[: self.context_length - 2]
            tokens = [self.sot_token_id, *middle, self.eot_token_id]
            row[: len(tokens)] = torch.tensor(tokens)
        return rows

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the list, one word per line."""
        write_text(path, "".join(f"{word}\n" for word in self.words))

    def _hint(self, word: str) -> str:
        close = difflib.get_close_matches(word, self.words, n=3)
        if close:
            return f"did you mean {' or '.join(close)}?"
        listed = ", ".join(self.words[:100])
        return f"they are: {listed}{', ...' if len(self.words) > 100 else ''}"


def _read(path: str | os.PathLike[str]) -> list[str]:
    path = regular_file(path, VocabularyError, "list of words")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise VocabularyError(f"the list of words {path} cannot be read: {reason}") from error
    return [line.strip() for line in lines if line.strip()]
