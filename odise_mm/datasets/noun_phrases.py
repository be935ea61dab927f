"""Noun phrases of captions: the words of caption supervision (ODISE, arXiv 2303.04803).

A caption is cut into words, every word gets its part of speech, and phrases are read off the parts
of speech by one of three grammars. All of it works offline: NLTK's tagger is used where its data is
installed, else TextBlob's, which brings its own lexicon. Nothing is ever downloaded.
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
"""How phrases are read off a caption.

- ``runs``: the longest runs of adjectives and nouns that end in a noun:
  "red apples", "dining room table".
- ``prepositions``: two such runs with a preposition between them are one phrase, "slice of pizza";
  what is left are runs.
- ``both``, the default: the runs, then the phrases with a preposition. The paper does not say which
  of the two it means; here a model sees the parts as well as the whole.
"""
DEFAULT_GRAMMAR = "both"
TAGGERS = ("nltk", "textblob")

_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Tagger:
    """Gives words their parts of speech (Penn Treebank's tags).

    Attributes:
        name: which one it is, with its version.
        tag: from the words of a sentence to (word, tag) pairs.
    """

    name: str
    tag: Callable[[list[str]], list[tuple[str, str]]]


def load_tagger(kind: str | None = None) -> Tagger:
    """NLTK's perceptron, which the paper used, or TextBlob's lexicon and rules.

    Args:
        kind: one of ``TAGGERS``; None: NLTK's where its data is installed, else TextBlob's.

    Raises:
        DatasetError: NLTK's was asked for and its data is not installed.
    """
    if kind not in (None, *TAGGERS):
        raise ValueError(f"no tagger {kind!r}; there are {', '.join(TAGGERS)}")
    if kind != "textblob":
        import nltk

        try:
            perceptron = nltk.tag.PerceptronTagger()
        except LookupError as err:
            if kind == "nltk":
                raise DatasetError(
                    "the data of NLTK's tagger is not installed: "
                    "python -m nltk.downloader averaged_perceptron_tagger_eng "
                    "(or take the tagger textblob, which needs none)"
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
        tagger: by default what :func:`load_tagger` finds.
    """

    def __init__(self, grammar: str = DEFAULT_GRAMMAR, tagger: Tagger | None = None) -> None:
        if grammar not in GRAMMARS:
            raise ValueError(f"no grammar {grammar!r}; there are {', '.join(GRAMMARS)}")
        from nltk.tokenize import TreebankWordTokenizer  # rules only, no data

        self.grammar = grammar
        self.tagger = tagger or load_tagger()
        self._split = TreebankWordTokenizer().tokenize

    def __call__(self, caption: str) -> list[str]:
        """Phrases in lower case, each once: by grammar rule, then in the caption's order."""
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
    """One of A, N, P and O, see above. What has no letter in it is no word."""
    if not _LETTER.search(word):
        return "O"
    return {"JJ": "A", "NN": "N", "IN": "P"}.get(tag[:2], "O")
