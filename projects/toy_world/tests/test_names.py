"""Names are split as documented, and no base name contains a novel one."""

from __future__ import annotations

import pytest

from odise_mm.vocabulary import Vocabulary
from projects.toy_world.captions import plural, split_words, words
from projects.toy_world.names import (
    BASE_THINGS,
    COLORS,
    NAMES,
    NOVEL_THINGS,
    PATTERNS,
    SHAPES,
    STUFFS,
    THINGS,
    names_of,
    vocabulary,
    vocabulary_file,
)


def test_number_of_names_and_share_of_novel_things() -> None:
    assert len(THINGS) >= 60 and len(STUFFS) >= 6
    assert 0.3 < len(NOVEL_THINGS) / len(THINGS) < 0.37
    assert set(BASE_THINGS) | set(NOVEL_THINGS) == set(THINGS)
    assert [name.category for name in NAMES] == list(range(1, len(NAMES) + 1))
    texts = [text for name in NAMES for text in name.synonyms]
    assert len(set(texts)) == len(texts)


def test_split_follows_the_documented_rule() -> None:
    shapes, colors, patterns = list(SHAPES), list(COLORS), list(PATTERNS)
    for name in THINGS:
        place = shapes.index(name.shape)
        if name.pattern:
            assert name.is_novel == ((place + patterns.index(name.pattern)) % 3 == 0), name
        else:
            assert name.is_novel == ((place + colors.index(name.color)) % 3 == 0), name
    # results and weights depend on these
    novel = {str(name) for name in NOVEL_THINGS}
    assert {"red star", "blue moon", "striped green ball", "plaid red arrow"} <= novel
    assert not {"striped red star", "blue ring", "green star", "black heart"} & novel


def test_every_word_of_a_novel_name_occurs_in_base_names() -> None:
    for attribute in ("shape", "color", "pattern"):
        base = {getattr(name, attribute) for name in BASE_THINGS}
        assert {getattr(name, attribute) for name in NOVEL_THINGS} <= base
    base_words = {w for name in BASE_THINGS for text in name.synonyms for w in split_words(text)}
    novel_words = {w for name in NOVEL_THINGS for text in name.synonyms for w in split_words(text)}
    assert novel_words <= base_words


def test_no_base_name_contains_a_novel_one() -> None:
    """A tagger that mistakes "striped" for a verb finds "green heart" in "striped green heart"."""
    novel = {text for name in NOVEL_THINGS for text in name.synonyms}
    for name in BASE_THINGS:
        for text in name.synonyms:
            parts = text.split()
            tails = {" ".join(parts[i:]) for i in range(len(parts) - 1)}
            assert not tails & novel, text


@pytest.mark.parametrize("subset", ["all", "base", "base_things", "novel"])
def test_vocabulary_files_equal_the_names(subset: str) -> None:
    assert Vocabulary.load(vocabulary_file(subset)) == vocabulary(subset)
    assert vocabulary(subset).names == tuple(map(str, names_of(subset)))


def test_overlap_with_base_vocabulary_is_the_base_names() -> None:
    overlap = vocabulary("all").overlap(vocabulary("base"))
    assert list(overlap) == [not name.is_novel for name in NAMES]


def test_unknown_subset_raises() -> None:
    with pytest.raises(ValueError, match="or 'novel', not 'seen'"):
        names_of("seen")


def test_words_contain_all_names_and_plurals() -> None:
    known = set(words())
    for name in THINGS:
        for text in name.synonyms:
            assert set(split_words(text)) | set(split_words(plural(text))) <= known
    assert "boxes" in known and "boxs" not in known and "polka-dot" in known
