"""Locks that the parts of a model may hold."""

from __future__ import annotations

import threading
from types import TracebackType


class Lock:
    """A re-entrant lock that can be copied and pickled along with the module that holds it.

    Models are copied (averaged weights) and sent to other processes; a lock of ``threading`` would
    forbid both. The copy has a lock of its own, which nobody holds.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> Lock:
        self._lock.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return type(self), ()
