"""Progress of a labeling run: images, throughput and time left."""

from __future__ import annotations

import time
from collections.abc import Collection
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from odise_mm.labeling.folder import LabelFolder

_POLL = 2.0
"""Seconds between two looks at the shards of other processes."""
_LINE = 60.0
"""Seconds between two lines if the output is not a terminal."""


class LabelProgress:
    """A progress bar in a terminal, and a line per minute elsewhere, such as in a log of Slurm.

    Images of other processes are counted when their shard is finished.

    Args:
        folder: the output folder.
        mine: shards of this process.
        console: where progress is shown.
        show: whether it is shown.
    """

    def __init__(
        self, folder: LabelFolder, mine: Collection[int], console: Console, show: bool = True
    ) -> None:
        self.folder, self.mine, self.console, self.show = folder, set(mine), console, show
        self.total = sum(folder.counts)
        self.failed = self.own = 0
        self._others = self._at_start = self._finished_elsewhere()
        self._start = self._polled = self._printed = time.monotonic()
        self._bar: Progress | None = None

    def _finished_elsewhere(self) -> int:
        return sum(self.folder.counts[shard] for shard in self.folder.finished() - self.mine)

    def add(self, failed: bool = False) -> None:
        """Count an image of this process."""
        self.own += 1
        self.failed += failed
        self.update()

    def update(self) -> None:
        """Show the progress, also that of other processes."""
        now = time.monotonic()
        if now - self._polled > _POLL:
            self._polled, self._others = now, self._finished_elsewhere()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, speed_and_time=self.describe())
        elif self.show and now - self._printed > _LINE:
            self._printed = now
            self._print()

    @property
    def done(self) -> int:
        """Number of labeled and failed images, with those of earlier runs."""
        return self._others + self.own

    def describe(self) -> str:
        """Return throughput, time left and number of failures."""
        seconds = max(time.monotonic() - self._start, 1e-6)
        rate = (self.done - self._at_start) / seconds
        text = f"{rate:.3g} images/s"
        if rate > 0:
            text += f", {_hours((self.total - self.done) / rate)} left"
        return text + (f", {self.failed:,} failed" if self.failed else "")

    def _print(self) -> None:
        share = 100 * self.done / max(self.total, 1)
        line = f"{self.done:,} of {self.total:,} images ({share:.1f} %), {self.describe()}"
        self.console.print(line, soft_wrap=True, highlight=False)

    def __enter__(self) -> LabelProgress:
        if self.show and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("images"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed_and_time]}", markup=False),
                console=self.console,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                "", total=self.total, completed=self.done, speed_and_time=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.show:
            self._print()


def _hours(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
