"""Process many files in parallel, and continue after an interruption.

A converter consists of a list of :class:`Item` and a function ``work(item)`` that reads one
original file, writes one output and returns the facts that the dataset's JSON file needs::

    with program():
        args = converter_parser(__doc__, "data/thing", ["train", "val"]).parse_args()
        facts = convert_all(items, work, "thing val", args.workers, journal=out / "val.journal")
        finish(out / "val.json", ..., out / "val.journal")
        show_written("thing", [Row("val.json", "images", len(facts))])

Files are written under a temporary name and then renamed, so that existing files are complete even
after a crash. This module does not import torch, so that worker processes start in a fraction of a
second.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from odise_mm.errors import DatasetError, OdiseError
from odise_mm.utils.files import write_json
from odise_mm.utils.journal import Journal

_PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Item:
    """File to process.

    Attributes:
        source: The original file. Errors name it, and its path is the key in the journal.
        output: The file that ``work`` writes, if any.
        data: Additional input of ``work``; must be picklable.
    """

    source: Path
    output: Path | None = None
    data: Any = None


def convert_all(
    items: Sequence[Item],
    work: Callable[[Item], Any],
    description: str,
    workers: int = 1,
    *,
    journal: Path | None = None,
) -> list[Any]:
    """Run ``work(item)`` for all items in parallel, with a progress bar.

    Items that an earlier run finished are skipped: their output exists and, with a journal, their
    result is in the journal. The journal has one JSON line per finished item. Remove it (see
    :func:`finish`) after writing the file that is made from the results.

    Args:
        items: The files to process.
        work: Function to run. With several workers it must be picklable; with a journal, its
            results must be JSON values.
        description: Label of the progress bar.
        workers: Number of processes; 1 runs in the current process.
        journal: File that keeps the results for the next run. Required if the results are used,
            because without a journal the result of a skipped item is None.

    Returns:
        Results in the order of ``items``; None for items skipped without a journal.

    Raises:
        DatasetError: An item failed; the message names the source of the first one. Items finished
            before are kept.
    """
    log = None if journal is None else Journal(journal)
    known = _finished(log)
    results: list[Any] = [None] * len(items)
    todo = []
    for index, item in enumerate(items):
        done = journal is None or str(item.source) in known
        if done and (item.output is not None or journal is not None) and is_complete(item.output):
            results[index] = known.get(str(item.source))
        else:
            todo.append(index)
    with _progress() as progress, log or nullcontext():
        bar = progress.add_task(description, total=len(items), completed=len(items) - len(todo))
        pending = [items[index] for index in todo]
        with _mapped(partial(_guarded, work), pending, workers) as outcomes:
            for index, outcome in zip(todo, outcomes, strict=True):
                if isinstance(outcome, OdiseError):
                    raise outcome
                results[index] = outcome
                if log is not None:
                    log.add([str(items[index].source), outcome])
                progress.advance(bar)
    return results


def finish(path: Path, content: Any, journal: Path) -> None:
    """Write the JSON file that was made from the journal's results, then remove the journal."""
    write_json(path, content)
    Journal(journal).remove()


def _guarded(work: Callable[[Item], Any], item: Item) -> Any:
    """Run ``work(item)``, and return errors that the user can fix, with the file's name."""
    try:
        return work(item)
    except (OdiseError, OSError) as error:
        text = str(error)
        return DatasetError(text if item.source.stem in text else f"{item.source}: {text}")


def is_complete(output: Path | None) -> bool:
    """Return whether an output is missing no data; for PNG files, only the end is read."""
    if output is None:
        return True
    try:
        with open(output, "rb") as file:
            if output.suffix != ".png":
                return bool(file.read(1))
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False


@contextmanager
def _mapped(function: Callable, items: Sequence, workers: int) -> Iterator[Iterator]:
    workers = min(workers, len(items))
    if workers <= 1:
        yield map(function, items)
        return
    # "spawn", because forking with the progress bar's thread, or with torch in tests, is not safe
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        chunk = max(1, min(8, len(items) // (4 * workers)))
        yield pool.map(function, items, chunksize=chunk)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Ignore Ctrl-C, which the parent handles, and exit when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar; the block gets a function to call once per step."""
    with _progress() as progress:
        bar = progress.add_task(description, total=total)
        yield lambda: progress.advance(bar)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _finished(journal: Journal | None) -> dict[str, Any]:
    """Return the results of the items that an earlier run finished, by source."""
    lines = [] if journal is None else journal.read()
    return dict(line for line in lines if isinstance(line, list) and len(line) == 2)
