"""One progress bar per console, however many calls run at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class SharedProgress:
    """Bars of calls that run at the same time, one below the other.

    A console can have one live display only, so all share it: it begins with the first bar and
    ends with the last.

    Args:
        console: where the bars are drawn.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._running = 0

    @contextmanager
    def bar(self, description: str, total: int | None) -> Iterator[Callable[[], None]]:
        """Show a bar; what is given advances it by one.

        Args:
            description: the text before it.
            total: steps that there will be; None: not known.
        """
        with self._lock:
            if self._progress is None:
                self._progress = self._start()
            self._running += 1
            progress = self._progress
        task = progress.add_task(description, total=total)
        try:
            yield lambda: progress.advance(task)
        finally:
            progress.stop_task(task)
            with self._lock:
                self._running -= 1
                if self._running == 0:
                    self._progress = None
                    progress.stop()

    def _start(self) -> Progress:
        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )
        progress.start()
        return progress
