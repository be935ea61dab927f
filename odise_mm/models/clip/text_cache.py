"""Text embeddings that are kept between runs, in an SQLite file."""

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
_PATIENCE = 5  # seconds that another process may hold the file
_CHECKSUM_BYTES = 4
# Beside SQLite's own: folders that cannot be made, paths and texts that are in no encoding.
_FAULTS = (sqlite3.Error, OSError, ValueError, OverflowError)

Result = TypeVar("Result")


class TextCache:
    """Embeddings by model and text. At any fault it warns once and steps aside; no run ends by it.

    Each access opens the file anew, so threads and processes may share it. A value that is not what
    was written (of another length or type, damaged) counts as absent. A database of something else
    is left alone.

    Args:
        file: made with its folder where missing.
        model: key of the model whose embeddings are meant; others may be in the same file.
        width: numbers of an embedding.
    """

    def __init__(self, file: str | os.PathLike[str], model: str, width: int) -> None:
        self.file = Path(file).expanduser()
        self.model = model
        self.width = width
        self.working = True
        """False once it has stepped aside."""

    def get(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """What is known of the texts: (``width``,) float32 each."""
        return self._attempt(lambda: self._read(texts), {})

    def put(self, embeddings: Mapping[str, np.ndarray]) -> None:
        """Remember embeddings, (``width``,) float32 each."""
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

    def _attempt(self, access: Callable[[], Result], otherwise: Result) -> Result:
        if not self.working:
            return otherwise
        try:
            return access()
        except _FAULTS as error:
            self.working = False
            reason = printable(error, limit=200) or type(error).__name__
            print_log(
                f"text cache {printable(self.file)}: {reason}. The run goes on without it, and "
                "names are embedded anew; remove the file, or name another as `cache_file` of the "
                "TextEncoder",
                logger="current",
                level=30,
            )
            return otherwise

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The file with its table, within a transaction that ends with the block."""
        if self.file.exists() and not self.file.is_file():
            raise OSError("it is no file")  # SQLite could wait for ever
        if self.file.exists() and self.file.stat().st_size == 1:  # SQLite takes it for an empty one
            raise sqlite3.DatabaseError("file is not a database")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self.file, timeout=_PATIENCE, isolation_level="IMMEDIATE")
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
        if columns != _COLUMNS or ("embeddings", "table") not in entries:  # a view may be endless
            raise sqlite3.DatabaseError("it is a database of something else, which is left alone")


def _pack(value: np.ndarray) -> bytes:
    content = np.ascontiguousarray(value, "<f4").tobytes()
    return content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little")


def _has_encoding(text: str) -> bool:
    """Whether SQLite can store a text: halves of surrogate pairs are in no encoding."""
    return text.isascii() or text.encode("utf-8", "replace").decode("utf-8") == text
