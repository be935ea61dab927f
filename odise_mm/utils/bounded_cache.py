"""A bounded, thread-safe cache that evicts the least recently used values."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

from odise_mm.utils.locks import Lock

Value = TypeVar("Value")


class BoundedCache(Generic[Value]):
    """Thread-safe LRU cache with bounds on the number and the total size of values.

    Copies and pickles are empty.

    Args:
        entries: Maximum number of values. The least recently used one is evicted first.
        total_size: Maximum total size of the values, in the unit of ``size`` in :meth:`put`. Values
            that are larger are not stored.
    """

    def __init__(self, entries: int, total_size: int) -> None:
        self.entries = entries
        self.total_size = total_size
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> Value | None:
        """Return the value of a key, or None."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Hashable, value: Value, size: int) -> None:
        """Store a value, unless it is larger than the total size of the cache."""
        with self._lock:
            self._values.pop(key, None)
            if size > self.total_size:
                return
            self._values[key] = (value, size)
            while len(self._values) > self.entries or self._used() > self.total_size:
                self._values.popitem(last=False)

    def clear(self) -> None:
        """Remove all values."""
        with self._lock:
            self._values.clear()

    def _used(self) -> int:
        return sum(size for _, size in self._values.values())

    def __reduce__(self) -> tuple[Any, tuple[int, int]]:
        return type(self), (self.entries, self.total_size)
