"""Files are written atomically, and names in files stay below their folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from odise_mm.errors import DatasetError, OutputError
from odise_mm.utils.files import (
    FolderLock,
    atomic_writer,
    path_inside,
    read_json,
    regular_file,
    replacing,
    write_json,
    write_text,
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_failed_write_leaves_the_existing_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"a": 1})
    with pytest.raises(RuntimeError, match="disk"), atomic_writer(target) as file:
        file.write(b"half of")
        raise RuntimeError("disk full")
    assert json.loads(target.read_text()) == {"a": 1}
    assert names_in(tmp_path) == ["a.json"]


def test_unserializable_content_leaves_the_existing_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, [1])
    with pytest.raises(TypeError):
        write_json(target, {"a": object()})
    assert json.loads(target.read_text()) == [1]
    assert names_in(tmp_path) == ["a.json"]


def test_undecodable_name_round_trip(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    write_json(tmp_path / "a.json", {"file_name": name, "word": "café"})
    raw = (tmp_path / "a.json").read_bytes()
    assert "café".encode() in raw  # only undecodable bytes are escaped
    raw.decode("utf-8")
    assert read_json(tmp_path / "a.json", DatasetError)["file_name"] == name


def test_write_creates_folders_and_accepts_the_longest_name(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / ("n" * 251 + ".txt")
    write_text(target, "text\n")
    assert target.read_bytes() == b"text\n"


def test_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink() and real.read_text() == "new"


def test_permissions_equal_those_of_open(tmp_path: Path) -> None:
    with open(tmp_path / "plain", "w"):
        pass
    write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_replacing_yields_a_name_next_to_the_target(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.bin") as temporary:
        assert temporary.parent == tmp_path and temporary.name != "a.bin"
        temporary.write_bytes(b"x")
        assert not (tmp_path / "a.bin").exists()
    assert names_in(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not JSON"),
        ('{"a": 1', "not JSON"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a": NaN}', "NaN is not valid JSON"),
        ('{"a": -Infinity}', "-Infinity is not valid JSON"),
        ("1" * 10_000, "digits"),
        ('[{"a": 1, "b": 2, "a": 3}]', "the key 'a' twice"),
    ],
)
def test_invalid_json_raises_one_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=expected) as caught:
        read_json(path, DatasetError, "annotation file")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_json_that_is_not_utf8_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('{"a": "é"}'.encode("latin-1"))
    with pytest.raises(DatasetError, match="not UTF-8"):
        read_json(path, DatasetError)


def test_json_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(path, DatasetError) == [1]


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    assert regular_file(tmp_path / "file", DatasetError, "file") == tmp_path / "file"
    for name, expected in (("pipe", "a pipe"), (".", "a folder"), ("no", "no such")):
        with pytest.raises(DatasetError, match=expected):
            regular_file(tmp_path / name, DatasetError, "image")
    with pytest.raises(DatasetError, match="a pipe"):
        regular_file("/dev/zero", DatasetError, "image")


@pytest.mark.parametrize("name", ["a.jpg", "b/c.jpg", "./a.jpg", "b/../a.jpg", "..a.jpg", "b\\c"])
def test_names_that_stay_inside(tmp_path: Path, name: str) -> None:
    assert path_inside(tmp_path, name, DatasetError, "x") == tmp_path / name


@pytest.mark.parametrize(
    "name",
    [
        "../a",
        "b/../../a",
        "/etc/hosts",
        "..",
        "b\\..\\..\\a",
        "C:\\a",
        "c:a",
        "\\a",
        "",
        " ",
        "a\0",
    ],
)
def test_names_that_lead_outside_raise(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="ann.json: file_name"):
        path_inside(tmp_path, name, DatasetError, "ann.json: file_name of image 7")


@pytest.mark.parametrize("name", [None, 7, ["a"], b"a"])
def test_names_that_are_not_strings_raise(tmp_path: Path, name: object) -> None:
    with pytest.raises(DatasetError, match="not a file name"):
        path_inside(tmp_path, name, DatasetError, "x")


def test_absolute_names_below_the_folder_are_allowed(tmp_path: Path) -> None:
    inside = str(tmp_path / "a.jpg")
    assert path_inside(tmp_path, inside, DatasetError, "x") == Path(inside)
    with pytest.raises(DatasetError, match="outside"):
        path_inside(tmp_path / "b", inside, DatasetError, "x")


def test_links_are_followed_for_reading_and_not_for_writing(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    root, name = tmp_path / "root", "link/a.png"
    assert path_inside(root, name, DatasetError, "x") == root / name
    with pytest.raises(DatasetError, match="outside"):
        path_inside(root, name, DatasetError, "x", for_writing=True)


def _hold(folder: str, ready: multiprocessing.Event, end: multiprocessing.Event) -> None:
    with FolderLock(folder, "a test run"):
        ready.set()
        end.wait(60)


def test_folder_has_one_owner(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path), ready, end))
    other.start()
    assert ready.wait(60)
    with pytest.raises(OutputError, match=rf"process {other.pid} on .*a test run"):
        FolderLock(tmp_path, "another").acquire()
    end.set()
    other.join()
    with FolderLock(tmp_path, "the next"):
        with pytest.raises(OutputError, match=f"process {os.getpid()} "):
            FolderLock(tmp_path, "the same program").acquire()
    assert not (tmp_path / ".odise_mm.owner.json").exists()


def test_lock_ends_with_its_killed_owner(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from odise_mm.utils.files import FolderLock\n"
        "FolderLock(sys.argv[1], 'x').acquire()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert names_in(tmp_path)  # files left by the killed owner do not block the next one
    with FolderLock(tmp_path, "the next"):
        assert read_json(tmp_path / ".odise_mm.owner.json", OutputError)["pid"] == os.getpid()


def test_lock_outlives_a_killed_owner_only_as_long_as_its_children(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, time\n"
        "from odise_mm.utils.files import FolderLock\n"
        "FolderLock(sys.argv[1], 'x').acquire()\n"
        "if os.fork() == 0:\n"
        "    time.sleep(2)\n"
        "    os._exit(0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    with FolderLock(tmp_path, "the next"):
        assert read_json(tmp_path / ".odise_mm.owner.json", OutputError)["pid"] == os.getpid()
