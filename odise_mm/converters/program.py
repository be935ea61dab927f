"""Command line and output that all converters share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from odise_mm.benchmarks.tables import Table, show
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int
from odise_mm.utils.files import FolderLock

INTERRUPTED = 130  # the shell's exit status after Ctrl-C


def converter_parser(
    description: str, data_root: str, splits: Sequence[str] = ("val",), *default: str
) -> argparse.ArgumentParser:
    """Return a parser with the arguments that all converters share.

    Args:
        description: Docstring of the converter's module.
        data_root: Default of the positional argument ``data_root``.
        splits: Choices of ``--splits``.
        default: Default of ``--splits``; "val" if empty.
    """
    parser = Parser(description)
    parser.add_argument(
        "data_root",
        metavar="DATA_ROOT",
        nargs="?",
        default=Path(data_root),
        type=Path,
        help=f"folder of the unpacked archive; outputs are written there (default: {data_root})",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=splits,
        default=list(default) or ["val"],
        metavar="SPLIT",
        help=f"one or more of: {' '.join(splits)} (default: {' '.join(default) or 'val'})",
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=os.cpu_count() or 1,
        help="number of processes (default: number of CPU cores)",
    )
    parser.add_argument(
        "--verify-only",
        action="store_true",
        help="only check the files of an earlier run; write nothing",
    )
    return parser


@contextmanager
def program() -> Iterator[None]:
    """Wrap a converter's ``main`` so that errors and Ctrl-C end it with one line."""
    with one_line_errors():
        try:
            yield
        except KeyboardInterrupt:
            print("interrupted; run the same command again to continue", file=sys.stderr)
            sys.exit(INTERRUPTED)


def alone_in(root: Path, verify_only: bool = False) -> AbstractContextManager:
    """Return a context in which no other converter writes to the folder of a dataset.

    Args:
        root: The folder. If it is missing, the program ends with an error of its own.
        verify_only: Whether nothing is written.

    Raises:
        OutputError: Another program is writing there; the message names it.
    """
    if verify_only or not root.is_dir():
        return nullcontext()
    return FolderLock(root, "preparing a dataset")


@dataclass(frozen=True)
class Row:
    """Row of the final table.

    Attributes:
        path: File or folder.
        what: What is counted in it.
        count: The count.
        expected: Count in the provider's complete dataset, if known. A different count is noted
            below the table.
    """

    path: str | os.PathLike
    what: str
    count: int
    expected: int | None = None


def show_written(title: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
    """Print the final table of a converter, with notes below it."""
    cells = [[str(row.path), row.what, f"{row.count:,}"] for row in rows]
    differences = [
        f"{row.path}: {row.count:,} {row.what}; the complete dataset has {row.expected:,}"
        for row in rows
        if row.expected not in (None, row.count)
    ]
    table = Table(title, ["file or folder", "contents", "count"], cells, [*differences, *notes])
    show([table], {}, "table")
