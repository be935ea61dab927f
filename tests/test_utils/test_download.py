"""Downloads are resumed and verified, and incomplete files are never used."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from odise_mm.errors import CheckpointError
from odise_mm.utils import download as module
from odise_mm.utils.download import RemoteFile, download, is_offline
from tests.support.file_server import FileServer, serving

CONTENT = random.Random(0).randbytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.0)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(CONTENT) as running:
        yield running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights.pth"


def fetch(server: FileServer, path: Path, size: int | None = None, sha256: str | None = None):
    file = RemoteFile(server.url, size, sha256)
    return download(file, path, CheckpointError, "the checkpoint", instead="name a file")


def refused(server: FileServer, path: Path, **known: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        fetch(server, path, **known)
    assert not path.exists()
    text = str(caught.value)
    assert "\n" not in text and text.count("the checkpoint") >= 1
    return text


def left(path: Path) -> set[str]:
    """Return the names of the files in the folder, without the lock."""
    return {file.name for file in path.parent.iterdir() if not file.name.endswith(".lock")}


def test_file_is_downloaded_once(server: FileServer, path: Path) -> None:
    for _ in range(2):
        assert fetch(server, path, len(CONTENT), SHA256[:8]) == path
    assert path.read_bytes() == CONTENT and len(server.requests) == 1
    assert left(path) == {"weights.pth"}


def test_default_name_comes_from_the_url() -> None:
    assert RemoteFile("https://host/a/b-1.pth?x=1").name == "b-1.pth"
    assert RemoteFile("https://host/a", name="b").name == "b"


@pytest.mark.parametrize("known", [{}, dict(size=len(CONTENT)), dict(sha256=SHA256)])
def test_lost_connections_are_resumed(server: FileServer, path: Path, known: dict) -> None:
    server.cut_after = 1_100_000
    assert fetch(server, path, **known).read_bytes() == CONTENT
    starts = [asked for _, asked in server.requests]
    assert starts == [None, "bytes=1100000-", "bytes=2200000-"]


def test_download_is_resumed_in_the_next_call(server: FileServer, path: Path) -> None:
    def stop(number: int) -> None:
        server.cut_after = 1_000_000 if number == 1 else 0

    server.before = stop
    text = refused(server, path)
    assert "1,000,000 of 3,000,000 bytes are kept" in text and "try again to resume" in text
    assert (path.parent / "weights.pth.part").stat().st_size == 1_000_000
    server.before, server.cut_after = (lambda _: None), None
    assert fetch(server, path).read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=1000000-" and left(path) == {"weights.pth"}


def test_changed_file_is_downloaded_from_the_start(server: FileServer, path: Path) -> None:
    def change(number: int) -> None:
        if number == 2:
            server.content, server.etag, server.cut_after = CONTENT[::-1], '"two"', None

    server.before, server.cut_after = change, 1_000_000
    assert fetch(server, path).read_bytes() == CONTENT[::-1]


def test_server_without_ranges(server: FileServer, path: Path) -> None:
    def whole(number: int) -> None:
        server.cut_after = 1_000_000 if number == 1 else None

    server.before, server.ranges = whole, False
    assert fetch(server, path, sha256=SHA256).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_no_resume_without_validator_and_checksum(server: FileServer, path: Path) -> None:
    def whole(number: int) -> None:
        server.cut_after = 1_000_000 if number == 1 else None

    server.before, server.etag = whole, ""
    assert fetch(server, path).read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, None]


@pytest.mark.parametrize("etag", ["", '"one"'])
def test_server_without_progress_fails(server: FileServer, path: Path, etag: str) -> None:
    server.cut_after, server.ranges, server.etag = 1_000_000, False, etag
    assert "the connection was lost after 1,000,000 of 3,000,000 bytes" in refused(server, path)
    assert len(server.requests) == 4


def test_part_of_another_url_is_dropped(server: FileServer, path: Path) -> None:
    path.parent.mkdir()
    (path.parent / "weights.pth.part").write_bytes(b"x" * 100)
    note = dict(url="http://elsewhere/weights.pth", validator='"one"')
    (path.parent / "weights.pth.part.json").write_text(json.dumps(note))
    assert fetch(server, path).read_bytes() == CONTENT
    assert server.requests == [("/weights.pth", None)]


@pytest.mark.parametrize("known", [{}, dict(size=len(CONTENT), sha256=SHA256)])
def test_complete_part_is_not_downloaded_again(server: FileServer, path: Path, known: dict) -> None:
    path.parent.mkdir()
    (path.parent / "weights.pth.part").write_bytes(CONTENT)
    note = dict(url=server.url, validator='"one"')
    (path.parent / "weights.pth.part.json").write_text(json.dumps(note))
    assert fetch(server, path, **known).read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == ([] if known else ["bytes=3000000-"])


def test_file_with_wrong_checksum_is_removed(server: FileServer, path: Path) -> None:
    text = refused(server, path, sha256="b67d2efc")
    assert f"begins with {SHA256[:8]}, the published one with b67d2efc" in text
    assert not left(path)


@pytest.mark.parametrize("change", [-1, 1, 1000])
def test_too_few_or_too_many_bytes(server: FileServer, path: Path, change: int) -> None:
    server.content = CONTENT[:change] if change < 0 else CONTENT + b"x" * change
    text = refused(server, path, size=len(CONTENT))
    assert f"sends {len(server.content):,} bytes" in text and "file has 3,000,000" in text
    assert not left(path)


def test_more_bytes_than_published_without_a_length(server: FileServer, path: Path) -> None:
    server.content, server.chunked = CONTENT * 2, True
    assert "sends more than 3,000,000 bytes" in refused(server, path, size=len(CONTENT))
    assert not left(path)


def test_more_bytes_than_announced_are_not_read(server: FileServer, path: Path) -> None:
    server.declared = 2_000_000
    assert "wrong checksum" in refused(server, path, sha256=SHA256)


def test_fewer_bytes_than_announced(server: FileServer, path: Path) -> None:
    server.declared = 3_000_100
    assert "the server reports a different size each time" in refused(server, path)
    assert not left(path)


def test_chunked_transfer(server: FileServer, path: Path) -> None:
    server.chunked = True
    assert fetch(server, path).read_bytes() == CONTENT
    path.unlink()
    server.cut_after = 1_000_000  # in the middle of a chunk
    server.ranges = False
    assert "the connection was lost" in refused(server, path)


def test_unknown_size_needs_a_checksum(server: FileServer, path: Path) -> None:
    server.declared = 0
    assert "does not report the size of" in refused(server, path)
    assert fetch(server, path, sha256=SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_web_page_instead_of_the_file_raises(server: FileServer, path: Path, kind: str) -> None:
    server.content, server.kind = b"\n<!DOCTYPE html><title>Login</title>", kind
    text = refused(server, path)
    assert "sent a web page instead of the checkpoint" in text and server.url in text
    assert not left(path)


@pytest.mark.parametrize(
    ("status", "message", "requests"),
    [
        (404, "HTTP 404, Not Found: the file no longer exists", 1),
        (403, "HTTP 403, Forbidden: the server refused the request", 1),
        (407, "the proxy requires a login", 1),
        (503, "HTTP 503, Service Unavailable", 3),
    ],
)
def test_http_errors(
    server: FileServer, path: Path, status: int, message: str, requests: int
) -> None:
    server.status = status
    text = refused(server, path)
    assert message in text and "or name a file" in text
    assert len(server.requests) == requests


def test_temporary_errors_are_retried(server: FileServer, path: Path) -> None:
    def recover(number: int) -> None:
        server.status = 503 if number < 3 else 200

    server.before = recover
    assert fetch(server, path).read_bytes() == CONTENT


def test_no_network(path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        gone = FileServer(url=f"http://127.0.0.1:{taken.getsockname()[1]}/weights.pth")
        text = refused(gone, path)
    assert "refused" in text and f"download {gone.url} on another machine" in text
    assert f"save it as {path}" in text


def test_unknown_host(path: Path) -> None:
    text = refused(FileServer(url="http://nowhere.invalid/weights.pth"), path)
    assert "could not be downloaded from nowhere.invalid" in text


def test_timeout(server: FileServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = threading.Event()
    server.before = lambda _: waiting.wait(5)
    monkeypatch.setattr(module, "TIMEOUT", 0.1)
    try:
        assert "timed out" in refused(server, path)
    finally:
        waiting.set()


def test_only_web_addresses(path: Path) -> None:
    assert "is not a web address" in refused(FileServer(url="file:///etc/passwd"), path)


def test_offline(server: FileServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_offline()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert is_offline()
    text = refused(server, path)
    assert "HF_HUB_OFFLINE is set" in text and str(path) in text and not server.requests
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(CONTENT)
    assert download(RemoteFile(server.url), path, CheckpointError, "the checkpoint") == path


def test_not_enough_disk_space(
    server: FileServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(path.parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    text = refused(server, path)
    assert "the disk is full: the checkpoint needs 3,000,000 more bytes" in text
    assert "only 1,000 are free" in text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_disk_becomes_full(server: FileServer, path: Path) -> None:
    path.parent.mkdir()
    (path.parent / "weights.pth.part").symlink_to("/dev/full")
    text = refused(server, path)
    assert "the disk is full" in text and "try again to resume" in text


def test_folder_that_is_a_file_raises(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    text = refused(server, tmp_path / "file" / "weights.pth")
    assert "cannot write the checkpoint" in text


def test_local_copy_of_another_file_raises_and_is_kept(server: FileServer, path: Path) -> None:
    path.parent.mkdir()
    for content, known, message in (
        (b"x" * 10, dict(size=11), "it has 10 bytes, the published file has 11"),
        (b"x" * 10, dict(sha256=SHA256), "its SHA-256 differs"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"is not the checkpoint: {message}.*Remove"):
            fetch(server, path, **known)
        assert path.read_bytes() == content and not server.requests


def test_threads_download_the_same_file_once(server: FileServer, path: Path) -> None:
    threads = [threading.Thread(target=fetch, args=(server, path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == CONTENT and len(server.requests) == 1
