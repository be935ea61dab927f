"""Expansion of folders, patterns and lists to images; skipped files are logged."""

from __future__ import annotations

import io
import logging
import os
import zipfile
from collections import UserString
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from PIL import Image

from odise_mm.apis.sources import expand, is_single
from odise_mm.utils.image import ImageError, image_suffixes, read_image

needs_links = pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")


@pytest.fixture
def logged(monkeypatch):
    """The messages that are logged."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Keep()
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.fixture
def album(tmp_path: Path, monkeypatch) -> Path:
    """Three images in subfolders of the working directory."""
    for name in ("top.png", "summer/lake.jpg", "summer/july/boat.PNG"):
        path = tmp_path / "album" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "album"


def names(images) -> list[str]:
    sources = list(expand(images))
    assert all(source.error is None for source in sources)
    assert [source.path for source in sources] == [source.name for source in sources]
    return [source.path.replace(os.sep, "/") for source in sources]


def test_images_of_all_readable_formats_are_found(tmp_path, logged):
    pixels = Image.new("RGB", (6, 4), (10, 20, 30))
    for suffix in image_suffixes():
        kind = Image.registered_extensions()[suffix]
        if kind in Image.SAVE:
            file = io.BytesIO()
            pixels.convert("F" if suffix == ".pfm" else "RGB").point(lambda v: v).save(file, kind)
            (tmp_path / f"a{suffix.upper()}").write_bytes(file.getvalue())
    sources = expand(tmp_path)
    assert len(sources) == len(image_suffixes()) - 1  # Pillow does not write PSD
    for source in sources:
        if not source.path.endswith(".PFM"):  # floating point numbers up to 255
            assert read_image(source.value).shape == (4, 6, 3)
    assert logged == []


def test_skipped_files_of_a_folder_are_logged(album, logged):
    for name in ("a.heic", "b.heic", "c.HEIC", "notes.txt", "README", "clip.mp4\x1b[31m"):
        (album / name).touch()
    for name in (".DS_Store", ".hidden", "Thumbs.db", "desktop.ini", "._top.png", ".jpg"):
        (album / name).touch()
    (album / "folder.jpg").mkdir()
    assert names("album") == ["album/top.png"]
    assert logged == [
        "album: skipped 6 files of other types (3 .heic, 1 without extension, "
        "1 .mp4\\x1b[31m, 1 .txt)"
    ]
    logged.clear()
    assert names("album/summer") == ["album/summer/lake.jpg"]
    assert logged == []


def test_images_with_odd_names(album):
    for name in ("..jpg", ".secret.png", "two.dots.webp", "d[1].bmp"):
        Image.new("RGB", (4, 4)).save(album / name, "png")
    found = ["..jpg", ".secret.png", "d[1].bmp", "top.png", "two.dots.webp"]
    assert names("album") == [f"album/{name}" for name in found]
    for name in found:
        assert names(f"album/{name}") == [f"album/{name}"] and is_single(album / name)


def test_a_folder_without_images(tmp_path, logged):
    (tmp_path / "notes.txt").touch()
    (source,) = expand(tmp_path)
    assert isinstance(source.error, ImageError) and ".jfif" in str(source.error)
    assert "1 .txt" in logged[0]


def test_paths_are_normalized(album, monkeypatch):
    monkeypatch.setenv("HOME", str(album))
    assert names("~/top.png") == [f"{album}/top.png"] and is_single("~/top.png")
    assert names("~") == [f"{album}/top.png"] and not is_single("~")
    assert names("~/*/*.jpg") == [f"{album}/summer/lake.jpg"]
    assert names("album/top.png/") == ["album/top.png"] and is_single("album/top.png/")
    assert names("album/") == names(Path("album")) == ["album/top.png"]
    monkeypatch.chdir("album")
    assert names(".") == names("*.png") == ["top.png"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("album/**/*.jpg", ["summer/lake.jpg"]),
        ("album/**", ["summer/july/boat.PNG", "summer/lake.jpg", "top.png"]),
        ("album/**/*", ["summer/july/boat.PNG", "summer/lake.jpg", "top.png"]),
        ("**/*.[jp]*g", ["summer/lake.jpg", "top.png"]),
        ("album/**/july/*", ["summer/july/boat.PNG"]),
        ("album/**/july/**", ["summer/july/boat.PNG"]),
        ("album/**/**/*.png", ["top.png"]),
        ("album/s*/**/*.*", ["summer/july/boat.PNG", "summer/lake.jpg"]),
        ("./album/**/top.png", ["top.png"]),
    ],
)
@needs_links
def test_cyclic_links_are_not_followed(album, pattern, found):
    (album / "self").symlink_to(".")
    (album / "summer" / "up").symlink_to("..")
    (album / "summer" / "july" / "again").symlink_to(album / "summer")
    (album / "lost").symlink_to("lost")
    if "*.*" in pattern or pattern in ("album/**", "album/**/*"):
        (album / "lost").unlink()  # a broken link would match
    before = "./album/" if pattern.startswith("./") else "album/"
    assert names(pattern) == [before + name for name in found]


@needs_links
def test_links_to_other_places_are_followed_once(album, logged):
    elsewhere = album.parent / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (4, 4)).save(elsewhere / "far.png")
    for name in ("one", "two"):
        (album / name).symlink_to(elsewhere)
    (album / "copy.png").symlink_to("top.png")
    assert names("album/**/*.png") == ["album/copy.png", "album/one/far.png"]
    assert logged == ["album/**/*.png: skipped 1 duplicate image"]


def test_patterns_do_not_match_hidden_folders(album):
    (album / ".trash").mkdir()
    Image.new("RGB", (4, 4)).save(album / ".trash" / "old.png")
    assert names("album/**/*.png") == ["album/top.png"]
    assert names("album/.trash/**/*.png") == ["album/.trash/old.png"]


def test_duplicates_are_skipped_except_for_paths(album, logged):
    assert names(["album", "album/*.png", album]) == ["album/top.png"]
    assert len(logged) == 2 and logged[0].startswith("album/*.png: skipped 1 duplicate image")
    one = "album/top.png"
    assert names([one, "album", one]) == [one] * 3
    assert list(names(iter([one, "album"]))) == [one] * 2


@pytest.mark.parametrize(
    "address",
    [
        "https://example.com/a.jpg",
        "http://example.com/a.jpg?size=*",
        "s3://bucket/[a].png",
        "file:///home/me/a.png",
        "data:image/png;base64," + "iVBORw0KGgo=" * 1000,
        Path("https://example.com/a.jpg"),
    ],
)
def test_urls_are_not_downloaded(address):
    assert is_single(address)
    (source,) = expand(address)
    assert "not downloaded" in str(source.error) and len(str(source.error)) < 400


def test_an_existing_path_that_looks_like_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s3:").mkdir()
    Image.new("RGB", (4, 4)).save("s3:/a.png")
    assert names("s3://a.png") == ["s3://a.png"]


def test_single_images():
    array = np.zeros((4, 4, 3), np.uint8)
    for one in (array, Image.new("L", (4, 4)), b"GIF89a", bytearray(b"x"), io.BytesIO(b"x")):
        assert is_single(one)
        (source,) = expand(one)
        assert source.value is one and source.name == "image" and source.path is None
        assert [s.name for s in expand([one, one])] == ["images[0]", "images[1]"]
    assert [is_single(many) for many in ([array], iter([array]), (), {})] == [False] * 4


def test_names_of_file_objects(album):
    with open("album/top.png", "rb") as file, Image.open("album/top.png") as image:
        shown = [source.name.replace(os.sep, "/") for source in expand([file, image])]
    assert shown == ["images[0] (album/top.png)", "images[1] (album/top.png)"]


@pytest.mark.parametrize(
    ("images", "match"),
    [
        ({"a.png": 1}, r"images is a dict; .* list\(images\.values\(\)\)"),
        ({"a.png"}, "images is a set, which has no order"),
        (frozenset(["a.png"]), "images is a frozenset"),
        (UserString("a.png"), r"images is a UserString; give str\(images\)"),
        ([[0, 0], [255, 255]], r"images\[0\] is a list; pass lists of pixels .*numpy\.array\("),
        ([["a.png", "b.png"]], r"images\[0\] is a list; .*one flat list"),
        (((0, 0, 0),), r"images\[0\] is a tuple"),
        (list(b"\xff\xd8\xff"), r"images\[0\] is a int; pass a path, a file's bytes"),
        (range(400_000), r"images\[0\] is a int"),
        ([None], r"images\[0\] is a NoneType"),
        ([torch.zeros(3, 4, 4)], r"images\[0\] is a Tensor; .*permute"),
        (torch.zeros(2, 3, 4, 4), r"images is a torch tensor; .*permute"),
        (3, "images is a int; give a path"),
        (
            zipfile.Path(zipfile.ZipFile(io.BytesIO(), "w"), "a.png"),
            r"images is a Path; pass its read_bytes\(\)",
        ),
        (None, "images is a NoneType"),
    ],
)
def test_not_a_list_of_images_raises(images, match):
    with pytest.raises(TypeError, match=match):
        expand(images)
    assert not is_single(images)


def test_single_invalid_items_of_a_list_are_left_to_the_reader():
    sources = list(expand(["a.png", [1, 2], None]))
    assert [source.name for source in sources] == ["a.png", "images[1]", "images[2]"]
    assert list(expand([])) == []
