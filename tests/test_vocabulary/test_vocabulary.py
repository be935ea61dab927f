import dataclasses
import json

import pytest

from odise_mm.errors import VocabularyError
from odise_mm.vocabulary import BUILTIN, Vocabulary

COUNTS = {
    "coco": (133, 80),
    "ade20k": (150, 100),
    "lvis": (1203, 1203),
    "cityscapes": (19, 8),
    "pascal_context59": (59, 31),
    "voc20": (20, 20),
    "voc21": (21, 20),
    "mapillary": (65, 37),
}


def keys(group):
    return {text.casefold() for text in group}


# Built-in vocabularies


@pytest.mark.parametrize("name", BUILTIN)
def test_builtin_counts_flags_and_unique_names(name):
    vocabulary = Vocabulary.load(name)
    assert (len(vocabulary), sum(vocabulary.is_thing)) == COUNTS[name]
    texts, classes = vocabulary.flat
    assert len({text.casefold() for text in texts}) == len(texts)
    assert all(text == " ".join(text.split()) and len(text) < 60 for text in texts)
    assert not any(sign in text for text in texts for sign in "_()|,;:")
    assert sorted(set(classes)) == list(range(len(vocabulary))) and classes == sorted(classes)
    assert len(set(vocabulary.source_names)) == len(vocabulary)
    assert hash(vocabulary) == hash(Vocabulary.load(name.upper()))


def mm_classes():
    from mmdet.datasets.lvis import LVISV1Dataset
    from mmseg.datasets import (
        ADE20KDataset,
        CityscapesDataset,
        MapillaryDataset_v1,
        PascalContextDataset59,
        PascalVOCDataset,
    )

    return {
        "ade20k": [name.strip() for name in ADE20KDataset.METAINFO["classes"]],
        "lvis": LVISV1Dataset.METAINFO["classes"],
        "cityscapes": CityscapesDataset.METAINFO["classes"],
        "pascal_context59": PascalContextDataset59.METAINFO["classes"],
        "voc20": PascalVOCDataset.METAINFO["classes"][1:],
        "voc21": PascalVOCDataset.METAINFO["classes"],
        "mapillary": MapillaryDataset_v1.METAINFO["classes"][:-1],
    }


@pytest.mark.parametrize("name", [name for name in BUILTIN if name != "coco"])
def test_builtin_has_order_and_names_of_the_openmmlab_dataset(name):
    assert list(Vocabulary.load(name).source_names) == list(mm_classes()[name])


def test_coco_equals_mmdet_panoptic_metainfo():
    from mmdet.datasets import CocoPanopticDataset

    expected = dict(CocoPanopticDataset.METAINFO)
    expected.pop("palette", None), expected.pop("PALETTE", None)
    got = Vocabulary.load("coco").metainfo
    assert {key: list(value) for key, value in got.items()} == {
        key: list(value) for key, value in expected.items()
    }


def test_flags_of_ade20k_and_cityscapes_equal_mmdet():
    from mmdet.datasets import CityscapesDataset
    from mmdet.datasets.ade20k import ADE20KInstanceDataset, ADE20KPanopticDataset

    ade20k = Vocabulary.load("ade20k")
    assert set(ade20k.metainfo["thing_classes"]) == set(ADE20KInstanceDataset.METAINFO["classes"])
    # mmdet's panoptic version lists the same classes, things first, each by several names.
    groups = dict(zip(ade20k.source_names, ade20k.synonyms, strict=True))
    ours = ade20k.metainfo["thing_classes"] + ade20k.metainfo["stuff_classes"]
    for name, theirs in zip(ours, ADE20KPanopticDataset.METAINFO["classes"], strict=True):
        assert keys(groups[name] + (name,)) & keys(theirs.split(", "))
    cityscapes = Vocabulary.load("cityscapes").metainfo
    assert cityscapes["thing_classes"] == tuple(CityscapesDataset.METAINFO["classes"])


def test_overlap_with_coco_finds_the_seen_classes():
    test = Vocabulary.parse(
        "person, child; dog; car, automobile; zeppelin; traffic cone, pylon; sky, clouds; grass; "
        "river, stream; brick wall; glacier; sand dune, desert; scarecrow"
    )
    seen = test.overlap(Vocabulary.load("coco"))
    assert "".join("FT"[flag] for flag in seen) == "TTTFFTTTTFFF"


@pytest.mark.parametrize("one", ["coco", "ade20k", "lvis", "pascal_context59"])
@pytest.mark.parametrize("two", ["coco", "ade20k", "lvis", "pascal_context59"])
def test_joining_builtins_keeps_classes_of_the_second_apart(one, two):
    # No class of `one` merges two classes of `two`, unless they mean the same in `one`.
    one, two = Vocabulary.load(one), Vocabulary.load(two)
    owner = {
        text.casefold(): name for name, g in zip(one.names, one.synonyms, strict=True) for text in g
    }
    taken = {}
    for name, group in zip(two.names, two.synonyms, strict=True):
        for target in {owner[k] for k in keys(group) if k in owner}:
            taken.setdefault(target, []).append(name)
    several = {target: names for target, names in taken.items() if len(names) > 1}
    assert several in ({}, {"sculpture": ["sculpture", "statue"]})
    assert len(one + two) >= len(one) + len(two) - len(taken) - len(several)


# Typed names


def test_semicolons_between_classes_and_commas_between_synonyms():
    v = Vocabulary.parse(
        " black pickup truck,pickup  truck ;; blue sky, sky, Blue Sky;", stuff_texts="grass; water"
    )
    assert v.synonyms == (
        ("black pickup truck", "pickup truck"),
        ("blue sky", "sky"),
        ("grass",),
        ("water",),
    )
    assert v.is_thing == (True, True, False, False)
    assert v.names == ("black pickup truck", "blue sky", "grass", "water")
    assert v.flat == (
        ["black pickup truck", "pickup truck", "blue sky", "sky", "grass", "water"],
        [0, 0, 1, 1, 2, 3],
    )
    assert (
        Vocabulary.parse(["black pickup truck, pickup truck", "blue sky, sky"], ["grass", "water"])
        == v
    )
    assert Vocabulary.parse(None, "grass").is_thing == (False,)
    assert Vocabulary.parse(v) is v


def test_a_name_that_only_resembles_a_builtin_is_a_class():
    assert Vocabulary.parse("coc; lvi").names == ("coc", "lvi")
    assert Vocabulary.parse("a photo. of dogs").names == ("a photo. of dogs",)


@pytest.mark.parametrize("spelled", ["coco", "COCO", " Coco ; ", ["coco"]])
def test_builtin_by_name(spelled):
    assert Vocabulary.parse(spelled) is Vocabulary.load("coco")


def test_spellings_of_builtins():
    assert Vocabulary.load("PC-59") is Vocabulary.load("pascal context 59")


def test_several_builtins_are_joined():
    coco, ade20k = Vocabulary.load("coco"), Vocabulary.load("ade20k")
    joined = coco + ade20k
    assert Vocabulary.parse("coco, ADE20K") == Vocabulary.parse(["coco", "ade20k"]) == joined
    assert Vocabulary.parse("coco; ade20k") == Vocabulary.parse([coco, "ade20k"]) == joined
    assert joined.name == "coco+ade20k" and joined.names[: len(coco)] == coco.names
    assert joined.is_thing[: len(coco)] == coco.is_thing
    texts = [text.casefold() for text in joined.flat[0]]
    assert len(set(texts)) == len(texts) and set(texts) == keys(coco.flat[0] + ade20k.flat[0])
    assert all(coco.overlap(joined)) and all(ade20k.overlap(joined))


def test_builtins_mix_with_typed_names_in_the_order_given():
    coco = Vocabulary.load("coco")
    v = Vocabulary.parse(["coco", "zeppelin; dune"], stuff_texts="lava; sky, aurora")
    assert v.names == coco.names + ("zeppelin", "dune", "lava")
    assert v.is_thing == coco.is_thing + (True, True, False)
    assert v.synonyms[coco.names.index("sky")][-1] == "aurora"
    before = Vocabulary.parse("zeppelin; person, astronaut; coco")
    assert before.names[:2] == ("zeppelin", "person") and len(before) == len(coco) + 1
    assert before.synonyms[1][:2] == ("person", "astronaut") and "child" in before.synonyms[1]


def test_join_merges_by_synonym_and_the_first_wins():
    a = Vocabulary((("sofa", "couch"), ("wall",)), (True, False), "a", ("sofa-a", "wall-a"))
    b = Vocabulary((("Couch", "settee"), ("lamp",), ("brick", "WALL")), (False, True, True), "b")
    joined = a + b
    assert joined.synonyms == (("sofa", "couch", "settee"), ("wall", "brick"), ("lamp",))
    assert joined.is_thing == (True, False, True)
    assert joined.source_names == ("sofa-a", "wall-a", "lamp") and joined.name == "a+b"
    assert a.overlap(b) == (True, True) and b.overlap(a) == (True, False, True)
    with pytest.raises(TypeError):
        a + "coco"


def test_join_keeps_classes_of_one_part_apart_wherever_it_stands(tmp_path):
    # A label file may give two of its classes the same name.
    path = tmp_path / "labels.txt"
    path.write_text("1:dog,hound\n2:hound,wolf\n3:cat\n")
    file, zebra = Vocabulary.load(path), Vocabulary.parse("zebra")
    assert (file + zebra).synonyms == (*file.synonyms, *zebra.synonyms)
    assert (zebra + file).synonyms == (*zebra.synonyms, *file.synonyms)
    # each class of the later part is merged separately with the classes of the earlier part
    merged = Vocabulary.parse("wolf, gray wolf; puppy") + file
    assert merged.synonyms == (
        ("wolf", "gray wolf", "hound"), ("puppy",), ("dog", "hound"), ("cat",)
    )  # fmt: skip
    twice = Vocabulary.parse("animal, dog, wolf") + file
    assert twice.synonyms == (("animal", "dog", "wolf", "hound"), ("cat",))


def test_vocabulary_is_frozen_hashable_and_compared_by_content():
    a = Vocabulary([["cat", "kitty"]], [1], "a")
    assert a == Vocabulary((("cat", "kitty"),), (True,), "b") and len({a, a}) == 1
    assert a != Vocabulary((("cat", "kitty"),), (False,))
    assert repr(Vocabulary.load("coco")) == "Vocabulary('coco', 133 classes: 80 things, 53 stuff)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.name = "c"


def test_five_thousand_names():
    names = [f"name {i}, alias {i}" for i in range(5000)]
    v = Vocabulary.parse("; ".join(names))
    assert v == Vocabulary.parse(names) and len(v) == 5000 and len(v.flat[0]) == 10000
    assert len(v + Vocabulary.parse([f"alias {i}; other {i}" for i in range(5000)])) == 10000
    with pytest.raises(VocabularyError, match="'Alias 4999' is in two classes"):
        Vocabulary.parse([*names, "Alias 4999"])


@pytest.mark.parametrize(
    ("texts", "stuff", "message"),
    [
        ("", None, "no class names given"),
        (None, None, "no class names given"),
        (" ; ,, ;\n", ",", "no class names given"),
        ([], None, "no class names given"),
        (["cat", " "], None, r"texts\[1\] contains no name"),
        (["cat", 3], None, r"texts\[1\] is int"),
        (7, None, "texts is int"),
        (
            "cat, kitty; dog; KITTY, lynx",
            None,
            "'KITTY' is in two classes, 'cat, kitty' and 'KITTY, lynx'",
        ),
        ("grass; cat", "grass", "'grass' is in two classes"),
        ("coco, zeppelin", None, "write 'coco; zeppelin'"),
        ("cat", "ade20k", "'ade20k' in texts"),
        ("no/such/names", None, "vocabulary file 'no/such/names' not found"),
        ("cat; names.txt", None, "vocabulary file 'names.txt' not found"),
        ("names.JSON", None, "vocabulary file 'names.JSON' not found"),
        ("a/" + "long " * 2000, None, "vocabulary file '.*' not found"),
    ],
)
def test_bad_texts_give_one_clear_message(texts, stuff, message):
    with pytest.raises(VocabularyError, match=message):
        Vocabulary.parse(texts, stuff)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), ()), "no classes"),
        (((("a",), ()), (True, True)), "class 1 .* empty name"),
        (((("a", " "),), (True,)), "class 0 .* empty name"),
        (((("a",),), (True, False)), "1 classes but 2 entries in is_thing"),
        (((("a",),), (True,), "x", ("a", "b")), "2 entries in source_names"),
        ((("cat",), (True,)), "one tuple of names per class"),
    ],
)
def test_bad_fields(arguments, message):
    with pytest.raises(VocabularyError, match=message):
        Vocabulary(*arguments)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coc", "did you mean 'coco'"),
        ("ade2k", "did you mean 'ade20k'"),
        ("qqqqq", "unknown vocabulary 'qqqqq'; built-in vocabularies: coco"),
        ("gone.txt", "vocabulary file 'gone.txt' not found"),
    ],
)
def test_load_of_an_unknown_name_raises(name, message):
    with pytest.raises(VocabularyError, match=message):
        Vocabulary.load(name)


# Files


@pytest.mark.parametrize("name", BUILTIN)
def test_own_format_round_trip(name, tmp_path):
    vocabulary = Vocabulary.load(name)
    vocabulary.save(tmp_path / "mine.txt")
    again = Vocabulary.load(tmp_path / "mine.txt")
    assert again == vocabulary and again.name == "mine"
    assert Vocabulary.parse(str(tmp_path / "mine.txt")) == vocabulary


def test_path_may_contain_a_comma_and_files_join_with_names(tmp_path):
    path = tmp_path / "a, b.txt"
    Vocabulary.parse("dune", "sky").save(path)
    assert Vocabulary.parse([str(path), "zeppelin"]).names == ("dune", "sky", "zeppelin")


@pytest.mark.parametrize("form", ["{}", "zebra; {}", "coco, {}"])
def test_names_from_strangers_read_no_file(form, tmp_path, monkeypatch):
    (tmp_path / "secret.txt").write_text("password")
    monkeypatch.chdir(tmp_path)
    for name in (f"{tmp_path}/secret.txt", "secret.txt", "missing.json", "openseg:coco_panoptic"):
        with pytest.raises(VocabularyError) as caught:
            Vocabulary.parse(form.format(name), files=False)
        assert str(caught.value).startswith(f"'{name}' looks like a file or a published list")
    doubts: list[str] = []
    found = Vocabulary.parse(
        'coco; "secret.txt"; "AC/DC"', "sky . sea", files=False, on_doubt=doubts.append
    )
    assert found.names[-3:-1] == ("secret.txt", "AC/DC")
    assert len(doubts) == 1 and doubts[0].endswith("write 'sky; sea'")


def test_save_rejects_names_with_separators(tmp_path):
    with pytest.raises(VocabularyError, match="'a|b' cannot be saved"):
        Vocabulary((("a|b",),), (True,)).save(tmp_path / "x.txt")


LABELS = "0:invalid_class_id\r\n1:person,child,girl\r\n\r\n7:dog, puppy,\r\n3:sky\r\n"


def test_label_file_with_ids(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes(b"\xef\xbb\xbf" + LABELS.encode())
    v = Vocabulary.load(path)
    assert v.synonyms == (("person", "child", "girl"), ("sky",), ("dog", "puppy"))
    assert v.is_thing == (True, True, True) and v.name == "labels"
    assert Vocabulary.load(path, things=[1, 7]).is_thing == (True, False, True)
    assert Vocabulary.load(path, things="coco").is_thing == (True, False, True)
    assert Vocabulary.load(path, things=Vocabulary.load("coco")).is_thing == (True, False, True)
    with pytest.raises(VocabularyError, match="no class with id 0"):
        Vocabulary.load(path, things=[0, 1])
    with pytest.raises(VocabularyError, match="no class like 'sky' .id 3"):
        Vocabulary.load(path, things="voc20")


@pytest.mark.parametrize("name", BUILTIN)
def test_label_file_round_trip(name, tmp_path):
    vocabulary = Vocabulary.load(name)
    lines = [f"{2 * i + 1}:{','.join(group)}" for i, group in enumerate(vocabulary.synonyms)]
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(["0:invalid_class_id", *lines]))
    loaded = Vocabulary.load(path, things=vocabulary)
    assert loaded.synonyms == vocabulary.synonyms and loaded.is_thing == vocabulary.is_thing


def test_label_file_of_one_dataset_takes_flags_by_index(tmp_path):
    # One class in ten has a name that our list does not know.
    ade20k = Vocabulary.load("ade20k")
    lines = [
        f"{i}:{f'unheard of {i}' if i % 10 == 0 else group[0]}"
        for i, group in enumerate(ade20k.synonyms)
    ]
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(lines))
    assert Vocabulary.load(path, things="ade20k").is_thing == ade20k.is_thing


def test_label_file_keeps_a_name_of_two_classes(tmp_path):
    # Published lists contain such names, and the results published with them depend on it.
    path = tmp_path / "labels.txt"
    path.write_text("1:screen,screen door\n2:monitor,screen\n")
    assert Vocabulary.load(path).synonyms == (("screen", "screen door"), ("monitor", "screen"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1:person\nsky\n", r"labels.txt:2: expected 'id:name,name', found 'sky'"),
        ("1:person\n\n2: ,\n", r"labels.txt:3: id 2 has no name"),
        ("1:person\n1:sky\n", r"labels.txt:2: id 1 is already used in line 1"),
        ("stuff: sky\nperson\n", r"labels.txt:2: expected 'thing: name, name'"),
        ("person\nstuf: b\n", r"labels.txt:1: expected 'thing: name, name'"),
        ('thing: "salt, sea\n', "labels.txt:1: '\"salt' begins with a quotation mark"),
        ("# x\nthing: a\nstuf: b\n", r"labels.txt:3: expected"),
        ("thing: a\nstuff: | b\n", r"labels.txt:2: class without a name"),
        (
            "thing: a, b\nstuff: B\n",
            r"labels.txt:2: name 'B' already belongs to the class in line 1",
        ),
        ("# only a comment\n", "labels.txt has no classes"),
        ("", "labels.txt has no classes"),
        ("0:invalid_class_id\n", "labels.txt has no classes"),
    ],
)
def test_bad_lines_are_named(text, message, tmp_path):
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(VocabularyError, match=message):
        Vocabulary.load(tmp_path / "labels.txt")


def test_unreadable_file_and_flags_given_twice(tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(VocabularyError, match="cannot read vocabulary file .*binary.txt"):
        Vocabulary.load(tmp_path / "binary.txt")
    with pytest.raises(VocabularyError, match="has its own thing flags"):
        Vocabulary.load("coco", things=[1])
    Vocabulary.parse("a").save(tmp_path / "own.txt")
    with pytest.raises(VocabularyError, match="own.txt has its own thing flags"):
        Vocabulary.load(tmp_path / "own.txt", things=[1])


def test_json_files(tmp_path):
    path = tmp_path / "classes.json"
    coco = Vocabulary.load("coco")
    path.write_text(json.dumps(coco.metainfo))
    assert Vocabulary.load(path).metainfo == coco.metainfo
    categories = [{"id": 9, "name": "sky", "isthing": 0}, {"id": 2, "name": "cat", "isthing": 1}]
    for content in (categories, {"categories": categories, "images": []}):
        path.write_text(json.dumps(content))
        v = Vocabulary.load(path)
        assert (v.names, v.is_thing) == (("cat", "sky"), (True, False))
    for text, message in [
        ("{", "classes.json: not JSON"),
        ('[{"id": true, "name": "cat"}]', "category number 1 of the list has `id` true"),
        ('[{"id": 1.5, "name": "cat"}]', "category number 1 of the list has `id` 1.5"),
        ('[{"id": 1, "name": null}]', "category 1 has `name` null, not text"),
        ('[{"id": 1, "name": ","}]', "the name of category 1 consists of commas only"),
        ('[{"id": 1, "name": "cat", "isthing": "0"}]', 'category 1 has `isthing` "0", not 0 or 1'),
        ('[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]', "category id 1 appears more than"),
        ('[{"id": 1, "name": "a"}, {"id": 2, "name": " a"}]', "'a' .* with ids 1 and 2"),
        ("{}", "classes.json: metainfo has no class names"),
        ('["cat"]', "classes.json: expected mmdet's metainfo"),
        ("3", "classes.json: expected mmdet's metainfo"),
        ("[]", "classes.json has no classes"),
    ]:
        path.write_text(text)
        with pytest.raises(VocabularyError, match=message):
            Vocabulary.load(path)


# Metainfo


@pytest.mark.parametrize("name", BUILTIN)
def test_metainfo_round_trip(name):
    metainfo = Vocabulary.load(name).metainfo
    assert Vocabulary.from_metainfo(metainfo).metainfo == metainfo


def test_metainfo_flags_and_synonyms():
    def flags(**metainfo):
        return Vocabulary.from_metainfo(metainfo).is_thing

    assert flags(classes=("a", "b")) == (True, True)
    assert flags(classes=("a", "b"), thing_classes=["b"]) == (False, True)
    assert flags(classes=("a", "b"), stuff_classes=["b"]) == (True, False)
    assert flags(thing_classes=["a"], stuff_classes=["b"]) == (True, False)
    v = Vocabulary.from_metainfo({"classes": ["painting, picture"], "palette": []})
    assert v.synonyms == (("painting", "picture"),) and v.source_names == ("painting, picture",)


@pytest.mark.parametrize(
    ("metainfo", "message"),
    [
        ({}, "no class names"),
        ({"classes": "cat"}, "must be a list of names"),
        ({"classes": ["cat", 3]}, "must be a list of names"),
        ({"classes": ["cat", " "]}, "empty name"),
        (
            {"classes": ["cat"], "thing_classes": ["dog"]},
            "'dog' of metainfo.'thing_classes'. is not",
        ),
        ({"classes": ["a"], "thing_classes": ["a"], "stuff_classes": ["a"]}, "'a' is in both"),
        ({"classes": ["a"], "thing_classes": [], "stuff_classes": []}, "'a' is in neither"),
    ],
)
def test_bad_metainfo(metainfo, message):
    with pytest.raises(VocabularyError, match=message):
        Vocabulary.from_metainfo(metainfo)
