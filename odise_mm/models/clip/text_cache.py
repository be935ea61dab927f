"""Cache of text embeddings in an SQLite file, which is kept between runs."""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from mmengine.logging import print_log

from odise_mm.utils.display import printable

_COLUMNS = ["model", "text", "value"]
_LOCK_TIMEOUT = 5  # seconds to wait while another process has locked the file
_CHECKSUM_BYTES = 4
# Besides SQLite's errors: folders that cannot be created, paths and texts that cannot be encoded.
_CACHE_ERRORS = (sqlite3.Error, OSError, ValueError, OverflowError)

Result = TypeVar("Result")


class TextCache:
    """Cache of text embeddings in an SQLite file, with model and text as key.

    Errors never end a run: after the first one, the cache shows a warning and is no longer used.

    Threads and processes can share a file, because each access opens it again. Damaged values, and
    values of another length or type, are treated as missing. Other databases are not changed.

    Args:
        file: the SQLite file. It and its folder are created if necessary.
        model: key of the model that computes the embeddings. A file can contain several models.
        width: width of an embedding.
    """

    def __init__(self, file: str | os.PathLike[str], model: str, width: int) -> None:
        self.file = Path(file).expanduser()
        self.model = model
        self.width = width
        self.working = True
        """False after an error: the cache is no longer used."""

    def get(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the cached embeddings of the texts, (``width``,) float32 each."""
        return self._attempt(lambda: self._read(texts), {})

    def put(self, embeddings: Mapping[str, np.ndarray]) -> None:
        """Store embeddings, (``width``,) float32 each."""
        self._attempt(lambda: self._write(embeddings), None)

    def _read(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        query = "SELECT value FROM embeddings WHERE model = ? AND text = ?"
        found = {}
        with self._open() as database:
            for text in filter(_has_encoding, texts):
                row = database.execute(query, (self.model, text)).fetchone()
                value = None if row is None else self._unpack(row[0])
                if value is not None:
                    found[text] = value
        return found

    def _write(self, embeddings: Mapping[str, np.ndarray]) -> None:
        rows = [
            (self.model, text, _pack(value))
            for text, value in embeddings.items()
            if _has_encoding(text)
        ]
        with self._open() as database:
            database.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?)", rows)

    def _unpack(self, blob: object) -> np.ndarray | None:
        if not isinstance(blob, bytes) or len(blob) != 4 * self.width + _CHECKSUM_BYTES:
            return None
        content, checksum = blob[:-_CHECKSUM_BYTES], blob[-_CHECKSUM_BYTES:]
        return np.frombuffer(content, "<f4").copy() if checksum == _checksum(content) else None

    def _attempt(self, access: Callable[[], Result], default: Result) -> Result:
        if not self.working:
            return default
        try:
            return access()
        except _CACHE_ERRORS as error:
            self.working = False
            reason = printable(error, limit=200) or type(error).__name__
            print_log(
                f"text cache {printable(self.file)}: {reason}. Continuing without it: names are "
                "embedded again; delete the file, or set `cache_file` of the TextEncoder to "
                "another file",
                logger="current",
                level=30,
            )
            return default

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open the file in a transaction that is committed at the end of the block."""
        if self.file.exists() and not self.file.is_file():
            raise OSError("not a regular file")  # SQLite could wait forever
        if self.file.exists() and self.file.stat().st_size == 1:  # empty to SQLite
            raise sqlite3.DatabaseError("file is not a database")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self.file, timeout=_LOCK_TIMEOUT, isolation_level="IMMEDIATE")
        try:
            self._prepare(database)
            with database:
                yield database
        finally:
            database.close()

    def _prepare(self, database: sqlite3.Connection) -> None:
        entries = list(database.execute("SELECT name, type FROM sqlite_master"))
        if not entries:
            database.execute(
                "CREATE TABLE IF NOT EXISTS embeddings"
                " (model TEXT, text TEXT, value BLOB, PRIMARY KEY (model, text))"
            )
            return
        columns = [row[1] for row in database.execute("PRAGMA table_info(embeddings)")]
        if (
            columns != _COLUMNS or ("embeddings", "table") not in entries
        ):  # a view could be infinite
            raise sqlite3.DatabaseError("the file is a database of something else")


def _pack(value: np.ndarray) -> bytes:
    content = np.ascontiguousarray(value, "<f4").tobytes()
    return content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little")


def _has_encoding(text: str) -> bool:
    """Return whether SQLite can store a text; lone surrogates cannot be encoded."""
    return text.isascii() or text.encode("utf-8", "replace").decode("utf-8") == text
