"""Which files of a dataset's folder were written by converters, and may be replaced."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from odise_mm.converters.files import read_json
from odise_mm.errors import DatasetError
from odise_mm.utils.display import printable
from odise_mm.utils.files import write_json

MADE = ".odise_mm_made.json"
"""File in the folder of a dataset: names of what was written there by programs of ours."""


def claim(root: Path, outputs: Sequence[Path], journals: Iterable[Path] = ()) -> None:
    """Make sure that nothing is replaced that a program of ours has not written.

    What ours have written stands in a file of the folder, :data:`MADE`. A journal that an
    interrupted run has left says the same.

    Args:
        root: the folder of the dataset.
        outputs: files and folders below it that will be written.
        journals: those of the work that writes them.

    Raises:
        DatasetError: one of them is there and somebody else's.
    """
    note = root / MADE
    known = set(_names_made(note))
    names = {os.path.relpath(path, root): path for path in outputs}
    if not any(journal.is_file() for journal in journals):
        for name, path in names.items():
            if name not in known and _holds_something(path):
                raise DatasetError(
                    f"{printable(path)}: is there already, and was not written by this program, "
                    "which would replace it: move it away, or name another folder"
                )
    if not names.keys() <= known:
        write_json(note, sorted(known | names.keys()))


def _names_made(note: Path) -> list[str]:
    if not note.is_file():
        return []
    names = read_json(note)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DatasetError(
            f"{printable(note)}: not a list of names; remove it, and what this program is to write"
        )
    return names


def _holds_something(path: Path) -> bool:
    if path.is_dir():
        return next(os.scandir(path), None) is not None
    return path.exists() or path.is_symlink()
