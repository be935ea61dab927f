"""Quoted names, plain lists, CSV and YAML files."""

from __future__ import annotations

from pathlib import Path

import pytest

from odise_mm.errors import VocabularyError
from odise_mm.vocabulary import Vocabulary, files


@pytest.mark.parametrize(
    "texts, synonyms",
    [
        ('"salt, sea"; pepper', (("salt, sea",), ("pepper",))),
        ('"salt, sea", brine; "a; b"', (("salt, sea", "brine"), ("a; b",))),
        ('12" pipe; 6" pipe, tube', (('12" pipe',), ('6" pipe', "tube"))),
        ('pipe 12"; the "small" one', (('pipe 12"',), ('the "small" one',))),
        ('"cat"; "dog"', (("cat",), ("dog",))),
    ],
)
def test_quotes_keep_separators(texts: str, synonyms: tuple) -> None:
    assert Vocabulary.parse(texts).synonyms == synonyms


def test_a_quoted_name_is_a_class_even_if_a_list_has_it() -> None:
    assert Vocabulary.parse('"a/b, c"; dog').synonyms == (("a/b, c",), ("dog",))
    assert Vocabulary.parse('"coco"; dog').synonyms == (("coco",), ("dog",))


def test_names_with_commas_survive_saving(tmp_path: Path) -> None:
    names = Vocabulary.parse('"ketchup 0,5 l", ketchup; 12" pipe', "sky")
    names.save(tmp_path / "names.txt")
    assert Vocabulary.load(tmp_path / "names.txt") == names
    with pytest.raises(VocabularyError, match="cannot be saved: a name has quotation marks"):
        Vocabulary((('12", round',),), (True,)).save(tmp_path / "other.txt")


def load(folder: Path, name: str, content: str, **options: object) -> Vocabulary:
    (folder / name).write_text(content)
    return Vocabulary.load(folder / name, **options)


@pytest.mark.parametrize(
    "content, warned",
    [
        ("0 cat\n1 dog, puppy\n", True),
        ("1. cat\n2. dog\n", True),
        ("7 up\n3 musketeers\n", False),
        ("1 euro coin\n2 euro coin\nbank note\n", False),
        ("0: cat\n1: dog\n", False),
    ],
)
def test_a_warning_of_numbers_in_names(
    tmp_path: Path, content: str, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(files, "print_log", lambda text, **_: said.append(text))
    load(tmp_path, "names.txt", content)
    assert len(said) == warned
    assert all("the numbers are read as parts of the names" in text for text in said)


def test_plain_list_and_flags(tmp_path: Path) -> None:
    content = "# mine\nperson, child\n\nsky\n"
    names = load(tmp_path, "a.txt", content)
    assert names.synonyms == (("person", "child"), ("sky",)) and names.is_thing == (True, True)
    assert load(tmp_path, "a.txt", content, things=[0]).is_thing == (True, False)
    assert load(tmp_path, "a.txt", content, things="coco").is_thing == (True, False)


def test_kinds_may_be_capitalized(tmp_path: Path) -> None:
    assert load(tmp_path, "a.txt", "Thing: cat\nSTUFF: sky\n").is_thing == (True, False)


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_csv(sign: str, tmp_path: Path) -> None:
    rows = [
        ["ID", "Name", "Synonyms", "Kind"],
        ["7", '"salt, sea"', '"brine; sea salt"', "Stuff"],
        ["3", "cat", "", "thing"],
    ]
    content = "\n".join(sign.join(row) for row in rows)
    names = load(tmp_path, "a.csv", content)
    assert names.synonyms == (("cat",), ("salt, sea", "brine", "sea salt"))
    assert names.is_thing == (True, False)
    with pytest.raises(VocabularyError, match="has its own thing flags"):
        load(tmp_path, "a.csv", content, things=[3])


def test_csv_without_kinds_takes_flags(tmp_path: Path) -> None:
    content = "id,name\n4,sky\n2,cat\n"
    assert load(tmp_path, "a.csv", content, things=[2]).is_thing == (True, False)


@pytest.mark.parametrize(
    "content",
    [
        "names:\n  1: pickup truck\n  0: person\nnc: 2\n",
        "path: data\nnames: [person, pickup truck]\n",
        "- person\n- pickup truck\n",
        "10: pickup truck\n9: person\n",
        "names: {'10': pickup truck, '9': person}\n",
    ],
)
def test_yaml(content: str, tmp_path: Path) -> None:
    assert load(tmp_path, "a.yaml", content).names == ("person", "pickup truck")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "cat,dog\n", r"a.csv:1: the first line must be a heading with a column 'name'"),
        ("a.csv", "name,kind\ncat,animal\n", r"a.csv:2: 'animal' is neither thing nor stuff"),
        ("a.csv", "name,kind\ncat,\n", r"a.csv:2: the row does not say whether"),
        ("a.csv", "id,name\n1\n", r"a.csv:2: the row has only 1 cells"),
        ("a.csv", "id,name\nx,cat\n", r"a.csv:2: id 'x' is not a whole number"),
        ("a.csv", "id,name\n1,cat\n1,dog\n", r"a.csv: id 1 is used twice"),
        ("a.csv", "name,label\ncat,dog\n", r"columns 'name' and 'label' have the same meaning"),
        ("a.csv", "name\ncat\nCat\n", r"a.csv: name 'Cat' is in two classes"),
        ("a.csv", "name\n", r"a.csv has no classes"),
        ("a.csv", 'name\n"cat\n', r"a.csv:2: unexpected end of data"),
        (
            "a.csv",
            "name\ncat, kitty\n",
            r"a.csv:2: the row has 2 cells, but the heading has 1",
        ),
        ("a.txt", "cat; dog\n", r"a.txt:1: ';' does not separate names in a file"),
        ("a.yaml", "names: {0: cat, 0: dog}\n", r"a.yaml .*: key '0' appears twice"),
        ("a.yaml", "names: {0: yes}\n", r"the name of id 0 is True, not text; put it in quotes"),
        ("a.yaml", "names: {a: cat}\n", r"id 'a' is not a whole number"),
        ("a.yaml", "names:\n", r"expected a list of names, or `names:`"),
        ("a.yaml", "names: [cat\n", r"a.yaml is not valid YAML"),
        ("a.yml", "names: [cat, cat]\n", r"name 'cat' is in two classes"),
    ],
)
def test_errors_name_the_place(name: str, content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=message):
        load(tmp_path, name, content)


def test_description_lists_what_was_understood() -> None:
    names = Vocabulary.parse("sofa, couch; lamp", "wall")
    assert names.describe() == "2 things: sofa (couch), lamp; 1 stuff: wall"
    things, stuff = Vocabulary.load("coco").describe(1).split("; ")
    assert things.startswith("80 things: person (") and things.endswith("), and 79 more")
    assert stuff.startswith("53 stuff: ") and stuff.endswith("and 52 more")


def test_a_line_break_in_a_cell_is_a_space(tmp_path: Path) -> None:
    assert load(tmp_path, "a.csv", 'name\n"pickup\r\ntruck"\n').names == ("pickup truck",)
