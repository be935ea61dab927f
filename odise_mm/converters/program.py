"""What the command lines of converters share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from odise_mm.benchmarks.tables import Table, show
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int

INTERRUPTED = 130  # the shell's exit status after Ctrl-C


def converter_parser(
    description: str, data_root: str, splits: Sequence[str] = ("val",), *default: str
) -> argparse.ArgumentParser:
    """The arguments that all converters have; a converter adds its own to the result.

    Args:
        description: the module's docstring.
        data_root: default of the positional argument ``data_root``.
        splits: choices of ``--splits``.
        default: the splits that are prepared when none is asked for; "val" if none are named.
    """
    parser = Parser(description)
    parser.add_argument(
        "data_root",
        metavar="DATA_ROOT",
        nargs="?",
        default=Path(data_root),
        type=Path,
        help=f"folder of the unpacked archive, where outputs go, too (default: {data_root})",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=splits,
        default=list(default) or ["val"],
        metavar="SPLIT",
        help=f"one or several of: {' '.join(splits)} (default: {' '.join(default) or 'val'})",
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=os.cpu_count() or 1,
        help="processes (default: as many as there are cores)",
    )
    parser.add_argument(
        "--verify-only", action="store_true", help="write nothing, only check what was written"
    )
    return parser


@contextmanager
def program() -> Iterator[None]:
    """Around a converter's ``main``: errors and Ctrl-C end it with one line."""
    with one_line_errors():
        try:
            yield
        except KeyboardInterrupt:
            print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
            sys.exit(INTERRUPTED)


@dataclass(frozen=True)
class Row:
    """A line of the table at the end: a file or folder, what it holds, and how many.

    ``expected``: how many there are in the provider's full set, where that is known; another
    count is pointed out below the table.
    """

    path: str | os.PathLike
    what: str
    count: int
    expected: int | None = None


def show_written(title: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
    """The one table at the end of a converter's run, and sentences below it."""
    cells = [[str(row.path), row.what, f"{row.count:,}"] for row in rows]
    odd = [
        f"{row.path}: {row.count:,} {row.what}; the full set has {row.expected:,}"
        for row in rows
        if row.expected not in (None, row.count)
    ]
    table = Table(title, ["file or folder", "holds", "count"], cells, [*odd, *notes])
    show([table], {}, "table")
