"""A journal of finished work, with which an interrupted run can continue. Does not import torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Any


class Journal:
    """A file with one JSON value per line, flushed after every value.

    Args:
        path: Path of the file, which is created when the first value is added.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._file: IO[str] | None = None

    def read(self) -> list[Any]:
        """Return all values; an empty list if there is no file. Truncated lines are skipped.

        Raises:
            OSError: If the file exists but cannot be read.
        """
        if not self.path.is_file():
            return []
        found = []
        with open(self.path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    found.append(json.loads(line))
                except (ValueError, RecursionError):
                    continue
        return found

    def add(self, value: Any) -> None:
        """Append a JSON-serializable value.

        Raises:
            OSError: If it cannot be written.
        """
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8")
            if self._file.tell():
                self._file.write("\n")  # ends a truncated line
        # ASCII only: undecodable bytes of file names become \udcXX
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; a later :meth:`add` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Close and remove the file, once the final results are written."""
        self.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
