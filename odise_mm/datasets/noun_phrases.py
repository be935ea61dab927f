"""Noun phrases of captions, for caption supervision (ODISE, arXiv 2303.04803).

A caption is split into words, a tagger assigns the parts of speech, and one of three grammars
selects the phrases. Everything works offline: NLTK's tagger is used if its data is installed, else
TextBlob's, which includes its lexicon. Nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from odise_mm.errors import DatasetError

# One letter per word: Adjective, Noun, Preposition, Other.
_RUN = "[AN]*N"
_RUNS = re.compile(_RUN)
_JOINED = re.compile(f"{_RUN}P{_RUN}")

GRAMMARS: dict[str, tuple[re.Pattern, ...]] = {
    "runs": (_RUNS,),
    "prepositions": (re.compile(f"{_JOINED.pattern}|{_RUN}"),),
    "both": (_RUNS, _JOINED),
}
"""Rules that select the phrases of a caption.

- ``runs``: the longest runs of adjectives and nouns that end in a noun, such as "red apples" and
  "dining room table".
- ``prepositions``: two runs joined by a preposition form one phrase, such as "slice of pizza"; the
  remaining runs are phrases as well.
- ``both``, the default: all runs, then the phrases with a preposition. The paper does not specify
  which of the two it uses; with both, the model sees the parts as well as the whole.
"""
DEFAULT_GRAMMAR = "both"
TAGGERS = ("nltk", "textblob")

_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Tagger:
    """A part-of-speech tagger (Penn Treebank tags).

    Attributes:
        name: name and version.
        tag: maps the words of a sentence to (word, tag) pairs.
    """

    name: str
    tag: Callable[[list[str]], list[tuple[str, str]]]


def load_tagger(kind: str | None = None) -> Tagger:
    """Load NLTK's perceptron tagger, which the paper used, or TextBlob's rule-based one.

    Args:
        kind: one of ``TAGGERS``. None selects NLTK's if its data is installed, else TextBlob's.

    Raises:
        DatasetError: ``kind`` is "nltk", but its data is not installed.
        ValueError: ``kind`` is not in ``TAGGERS``.
    """
    if kind not in (None, *TAGGERS):
        raise ValueError(f"unknown tagger {kind!r}; choose from {', '.join(TAGGERS)}")
    if kind != "textblob":
        import nltk

        try:
            perceptron = nltk.tag.PerceptronTagger()
        except LookupError as err:
            if kind == "nltk":
                raise DatasetError(
                    "the data of NLTK's tagger is not installed: "
                    "python -m nltk.downloader averaged_perceptron_tagger_eng "
                    "(or use the tagger textblob, which needs no data)"
                ) from err
        else:
            return Tagger(f"nltk {nltk.__version__} perceptron", perceptron.tag)
    from importlib.metadata import version

    from textblob.en import tag

    def by_pattern(words: list[str]) -> list[tuple[str, str]]:
        return [(word, part) for word, part in tag(" ".join(words), tokenize=False)]

    return Tagger(f"textblob {version('textblob')} pattern", by_pattern)


class NounPhrases:
    """Finds the noun phrases of captions.

    Args:
        grammar: one of ``GRAMMARS``.
        tagger: by default the one that :func:`load_tagger` selects.

    Raises:
        ValueError: ``grammar`` is not in ``GRAMMARS``.
    """

    def __init__(self, grammar: str = DEFAULT_GRAMMAR, tagger: Tagger | None = None) -> None:
        if grammar not in GRAMMARS:
            raise ValueError(f"unknown grammar {grammar!r}; choose from {', '.join(GRAMMARS)}")
        from nltk.tokenize import TreebankWordTokenizer  # rules only, no data

        self.grammar = grammar
        self.tagger = tagger or load_tagger()
        self._split = TreebankWordTokenizer().tokenize

    def __call__(self, caption: str) -> list[str]:
        """Return the distinct phrases of a caption in lower case.

        They are sorted by grammar rule, then by their position in the caption.
        """
        found: dict[str, None] = {}
        sentences = [
            self.tagger.tag(words)
            for text in _SENTENCE_END.split(caption.strip())
            if (words := self._split(text))
        ]
        for rule in GRAMMARS[self.grammar]:
            for tagged in sentences:
                for match in rule.finditer("".join(_letter(word, tag) for word, tag in tagged)):
                    words = [word for word, _ in tagged[match.start() : match.end()]]
                    found[" ".join(words).lower()] = None
        return list(found)


def _letter(word: str, tag: str) -> str:
    """Return the code of a word: A, N, P or O. Tokens without letters count as O."""
    if not _LETTER.search(word):
        return "O"
    return {"JJ": "A", "NN": "N", "IN": "P"}.get(tag[:2], "O")
