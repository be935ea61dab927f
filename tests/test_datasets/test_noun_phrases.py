"""Noun phrases of captions: the grammars on known parts of speech, and the taggers."""

from __future__ import annotations

import json
from pathlib import Path

import nltk
import pytest

from odise_mm.datasets.noun_phrases import GRAMMARS, NounPhrases, Tagger, load_tagger
from odise_mm.errors import DatasetError

# Written by hand, so that the grammars are tested independently of a tagger.
TAGS = dict(
    a="DT", the="DT", two="CD", man="NN", men="NNS", Paris="NNP", Alps="NNPS", slice="NN",
    pizza="NN", plate="NN", table="NN", horse="NN", red="JJ", bigger="JJR", biggest="JJS", old="JJ",
    of="IN", on="IN", eats="VBZ", riding="VBG", quickly="RB", tail="NN", wagging="VBG",
)  # fmt: skip


def by_hand(words: list[str]) -> list[tuple[str, str]]:
    return [(word, TAGS.get(word, "NN" if word == "--" else "SYM")) for word in words]


@pytest.mark.parametrize(
    ("caption", "runs", "prepositions"),
    [
        ("a red horse", ["red horse"], ["red horse"]),
        ("the man eats", ["man"], ["man"]),
        # the last phrase of a caption, with and without a full stop
        ("a man riding a horse", ["man", "horse"], ["man", "horse"]),
        ("a man riding a horse.", ["man", "horse"], ["man", "horse"]),
        ("a slice of pizza", ["slice", "pizza"], ["slice of pizza"]),
        ("men eats a slice of pizza", ["men", "slice", "pizza"], ["men", "slice of pizza"]),
        # the preposition must be followed directly by a run
        ("a plate on the table", ["plate", "table"], ["plate", "table"]),
        (
            "a bigger slice of old red pizza on table",
            ["bigger slice", "old red pizza", "table"],
            ["bigger slice of old red pizza", "table"],
        ),
        ("Paris Alps men", ["paris alps men"], ["paris alps men"]),
        ("biggest pizza table", ["biggest pizza table"], ["biggest pizza table"]),
        # adjectives between nouns belong to the run, those at its end do not
        ("table red old horse red", ["table red old horse"], ["table red old horse"]),
        ("the old, red", [], []),
        ("of pizza", ["pizza"], ["pizza"]),
        ("riding quickly.", [], []),
        ("", [], []),
        ("  ", [], []),
        ("a -- of --", [], []),
        ("a horse's tail wagging", ["horse", "tail"], ["horse", "tail"]),
        ("red horse and red horse", ["red horse"], ["red horse"]),
        # phrases end with their sentence
        ("men. horse of table", ["men", "horse", "table"], ["men", "horse of table"]),
    ],
)
def test_grammars(caption: str, runs: list[str], prepositions: list[str]) -> None:
    found = {
        grammar: NounPhrases(grammar, Tagger("by hand", by_hand))(caption) for grammar in GRAMMARS
    }
    assert found["runs"] == runs
    assert found["prepositions"] == prepositions
    assert found["both"] == runs + [phrase for phrase in prepositions if phrase not in runs]


def test_textblob_needs_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", None)  # calling it would fail
    phrases = NounPhrases()
    assert phrases.tagger.name.startswith("textblob ")
    assert phrases("A Man riding a brown horse on a sandy beach.") == [
        "man",
        "brown horse",
        "sandy beach",
    ]
    assert phrases("A woman eats a slice of pizza, near two dogs") == [
        "woman",
        "slice",
        "pizza",
        "dogs",
        "slice of pizza",
    ]
    assert phrases("Running very fast!") == []


@pytest.fixture
def nltk_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a perceptron model for NLTK that knows some words and no rules."""
    folder = tmp_path / "taggers/averaged_perceptron_tagger_eng"
    folder.mkdir(parents=True)
    content = dict(weights={}, tagdict={**TAGS, "dog": "JJ"}, classes=["NN", "SYM"])
    for name, value in content.items():
        (folder / f"averaged_perceptron_tagger_eng.{name}.json").write_text(json.dumps(value))
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])


def test_nltk_is_used_if_its_data_is_installed(nltk_data: None) -> None:
    phrases = NounPhrases()
    assert phrases.tagger.name == f"nltk {nltk.__version__} perceptron"
    assert phrases("a dog table of pizza") == ["dog table", "pizza", "dog table of pizza"]
    assert phrases("a dog") == []  # only this model tags it as an adjective
    assert load_tagger("textblob").name.startswith("textblob")


def test_nltk_without_data_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(DatasetError, match="nltk.downloader averaged_perceptron_tagger_eng"):
        load_tagger("nltk")


def test_unknown_grammar_or_tagger_raises() -> None:
    with pytest.raises(
        ValueError, match="unknown grammar 'all'; choose from runs, prepositions, both"
    ):
        NounPhrases("all")
    with pytest.raises(ValueError, match="unknown tagger 'spacy'"):
        load_tagger("spacy")
