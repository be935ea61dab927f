"""Word-level tokenizer for small text encoders."""

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
"""File name of the word list in the folder of a model."""

_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")
_SPECIAL = 3  # pad, start, end


class WordTokenizer:
    """Tokenizer with one token per word of a list, instead of CLIP's byte pair encoding.

    Texts are converted to lower case. A word consists of letters and digits, and of hyphens and
    apostrophes between them ("polka-dot"). All other characters separate words. Token 0 is for
    padding, followed by the words in the order of the list, the start token and the end token. The
    end token has the highest id, because CLIP's text towers find it by that.

    Unknown words raise an error. An "unknown" token would occur in no training run, so it would
    silently give meaningless embeddings.

    Args:
        words: distinct words in lower case, or a text file with one word per line.
        context_length: number of tokens of a text, including start and end. Longer texts are
            truncated.

    Attributes:
        words: the list.
        vocab_size: number of tokens: the words and three special tokens.
        pad_token_id: id of the padding token.
        sot_token_id: id of the start token.
        eot_token_id: id of the end token.

    Raises:
        VocabularyError: the file cannot be read, or the list is empty, has duplicates, or contains
            something that is not one word in lower case.
    """

    def __init__(self, words: str | os.PathLike[str] | Sequence[str], context_length: int) -> None:
        source = "the list of words"
        if isinstance(words, str | os.PathLike):
            source = str(words)
            words = _read(words)
        self.words = tuple(words)
        self.context_length = context_length
        self._ids = {word: i for i, word in enumerate(self.words, 1)}
        for word in self.words:
            if word != word.lower() or not _WORD.fullmatch(word):
                raise VocabularyError(f"{source}: {word!r} is not one word in lower case")
        if len(self._ids) < len(self.words) or not self.words:
            duplicates = [word for word in self._ids if self.words.count(word) > 1]
            wrong = f"contains {', '.join(duplicates)} more than once" if duplicates else "is empty"
            raise VocabularyError(f"{source} {wrong}")
        self.pad_token_id = 0
        self.sot_token_id = len(self.words) + 1
        self.eot_token_id = len(self.words) + 2
        self.vocab_size = len(self.words) + _SPECIAL

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without start and end token.

        Raises:
            VocabularyError: a word is not in the list. The message suggests similar ones.
        """
        found = []
        for word in _WORD.findall(text.lower()):
            if word not in self._ids:
                raise VocabularyError(
                    f"{text!r}: {word!r} is not one of the {len(self.words)} words of the text "
                    f"encoder ({self._hint(word)})"
                )
            found.append(self._ids[word])
        return found

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Tokenize texts, with start token, end token and padding.

        Args:
            texts: one or several texts.

        Returns:
            (len(texts), ``context_length``) int64.

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
        """Write the words to a text file, one per line."""
        write_text(path, "".join(f"{word}\n" for word in self.words))

    def _hint(self, word: str) -> str:
        close = difflib.get_close_matches(word, self.words, n=3)
        if close:
            return f"did you mean {' or '.join(close)}?"
        listed = ", ".join(self.words[:100])
        return f"the words are: {listed}{', ...' if len(self.words) > 100 else ''}"


def _read(path: str | os.PathLike[str]) -> list[str]:
    path = regular_file(path, VocabularyError, "list of words")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise VocabularyError(f"the list of words {path} cannot be read: {reason}") from error
    return [line.strip() for line in lines if line.strip()]
