"""Notes on finished work, so that work that was ended in any way goes on. Imports no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Any


class Journal:
    """A file of JSON values, one in a line, each on the disk before the next piece of work begins.

    Args:
        path: the file; nothing is made before something is added.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._file: IO[str] | None = None

    def read(self) -> list[Any]:
        """All values; none where there is no file. A line that a kill cut short is dropped.

        Raises:
            OSError: the file is there and cannot be read.
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
        """Write a value, which JSON must be able to hold, behind the others.

        Raises:
            OSError: it cannot be written.
        """
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8")
            if self._file.tell():
                self._file.write("\n")  # closes a line that was cut short
        # ASCII only: parts of file names that are in no encoding become \udcXX
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; a later :meth:`add` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Remove the file, once what it was for is written."""
        self.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
