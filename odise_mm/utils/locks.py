"""A lock that modules of a model can contain."""

from __future__ import annotations

import threading
from types import TracebackType


class Lock:
    """A reentrant lock that can be copied and pickled together with its module.

    Models are copied (for averaged weights) and sent to other processes, which locks of
    ``threading`` do not support. The copy gets a new, unlocked lock.
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
