"""Published label files by name, from a local server that stands in for their publishers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from odise_mm.errors import VocabularyError
from odise_mm.vocabulary import BUILTIN, Vocabulary
from odise_mm.vocabulary.label_files import PUBLISHERS
from tests.support.file_server import FileServer, serving


def as_published(vocabulary: Vocabulary) -> bytes:
    """Format a vocabulary as a published label file, with one more synonym per class."""
    lines = ["0:invalid_class_id"]
    lines += [f"{i}:{g[0]},published {i}" for i, g in enumerate(vocabulary.synonyms, start=1)]
    return "\n".join(lines).encode()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(as_published(Vocabulary.load("coco"))) as running:
        folder = running.url.removesuffix("/weights.pth")
        for key, publisher in PUBLISHERS.items():
            moved = dataclasses.replace(publisher, folder=f"{folder}/{key}")
            monkeypatch.setitem(PUBLISHERS, key, moved)
        yield running


def test_list_is_downloaded_once_and_gets_the_flags_of_its_dataset(
    server: FileServer, tmp_path: Path
) -> None:
    for name in ("openseg:coco_panoptic", " OpenSeg: coco_panoptic"):
        vocabulary = Vocabulary.load(name)
        assert vocabulary.is_thing == Vocabulary.load("coco").is_thing
        assert vocabulary.synonyms[0] == ("person", "published 1")
    assert server.requests == [("/openseg/coco_panoptic_with_prompt_eng.txt", None)]
    assert (tmp_path / "hub/vocabularies/openseg/coco_panoptic_with_prompt_eng.txt").is_file()
    assert Vocabulary.load("openseg:coco_panoptic").name == "openseg:coco_panoptic"


def test_publishers_are_kept_apart(server: FileServer) -> None:
    one = Vocabulary.load("openseg:ade20k_847")
    assert all(one.is_thing)  # the flags of this list are unknown
    server.content = as_published(Vocabulary.load("voc20"))
    assert len(Vocabulary.load("fcclip:ade20k_847")) == 20
    assert [path for path, _ in server.requests] == [
        "/openseg/ade20k_847_with_prompt_eng.txt",
        "/fcclip/ade20k_847_with_prompt_eng.txt",
    ]


def test_things_can_be_given(server: FileServer) -> None:
    vocabulary = Vocabulary.load("openseg:coco_panoptic", things=[1, 2])
    assert sum(vocabulary.is_thing) == 2


def test_published_list_among_typed_names(server: FileServer) -> None:
    joined = Vocabulary.parse("zeppelin; openseg:coco_panoptic; dune")
    assert len(joined) == 135 and joined.names[:2] == ("zeppelin", "person")
    assert Vocabulary.parse("openseg:coco_panoptic, voc20").names[0] == "person"
    with pytest.raises(VocabularyError, match="'openseg:coco_panoptic' is a vocabulary and 'dune'"):
        Vocabulary.parse("openseg:coco_panoptic, dune")
    # other names with a colon are class names
    assert Vocabulary.parse("sign: stop").names == ("sign: stop",)
    assert not server.requests[1:]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openseg:coco_panoptik", "did you mean coco_panoptic.*publishes openseg:coco_panoptic, "),
        ("openseg:", "unknown vocabulary 'openseg:'.*NVlabs/ODISE publishes openseg:coco_panoptic"),
        ("fcclip:pascal_voc_20", "bytedance/fc-clip publishes fcclip:coco_panoptic"),
        (
            "opensek:coco",
            r"unknown vocabulary 'opensek:coco'.*published list \(openseg:..., fcclip:",
        ),
    ],
)
def test_unknown_names(server: FileServer, name: str, message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        Vocabulary.load(name)
    assert not server.requests


def test_offline(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(VocabularyError, match="HF_HUB_OFFLINE is set.*pass the path of a local"):
        Vocabulary.load("openseg:coco_panoptic")
    assert not server.requests


def test_file_missing_on_the_server(server: FileServer) -> None:
    server.status = 404
    with pytest.raises(VocabularyError, match="openseg:coco_panoptic .*HTTP 404"):
        Vocabulary.load("openseg:coco_panoptic")


def test_not_a_label_file_raises(server: FileServer) -> None:
    server.content = b"name: something else"
    with pytest.raises(VocabularyError, match="coco_panoptic_with_prompt_eng.txt:1: expected"):
        Vocabulary.load("openseg:coco_panoptic")


def test_lists_are_documented_and_their_flags_are_known() -> None:
    page = (Path(__file__).parents[2] / "docs" / "vocabularies.md").read_text(encoding="utf-8")
    for key, publisher in PUBLISHERS.items():
        assert publisher.folder.startswith("https://raw.githubusercontent.com/")
        for name, (_, things) in publisher.files.items():
            assert f"`{key}:{name}`" in page
            assert not things or things in BUILTIN
