"""Resumable and verified downloads.

A download is written to ``NAME.part`` and renamed when it is complete and has the published size
and checksum, so an incomplete file is never used. ``NAME.part.json`` records the source of the
partial file. Does not import torch.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from mmengine.logging import print_log
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from odise_mm.errors import OdiseError
from odise_mm.utils.display import first_line, printable

OFFLINE = "HF_HUB_OFFLINE"
"""Variable of the Hugging Face Hub. If set to 1, this package does not use the network either."""

TIMEOUT = 30.0  # seconds without receiving data
ATTEMPTS = 3  # number of consecutive attempts without progress
PAUSE = 1.0  # seconds before the second attempt, doubled for every further one

_CHUNK = 1 << 20
_LATER = {408, 425, 429, 500, 502, 503, 504}  # status codes that ask to try again later
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_USER_AGENT = "odise_mm"


@dataclass(frozen=True)
class RemoteFile:
    """A published file.

    Attributes:
        url: URL of the file.
        size: Size in bytes, if published.
        sha256: All 64 or the first hexadecimal digits of its SHA-256, if published.
        name: Name of the file; by default the one in the URL.
    """

    url: str
    size: int | None = None
    sha256: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", urlsplit(self.url).path.rpartition("/")[2])


class _Again(Exception):
    """The attempt failed for the given reason, and another one may succeed."""


class _FromTheStart(Exception):
    """The partial file is useless: the file has changed, or the server cannot resume."""


def is_offline() -> bool:
    """Return whether ``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE`` is set."""
    from huggingface_hub import constants

    now = (os.environ.get(name, "") for name in (OFFLINE, "TRANSFORMERS_OFFLINE"))
    return constants.HF_HUB_OFFLINE or any(v.upper() in ("1", "ON", "YES", "TRUE") for v in now)


def torch_cache() -> Path:
    """Return the folder of ``torch.hub`` below ``TORCH_HOME``, without importing torch."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or os.path.join(cache, "torch")
    return Path(home).expanduser() / "hub"


def download(
    file: RemoteFile,
    path: str | os.PathLike[str],
    error: type[OdiseError],
    what: str,
    *,
    instead: str = "",
    progress: bool = True,
) -> Path:
    """Return the local copy of a published file; download it first if necessary.

    Interrupted downloads are resumed, in this call and in later ones. A proxy is taken from the
    environment (``HTTPS_PROXY``). Several processes may request the same file.

    Args:
        file: File to download.
        path: Path of the local copy. Missing folders are created.
        error: Class of all raised errors.
        what: Description for messages, e.g. "the ODISE checkpoint".
        instead: Alternative for messages, e.g. "pass a local file with weights=PATH".
        progress: Whether to show a progress bar if standard error is a terminal.

    Returns:
        ``path``.

    Raises:
        OdiseError: Of class ``error``, if the download fails, or if the local copy is not the
            published file; such a copy is not changed.
    """
    path = Path(path).expanduser()
    if urlsplit(file.url).scheme not in ("https", "http"):
        raise error(f"{what}: {printable(file.url)} is not a web address")
    try:
        if path.exists():
            _check_copy(file, path, error, what)
            return path
        if is_offline():
            raise error(
                f"{what} is not available locally ({printable(path)}) and is not downloaded, "
                f"because {OFFLINE} is set. Unset it, or {_by_hand(file, path, instead)}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if not path.exists():  # another process may have been faster
                _Download(file, path, error, what, instead, progress).run()
    except OSError as failure:
        if failure.errno in _FULL:
            raise error(
                f"the disk is full: {what} could not be written to {printable(path.parent)}. The "
                f"partial file {printable(path.name)}.part is kept there: free some space and try "
                "again to resume the download"
            ) from failure
        reason = failure.strerror or failure
        raise error(f"cannot write {what} to {printable(path)}: {reason}") from failure
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print_log(f"waiting for another process that downloads {printable(path)}", logger="current")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _by_hand(file: RemoteFile, path: Path, instead: str) -> str:
    way = f"download {file.url} on another machine and save it as {printable(path)}"
    return f"{way}, or {instead}" if instead else way


def _check_copy(file: RemoteFile, path: Path, error: type[OdiseError], what: str) -> None:
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        wrong = f"it has {size:,} bytes, the published file has {file.size:,}"
    elif file.sha256 and not _digest(path).hexdigest().startswith(file.sha256):
        wrong = f"its SHA-256 differs from that of the published file ({file.sha256}...)"
    else:
        return
    raise error(f"{printable(path)} is not {what}: {wrong}. Remove it to download it again")


def _digest(path: Path) -> Any:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest


class _Download:
    """A running download; for the attributes see the arguments of :func:`download`."""

    def __init__(
        self,
        file: RemoteFile,
        path: Path,
        error: type[OdiseError],
        what: str,
        instead: str,
        progress: bool,
    ) -> None:
        self.file, self.path, self.error, self.what = file, path, error, what
        self.by_hand = _by_hand(file, path, instead)
        self.host = urlsplit(file.url).netloc
        self.part = path.with_name(f"{path.name}.part")
        self.note = path.with_name(f"{path.name}.part.json")
        self.total = file.size  # in bytes, None if not known yet
        self.progress = progress

    def run(self) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        print_log(f"downloading {self.what}: {self.file.url} -> {printable(self.path)}", "current")
        console = Console(stderr=True)
        with Progress(*columns, console=console, disable=not self.progress) as bar:
            task = bar.add_task(self.file.name, total=self.total)
            self._until_complete(lambda done: bar.update(task, completed=done, total=self.total))
        self._check()
        os.replace(self.part, self.path)
        self.note.unlink(missing_ok=True)

    def _until_complete(self, show: Callable[[int], None]) -> None:
        failures, restarts, pause = 0, 0, PAUSE
        reached = self._size()
        while True:
            before = self._kept()
            if before and before == self.total and self.file.sha256:
                return  # interrupted between the last byte and the check
            try:
                self._attempt(before, show)
                return
            except _FromTheStart:
                self._forget()
                restarts += 1
                if restarts == ATTEMPTS:
                    raise self._failed("the server reports a different size each time") from None
                continue
            except _Again as failure:
                reason = str(failure)
                failures = 0 if self._size() > reached else failures + 1
                reached = max(reached, self._size())
            if failures >= ATTEMPTS:
                raise self._failed(reason)
            if failures:
                time.sleep(pause)
                pause *= 2
            else:
                pause = PAUSE

    def _failed(self, reason: str) -> OdiseError:
        size = self._size()
        of = f" of {self.total:,}" if self.total else ""
        kept = (
            f" {size:,}{of} bytes are kept as {printable(self.part)}: try again to resume the "
            "download."
            if size
            else ""
        )
        return self.error(
            f"{self.what} could not be downloaded from {self.host} ({reason}).{kept} Check the "
            f"network and the proxy, or {self.by_hand}"
        )

    def _attempt(self, offset: int, show: Callable[[int], None]) -> None:
        """Download the missing bytes.

        Raises:
            _Again: If the connection was lost.
            _FromTheStart: If the partial file cannot be resumed.
        """
        headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            validator = self._read_note().get("validator")
            if validator:
                headers["If-Range"] = validator
        request = urllib.request.Request(self.file.url, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                self._receive(answer, offset, show)
        except urllib.error.HTTPError as failure:
            failure.close()
            self._refused(failure, offset)
        except urllib.error.URLError as failure:
            raise _Again(first_line(failure.reason)) from failure
        except (http.client.HTTPException, ConnectionError, TimeoutError) as failure:
            raise _Again(first_line(failure) or type(failure).__name__) from failure

    def _refused(self, failure: urllib.error.HTTPError, offset: int) -> None:
        reason = f"HTTP {failure.code}, {first_line(failure.reason)}"
        if failure.code == 416 and offset:
            ends_here = failure.headers.get("Content-Range") == f"bytes */{offset}"
            if ends_here and self.total in (None, offset):
                return  # the part is complete, and If-Range matched
            raise _FromTheStart
        if failure.code in _LATER:
            raise _Again(reason) from failure
        causes = {407: "the proxy requires a login", 404: "the file no longer exists"}
        cause = causes.get(failure.code, "the server refused the request")
        raise self.error(
            f"{self.what} could not be downloaded from {self.host} ({reason}: {cause}). Check the "
            f"network and the proxy, or {self.by_hand}"
        ) from failure

    def _receive(
        self, answer: http.client.HTTPResponse, offset: int, show: Callable[[int], None]
    ) -> None:
        resumed = answer.status == 206
        if resumed and _range_start(answer.headers.get("Content-Range", "")) != offset:
            raise _FromTheStart
        offset = offset if resumed else 0  # without support for ranges, the whole file is sent
        length = answer.headers.get("Content-Length", "")
        known = length.isdigit() and not answer.headers.get("Content-Encoding")
        if known:
            self._expect(offset + int(length), resumed)
        elif not answer.chunked and not self.file.sha256 and self.total is None:
            raise self.error(
                f"{self.host} does not report the size of {self.what}, so an incomplete download "
                f"could not be detected: {self.by_hand}"
            )
        chunk = _read(answer)
        if offset == 0:
            self._refuse_page(answer, chunk)
            self._write_note(answer)
        self._refuse_full_disk(offset)
        show(offset)
        with self.part.open("r+b" if resumed else "wb") as stream:
            stream.seek(offset)
            while chunk:
                stream.write(chunk)
                offset += len(chunk)
                if self.total is not None and offset > self.total:
                    self._refuse_length(f"more than {self.total:,}")
                show(offset)
                chunk = _read(answer)
            stream.flush()
            os.fsync(stream.fileno())
        if self.total is not None and offset < self.total:
            raise _Again(f"the connection was lost after {offset:,} of {self.total:,} bytes")

    def _expect(self, total: int, resumed: bool) -> None:
        """Compare the size reported by the server with the known one."""
        if self.file.size is not None and total != self.file.size:
            self._refuse_length(f"{total:,}")
        if resumed and self.total is not None and total != self.total:
            raise _FromTheStart
        self.total = total

    def _refuse_length(self, size: str) -> None:
        self._forget()
        published = f", but the published file has {self.file.size:,}" if self.file.size else ""
        raise self.error(
            f"{self.host} sends {size} bytes for {self.what}{published}: it is a different file "
            f"(nothing was saved). Check the proxy, or {self.by_hand}"
        )

    def _refuse_page(self, answer: http.client.HTTPResponse, chunk: bytes) -> None:
        start = chunk[:200].lstrip().lower()
        if answer.headers.get_content_type() == "text/html" or start.startswith(
            (b"<!doctype html", b"<html")
        ):
            self._forget()
            raise self.error(
                f"{self.host} sent a web page instead of {self.what}, probably from a proxy or a "
                f"login (nothing was saved). Open {self.file.url} in a browser to see the page, "
                f"or {self.by_hand}"
            )

    def _refuse_full_disk(self, offset: int) -> None:
        if self.total is None:
            return
        free = shutil.disk_usage(self.path.parent).free
        if free < self.total - offset:
            raise self.error(
                f"the disk is full: {self.what} needs {self.total - offset:,} more bytes in "
                f"{printable(self.path.parent)}, but only {free:,} are free. Free some space, or "
                "set TORCH_HOME to a folder on another disk"
            )

    def _check(self) -> None:
        digest = _digest(self.part).hexdigest()
        if self.file.sha256 and not digest.startswith(self.file.sha256):
            self._forget()
            raise self.error(
                f"{self.what} from {self.host} has a wrong checksum and was removed: its SHA-256 "
                f"begins with {digest[: len(self.file.sha256)]}, the published one with "
                f"{self.file.sha256}. Try again, or {self.by_hand}"
            )

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _kept(self) -> int:
        """Return the number of bytes to resume from; a part of unknown origin is removed."""
        note = self._read_note()
        size = self._size()
        certain = note.get("validator") or self.file.sha256
        if size and (note.get("url") != self.file.url or not certain):
            self._forget()
            return 0
        if self.total is not None and size > self.total:
            self._forget()
            return 0
        return size

    def _read_note(self) -> dict[str, Any]:
        with suppress(OSError, ValueError, RecursionError):
            content = json.loads(self.note.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                return {k: v for k, v in content.items() if isinstance(v, str)}
        return {}

    def _write_note(self, answer: http.client.HTTPResponse) -> None:
        etag = answer.headers.get("ETag", "")
        weak = etag.startswith("W/")  # weak tags don't guarantee identical bytes
        validator = answer.headers.get("Last-Modified", "") if weak or not etag else etag
        note = dict(url=self.file.url, validator=validator)
        self.note.write_text(json.dumps(note), encoding="utf-8")

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read(_CHUNK)
    except (OSError, http.client.HTTPException) as failure:  # not an OSError of a full disk
        reason = first_line(failure) or type(failure).__name__
        raise _Again(f"the connection was lost: {reason}") from failure


def _range_start(content_range: str) -> int | None:
    """Return the first position in ``bytes 100-199/200``, or None."""
    unit, _, rest = content_range.partition(" ")
    start = rest.partition("-")[0]
    return int(start) if unit == "bytes" and start.isdigit() else None
