"""Progress bars of concurrent calls on one console."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LONG_LIST = 4
"""Number of images or windows from which a progress bar is shown."""


class SharedProgress:
    """Progress bars of concurrent calls, one below the other.

    A console can have only one live display, so all bars share it. It starts with the first bar
    and stops with the last.

    Args:
        console: where the bars are drawn.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._running = 0

    @contextmanager
    def bar(
        self, description: str, total: int | None, show: bool = True
    ) -> Iterator[Callable[[], None]]:
        """Show a progress bar inside the context.

        Args:
            description: text in front of the bar.
            total: number of steps; None if it is unknown.
            show: False shows nothing.

        Yields:
            Function that advances the bar by one step.
        """
        if not show:
            yield lambda: None
            return
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
