"""Warnings about names in another separator convention, and none about ordinary names."""

from __future__ import annotations

import logging

import pytest

from odise_mm.vocabulary import Vocabulary, VocabularyError, parsing


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    """Logged warnings."""
    lines: list[str] = []

    def keep(message: str, logger: str, level: int) -> None:
        assert level == logging.WARNING
        lines.append(message)

    monkeypatch.setattr(parsing, "print_log", keep)
    parsing._warn_once.cache_clear()
    yield lines
    parsing._warn_once.cache_clear()


@pytest.mark.parametrize(
    ("text", "better"),
    [
        ("bench . car .", "bench; car"),
        ("a . b . c", "a; b; c"),
        (" . person . traffic light", "person; traffic light"),
        ("zebra .", "zebra"),
        ("car.person", "car; person"),
        ("Tree.Sky.Traffic Light", "Tree; Sky; Traffic Light"),
        ("red kite.blue kite", "red kite; blue kite"),
        ("wall-other.sky", "wall-other; sky"),
        ("a cat. a remote control.", "a cat; a remote control"),
        ("Ox. Cow. Hen.", "Ox; Cow; Hen"),
        ("giraffe. lion", "giraffe; lion"),
        ("U.S. flag . St. Bernard .", "U.S. flag; St. Bernard"),
        ("café.arbre", "café; arbre"),
        ("猫；狗", "猫; 狗"),
        ("猫，狗、鸟", "猫; 狗; 鸟"),
        ("猫。狗。", "猫; 狗"),
        ("cat\tdog", "cat; dog"),
        ("lamp | desk|chair", "lamp; desk; chair"),
        ("lamp\ndesk\r\nchair\n", "lamp; desk; chair"),
    ],
)
def test_other_signs(warned, text, better):
    for given in (text, [text]):
        assert len(Vocabulary.parse(given)) == 1
    assert len(warned) == 1  # once for each text
    assert "is read as 1 class: " in warned[0] and "does not separate classes here" in warned[0]
    assert warned[0].endswith(f"write '{better}'")
    # The suggested text does not warn again.
    assert Vocabulary.parse(better).names == tuple(better.split("; "))
    assert len(warned) == 1


def test_complete_message(warned):
    Vocabulary.parse("yellow heart, red ball, black heart", "lake.road")
    comma, dot = warned
    assert comma == (
        "texts 'yellow heart, red ball, black heart' is read as 1 class: yellow heart = red ball = "
        "black heart (',' separates the synonyms of one class); for 3 classes, write "
        "'yellow heart; red ball; black heart'; if it is one class, end it with ';'"
    )
    assert dot == (
        "stuff_texts 'lake.road' is read as 1 class: lake.road (unlike in mmdet's open-vocabulary "
        "demos, '.' does not separate classes here); for 2 classes, write 'lake; road'"
    )


@pytest.mark.parametrize(
    "text",
    [
        "St. Bernard", "St.Bernard", "Mount St. Helens", "Dr. Pepper can", "Mr. Potato Head",
        "Ph.D. hat", "Sgt. Pepper", "Lego Inc. box", "George W. Bush", "A. Lincoln statue",
        "U.S. flag", "Washington D.C. sign", "J.R.R. Tolkien book", "M.A.S.H. tent", "e.g. this",
        "no. 5", "No. 2 pencil", "fig. 3", "approx. 5 m pole", "vs. sign", "etc.",
        "7.5 ton truck", ".22 rifle", "0.5 l bottle", "v2.0 robot", "a 3.5mm jack",
        "example.com sign", "www.shop.example", "node.js sticker", "report.pdf",
        "a photo of a dog.", "pick-up", "rock'n'roll sign",
    ],
)  # fmt: skip
def test_dots_within_names_do_not_warn(warned, text):
    assert Vocabulary.parse(text).names == Vocabulary.parse([text]).names == (text,)
    assert Vocabulary.parse(f"zebra; {text}, giraffe").names == ("zebra", text)
    assert warned == []


@pytest.mark.parametrize(
    ("text", "better"),
    [
        ("['heron', 'coot']", "heron; coot"),
        ('["red kite","barn owl"]', "red kite; barn owl"),
        ("[okapi, tapir, gnu]", "okapi; tapir; gnu"),
        ("('gnu', 'yak',)", "gnu; yak"),
        ("['newt']", "newt"),
    ],
)
def test_python_and_json_lists_warn(warned, text, better):
    assert len(Vocabulary.parse(text)) == 1
    assert len(warned) == 1 and "brackets and quotation marks" in warned[0]
    assert warned[0].endswith(f"write '{better}'")
    assert Vocabulary.parse(better).names == tuple(better.split("; "))
    assert len(warned) == 1


@pytest.mark.parametrize("text", ["a [big] cat", "[a] or [b]", "(a) cat (b)", "(red) kite", "[]"])
def test_brackets_within_names_do_not_warn(warned, text):
    assert len(Vocabulary.parse(text)) == 1
    assert warned == []


@pytest.mark.parametrize(
    "text",
    [
        "yellow heart, red ball",
        "cat, dog",
        "lamp, desk, chair",
        "red car, blue car, green car",
        "sofa, couch, dog",
        "sky, road, tree",
        "pagoda, temple,",
        ",".join(f"thing number{n} of kind{n}" for n in range(200)),
    ],
)
def test_unrelated_names_between_commas_warn(warned, text):
    names = Vocabulary.parse(text).synonyms
    assert len(names) == 1
    assert len(warned) == 1 and "is read as 1 class: " in warned[0] and len(warned[0]) < 1200
    Vocabulary.parse([text])
    Vocabulary.parse(["coco", text])
    Vocabulary.parse(None, text)
    assert [line.split()[0] for line in warned] == ["texts", "stuff_texts"]


@pytest.mark.parametrize(
    "text",
    [
        "zebra",
        "sky, blue sky",
        "black pickup truck, pickup truck, truck",
        "car, automobile",
        "sofa, Couch",
        "mountain bike, road bike",
        "ball, balls",
        "T-shirt, t shirt",
        "person, child, girl, boy",
        "coco, ade20k",
        "pagoda, temple;",
        "lamp, desk, chair;",
        "cat, dog; bird",
        "cat,",
    ],
)
def test_plausible_synonyms_do_not_warn(warned, text):
    Vocabulary.parse(text)
    Vocabulary.parse([text])
    assert warned == []


def test_no_warning_if_classes_are_separated(warned):
    Vocabulary.parse("pagoda, temple", "blue sky, sky; lake")
    Vocabulary.parse(["pagoda, temple", "tower, spire"])
    Vocabulary.parse(["pagoda, temple;"], ["lake, water"])
    Vocabulary.parse("black pickup\n truck, lorry; tower")
    assert warned == []


def test_control_characters_are_escaped(warned):
    Vocabulary.parse("cat\x1b[2J, dog\u202e")
    assert warned[0].isprintable() and "\\x1b[2J" in warned[0]


@pytest.mark.parametrize("name", ["coco", "ade20k", "lvis", "cityscapes", "mapillary"])
def test_classes_of_builtin_vocabularies_do_not_warn(warned, name):
    for group in Vocabulary.load(name).synonyms:
        Vocabulary.parse(", ".join(group))
        assert Vocabulary.parse(group[0]).names[0] == group[0]
    assert warned == []


def test_a_quotation_mark_without_an_end_warns(warned: list[str]) -> None:
    assert Vocabulary.parse('"salt, sea').synonyms == (('"salt', "sea"),)
    (line,) = warned
    assert "no closing quotation mark ends the name" in line and line.endswith("write 'salt, sea'")


@pytest.mark.parametrize("text", ["'salt, sea'", "“salt, sea”", "«salt, sea»", "‘salt, sea’"])
def test_other_quotation_marks_warn(text: str, warned: list[str]) -> None:
    assert len(Vocabulary.parse(f"{text}; pepper").synonyms[0]) == 2
    (line,) = warned
    assert line.endswith('(only double quotes (") enclose a name); write \'"salt, sea"\'')


def test_apostrophes_do_not_warn(warned: list[str]) -> None:
    Vocabulary.parse("catcher's mitt, players' mitt; 's-Hertogenbosch; 5' pole")
    assert warned == []


def test_empty_quotes_are_an_empty_piece() -> None:
    assert Vocabulary.parse('""; dog; " ",').names == ("dog",)
    with pytest.raises(VocabularyError, match="no class names given"):
        Vocabulary.parse('""')
    with pytest.raises(VocabularyError, match=r"texts\[0\] contains no name"):
        Vocabulary.parse(['""', "dog"])


def test_a_name_with_a_slash_needs_quotes() -> None:
    assert Vocabulary.parse('"and/or gate"').names == ("and/or gate",)
    with pytest.raises(VocabularyError, match="put a class name with '/' in double quotes"):
        Vocabulary.parse("and/or gate")
