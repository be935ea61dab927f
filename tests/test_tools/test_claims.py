"""Converters replace only files that converters wrote."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from odise_mm.converters import (
    ade20k,
    ade20k_full,
    cityscapes,
    coco,
    mapillary,
    pascal_context,
    uvo,
)
from odise_mm.converters.claims import MADE, claim
from odise_mm.converters.program import program
from odise_mm.errors import DatasetError
from odise_mm.utils.files import FolderLock
from tests.support import tiny_ade_pascal as tiny_archives
from tests.test_tools.test_convert_coco import convert, phrases_file, write_archives


def test_existing_output_of_another_program_raises(tmp_path: Path) -> None:
    file, folder = tmp_path / "annotations/a.json", tmp_path / "annotations/a"
    claim(tmp_path, [file, folder])
    folder.mkdir(parents=True)
    file.write_text("1")
    (folder / "1.png").touch()
    claim(tmp_path, [file, folder])  # recorded
    claim(tmp_path, [tmp_path / "b.json"])
    assert json.loads((tmp_path / MADE).read_text()) == ["annotations/a", "annotations/a.json",
                                                         "b.json"]  # fmt: skip
    (tmp_path / MADE).unlink()
    for output in (file, folder):
        with pytest.raises(
            DatasetError, match="already exists and was not written by this program"
        ) as caught:
            claim(tmp_path, [tmp_path / "new.json", output])
        assert str(output) in str(caught.value)
    assert not (tmp_path / MADE).exists()
    journal = tmp_path / ".a.journal"
    journal.touch()  # of an interrupted run
    claim(tmp_path, [file, folder], [journal])
    assert (tmp_path / MADE).exists()


@pytest.mark.parametrize("converter", [ade20k, cityscapes, coco, mapillary, pascal_context, uvo])
def test_one_converter_at_a_time(
    converter: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with FolderLock(tmp_path, "preparing a dataset"):
        for options, message in (([], "in use by process"), (["--verify-only"], "no ")):
            with pytest.raises(SystemExit) as end, program():
                converter.main([str(tmp_path), *options])
            assert end.value.code == 2
            error = capsys.readouterr().err
            assert message in error and ("in use" in error) == (not options)


def test_empty_folder_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    claim(tmp_path, [tmp_path / "maps"])
    assert "maps" in (tmp_path / MADE).read_text()


@pytest.mark.parametrize("text", ["{}", "[1]", "[", ""])
def test_invalid_record_raises(tmp_path: Path, text: str) -> None:
    (tmp_path / MADE).write_text(text)
    with pytest.raises(DatasetError, match="odise_mm_made"):
        claim(tmp_path, [tmp_path / "a.json"])


def test_phrases_written_by_hand_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The documentation allows writing this file by hand."""
    archives = write_archives(tmp_path / "coco", "val")
    text = json.dumps(dict(info=dict(tagger="by hand"), phrases={"7": [["cat"]]}))
    phrases_file(archives).write_text(text)
    with pytest.raises(SystemExit):
        convert(archives)
    assert "phrases_val2017.json: already exists" in capsys.readouterr().err
    assert phrases_file(archives).read_text() == text
    phrases_file(archives).unlink()
    assert convert(archives) == 0
    assert convert(archives, "--grammar", "runs") == 0  # a converter's own file is replaced


@pytest.mark.parametrize(
    ("write", "main", "file"),
    [
        (tiny_archives.write_raw_pascal_context, pascal_context.main, "annotations_pc59/a.png"),
        (tiny_archives.write_raw_pascal_context, pascal_context.main, "pc459.txt"),
        (tiny_archives.write_raw_ade847, ade20k_full.main, "annotations_847/validation/a.png"),
        (tiny_archives.write_raw_ade847, ade20k_full.main, "ade847.txt"),
    ],
)
def test_foreign_label_maps_are_kept(tmp_path: Path, write, main, file: str) -> None:
    root = write(tmp_path).root
    foreign = root / file
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_text("somebody's own")
    with pytest.raises(DatasetError, match="already exists and was not written by this program"):
        main([str(root), "--workers", "1"])
    assert foreign.read_text() == "somebody's own"
    foreign.unlink()
    for _ in range(2):  # the second run replaces its own files
        main([str(root), "--workers", "1"])
