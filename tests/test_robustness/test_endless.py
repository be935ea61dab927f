"""Every reader refuses pipes, sockets and devices before it opens them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from odise_mm.annotations.panoptic_io import read_coco_panoptic
from odise_mm.apis.sources import expand
from odise_mm.config.finding import load_config
from odise_mm.converters.files import read_json, read_lines
from odise_mm.errors import ConfigError, DatasetError, PanopticFileError, VocabularyError
from odise_mm.models.clip.word_tokenizer import WordTokenizer
from odise_mm.vocabulary import Vocabulary

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there are no pipes with names")

READERS = [
    (Vocabulary.load, "names.txt", VocabularyError),
    (Vocabulary.load, "names.json", VocabularyError),
    (Vocabulary.parse, "names.txt", VocabularyError),
    (lambda path: Vocabulary.parse([f"cat; {path}"]), "names.txt", VocabularyError),
    (lambda path: WordTokenizer(path, 77), "words.txt", VocabularyError),
    (load_config, "config.py", ConfigError),
    (load_config, "config.yaml", ConfigError),
    (read_coco_panoptic, "panoptic.json", PanopticFileError),
    (read_json, "captions.json", DatasetError),
    (read_lines, "index.txt", DatasetError),
]


@pytest.mark.parametrize(("read", "name", "error"), READERS)
def test_pipes(tmp_path: Path, read: Callable, name: str, error: type[Exception]) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(error, match=rf"{name}: is a pipe, a device or a socket"):
        read(str(path))


def test_cyclic_links(tmp_path: Path) -> None:
    # Without a check, ten such links make 10 ** 40 paths.
    for number in range(10):
        (tmp_path / f"{number}.jpg").touch()
        (tmp_path / f"back{number}").symlink_to(".")
        (tmp_path / f"folder{number}").mkdir()
        (tmp_path / f"folder{number}" / "up").symlink_to("..")
        (tmp_path / f"folder{number}" / "beside").symlink_to(f"../folder{(number + 1) % 10}")
    sources = expand(str(tmp_path / "**" / "*.jpg"))
    assert [source.path for source in sources] == [str(tmp_path / f"{n}.jpg") for n in range(10)]
    assert len(expand(str(tmp_path / "**" / "**" / "folder*" / ".." / "*.jpg"))) == 10
