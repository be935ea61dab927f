"""Work on many files, over processes, that goes on where it was stopped.

A converter is a list of :class:`Item` and a function ``work(item)`` that reads one raw file,
writes one output and returns what the dataset's JSON file needs of it::

    with program():
        args = converter_parser(__doc__, "data/thing", ["train", "val"]).parse_args()
        facts = convert_all(items, work, "thing val", args.workers, journal=out / "val.journal")
        write_json(out / "val.json", ...)   # and then: remove the journal
        show_written("thing", [Row("val.json", "images", len(facts))])

Files are written under a temporary name and renamed, so that a file that is there is complete,
however the program ended. Imports no torch: worker processes start in a fraction of a second.
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
    """One file's work.

    Attributes:
        source: the raw file; errors name it, the journal knows it by its path.
        output: the file that ``work`` writes, if it writes one.
        data: whatever else ``work`` needs; anything that can be pickled.
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
    """Run ``work(item)`` for all items, over processes, with a progress bar.

    Items that were done by an earlier run are skipped: those whose output is there and, with a
    journal, whose result is in it. The journal holds one JSON line per finished item; remove it
    (:func:`finish`) once the file that sums the results up is written.

    Args:
        items: what to do.
        work: a function of a module (it travels to other processes); with a journal, its results
            must be JSON values.
        description: in front of the bar.
        workers: processes; 1 works in this one.
        journal: where the results are kept for the next run; needed if they are used at all,
            because an item that is skipped without a journal has the result None.

    Returns:
        Results in the order of ``items``; None for skipped ones without a journal.

    Raises:
        DatasetError: an item failed. The message names the first one's source; whatever was
            finished before stays finished.
    """
    notes = None if journal is None else Journal(journal)
    known = _finished(notes)
    results: list[Any] = [None] * len(items)
    todo = []
    for index, item in enumerate(items):
        done = journal is None or str(item.source) in known
        if done and (item.output is not None or journal is not None) and is_complete(item.output):
            results[index] = known.get(str(item.source))
        else:
            todo.append(index)
    with _progress() as progress, notes or nullcontext():
        bar = progress.add_task(description, total=len(items), completed=len(items) - len(todo))
        pending = [items[index] for index in todo]
        with _mapped(partial(_guarded, work), pending, workers) as outcomes:
            for index, outcome in zip(todo, outcomes, strict=True):
                if isinstance(outcome, OdiseError):
                    raise outcome
                results[index] = outcome
                if notes is not None:
                    notes.add([str(items[index].source), outcome])
                progress.advance(bar)
    return results


def finish(path: Path, content: Any, journal: Path) -> None:
    """Write the JSON file that the journal's results went into, then remove the journal."""
    write_json(path, content)
    Journal(journal).remove()


def _guarded(work: Callable[[Item], Any], item: Item) -> Any:
    """``work(item)``; what a user can set right comes back as an error that names the file."""
    try:
        return work(item)
    except (OdiseError, OSError) as error:
        text = str(error)
        return DatasetError(text if item.source.stem in text else f"{item.source}: {text}")


def is_complete(output: Path | None) -> bool:
    """Whether an output needs no work: written to its end (cheap for PNG files)."""
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
    # "spawn": neither the bar's thread nor a test's torch is forked
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        chunk = max(1, min(8, len(items) // (4 * workers)))
        yield pool.map(function, items, chunksize=chunk)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Ctrl-C is the parent's business, and a worker does not outlive a killed parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar for a loop in this process; the block calls what it gets once per step."""
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
    """Source -> result of the items that an earlier run finished."""
    lines = [] if journal is None else journal.read()
    return dict(line for line in lines if isinstance(line, list) and len(line) == 2)
