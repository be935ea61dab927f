"""Record of the files that converters wrote, and therefore may replace."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from odise_mm.converters.files import read_json
from odise_mm.errors import DatasetError
from odise_mm.utils.display import printable
from odise_mm.utils.files import write_json

MADE = ".odise_mm_made.json"
"""Name of the record in a dataset's folder: a list of the files and folders that were written."""


def claim(root: Path, outputs: Sequence[Path], journals: Iterable[Path] = ()) -> None:
    """Make sure that only files written by converters are replaced, and record the outputs.

    The record is the file :data:`MADE` in the dataset's folder. The journal of an interrupted run
    also proves that a converter wrote the outputs.

    Args:
        root: Folder of the dataset.
        outputs: Files and folders below it that will be written.
        journals: Journals of the work that writes them.

    Raises:
        DatasetError: An output exists that no converter wrote, or the record is invalid.
    """
    record = root / MADE
    known = set(_recorded_names(record))
    names = {os.path.relpath(path, root): path for path in outputs}
    if not any(journal.is_file() for journal in journals):
        for name, path in names.items():
            if name not in known and _exists(path):
                raise DatasetError(
                    f"{printable(path)}: already exists and was not written by this program, "
                    "which would replace it; move it, or use another folder"
                )
    if not names.keys() <= known:
        write_json(record, sorted(known | names.keys()))


def _recorded_names(record: Path) -> list[str]:
    if not record.is_file():
        return []
    names = read_json(record)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DatasetError(
            f"{printable(record)}: not a list of names; remove it together with this program's "
            "outputs"
        )
    return names


def _exists(path: Path) -> bool:
    if path.is_dir():
        return next(os.scandir(path), None) is not None
    return path.exists() or path.is_symlink()
