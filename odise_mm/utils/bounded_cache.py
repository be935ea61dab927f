"""What was made for the keys that were used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

from odise_mm.utils.locks import Lock

Value = TypeVar("Value")


class BoundedCache(Generic[Value]):
    """A few values by key; threads may share it. Copied or pickled it is empty.

    Args:
        entries: values that are kept; the one that was not used for longest goes first.
        total_size: of all values together, in the unit of :meth:`put`'s ``size``; what is larger
            alone is not kept.
    """

    def __init__(self, entries: int, total_size: int) -> None:
        self.entries = entries
        self.total_size = total_size
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> Value | None:
        """The value, or None."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Hashable, value: Value, size: int) -> None:
        """Keep a value of this size, if there is room for it at all."""
        with self._lock:
            self._values.pop(key, None)
            if size > self.total_size:
                return
            self._values[key] = (value, size)
            while len(self._values) > self.entries or self._used() > self.total_size:
                self._values.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._values.clear()

    def _used(self) -> int:
        return sum(size for _, size in self._values.values())

    def __reduce__(self) -> tuple[Any, tuple[int, int]]:
        return type(self), (self.entries, self.total_size)
