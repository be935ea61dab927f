"""Outputs overwrite neither inputs nor foreign files, whatever their names are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odise_mm.errors import OutputError
from odise_mm.utils.outputs import (
    InputFiles,
    check_folder,
    check_outputs,
    image_path,
    is_ours,
    refuse_foreign,
    spelling,
    stem_of,
    unused_stem,
    write_image,
    write_marked_png,
)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photos" / "a.jpg"
    path.parent.mkdir()
    Image.new("RGB", (4, 3)).save(path)
    return path


def test_input_is_recognized_under_any_name(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "link.jpg").symlink_to(photo)
    os.link(photo, tmp_path / "hard.jpg")
    (tmp_path / "folder").symlink_to(photo.parent)
    (tmp_path / "copy.jpg").write_bytes(photo.read_bytes())
    inputs = InputFiles(photo, None, 3, tmp_path / "missing.jpg", tmp_path)  # folders are ignored
    for name in ("photos/a.jpg", "photos/../photos/a.jpg", "link.jpg", "hard.jpg", "folder/a.jpg"):
        with pytest.raises(OutputError, match="would replace an input .*a.jpg"):
            inputs.refuse(tmp_path / name)
    for name in ("copy.jpg", "new.jpg", "photos/b.jpg", "copy.jpg/c.jpg"):
        inputs.refuse(tmp_path / name)


def test_input_given_as_a_link(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "link.jpg").symlink_to(photo)
    with pytest.raises(OutputError):
        InputFiles(tmp_path / "link.jpg").refuse(photo)


def test_inputs_in_subfolders(photo: Path, tmp_path: Path) -> None:
    inputs = InputFiles()
    inputs.add_below(tmp_path)
    with pytest.raises(OutputError):
        inputs.refuse(photo)


def test_check_outputs(photo: Path, tmp_path: Path) -> None:
    check_outputs([None, tmp_path / "new" / "deep" / "a.json"], [photo])
    assert not (tmp_path / "new").exists()
    with pytest.raises(OutputError, match="photos: is a folder"):
        check_outputs([photo.parent])
    with pytest.raises(OutputError, match="would replace an input"):
        check_outputs([tmp_path / "b.json", photo], [str(photo)])
    with pytest.raises(OutputError, match="a.jpg is not a folder"):
        check_outputs([photo / "new" / "a.json"])
    check_folder("")
    (tmp_path / "loose").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="loose is not a folder"):
        check_folder(tmp_path / "loose" / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_raises(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="no permission"):
        check_folder(tmp_path / "out")


def test_our_images_are_recognized(photo: Path, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    path = write_image(tmp_path / "new", "a", drawn)
    assert path == tmp_path / "new" / "a.jpg" == image_path(tmp_path / "new", "a")
    with Image.open(path) as image:
        assert np.abs(np.asarray(image)[..., ::-1].astype(int) - drawn).mean() < 8
    write_marked_png(tmp_path / "map.png", drawn)
    for ours in (path, tmp_path / "map.png"):
        assert is_ours(ours)
        refuse_foreign(ours)
    refuse_foreign(tmp_path / "missing.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("odise_mm")
    for foreign in (photo, *(tmp_path / f"{n}.png" for n in ("pipe", "folder", "text"))):
        assert not is_ours(foreign)
        with pytest.raises(OutputError, match="was not written by this program"):
            refuse_foreign(foreign)


def test_image_too_large_for_jpeg(tmp_path: Path) -> None:
    path = write_image(tmp_path, "a", np.zeros((1, 65_501, 3), np.uint8))
    assert path.name == "a.png" and is_ours(path)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.jpg", "a"),
        ("x/y.z/a.b.jpg", "a.b"),
        ("a", "a"),
        ("..jpg", "..jpg"),
        (".jpg", ".jpg"),
        ("con.jpg", "_con"),
        ("LPT1.tar.png", "_LPT1.tar"),
        ("console.jpg", "console"),
    ],
)
def test_stem_of(name: str, stem: str) -> None:
    assert stem_of(name) == stem


@pytest.mark.parametrize("name", ["a" * 251, "é" * 125, "界" * 83, "a" * 255, "é" * 127])
def test_longest_names(name: str, tmp_path: Path) -> None:
    first = stem_of(f"{name}.jpg")
    second = unused_stem(first, {spelling(first)})
    assert first != second
    for stem in (first, second):
        write_image(tmp_path, stem, np.zeros((2, 2, 3), np.uint8))
        write_marked_png(tmp_path / f"{stem}.png", np.zeros((2, 2), np.uint8))
    assert stem_of(f"{name}.jpg") == first
    assert stem_of(f"{name[:-1]}b.jpg") != first
    if len(os.fsencode(name)) <= 251:
        assert first == name


def test_names_that_some_file_systems_confuse() -> None:
    used = {spelling(stem) for stem in ("Cafe\u0301", "b", "b_2")}
    assert unused_stem("caf\u00e9", used) == "caf\u00e9_2"
    assert unused_stem("B", used) == "B_3"
    assert unused_stem("c", used) == "c"


def test_undecodable_name(tmp_path: Path) -> None:
    stem = stem_of(os.fsdecode(b"caf\xe9.jpg"))
    path = write_image(tmp_path, stem, np.zeros((2, 2, 3), np.uint8))
    assert os.listdir(os.fsencode(tmp_path)) == [b"caf\xe9.jpg"] and is_ours(path)
