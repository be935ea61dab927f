"""The bounded LRU cache."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

from odise_mm.utils.bounded_cache import BoundedCache


def filled(entries: int, total_size: int, **sizes: int) -> BoundedCache[str]:
    cache: BoundedCache[str] = BoundedCache(entries, total_size)
    for key, size in sizes.items():
        cache.put(key, key.upper(), size)
    return cache


def kept(cache: BoundedCache[str], keys: str) -> str:
    return "".join(key for key in keys if cache.get(key) == key.upper())


def test_least_recently_used_value_is_evicted() -> None:
    cache = filled(3, 100, a=1, b=1, c=1)
    cache.get("a")
    cache.put("d", "D", 1)
    assert kept(cache, "abcd") == "acd" and len(cache) == 3


def test_total_size_is_bounded() -> None:
    cache = filled(9, 10, a=4, b=4)
    cache.put("c", "C", 5)
    assert kept(cache, "abc") == "bc"
    cache.put("d", "D", 11)  # too large, does not evict the others
    assert kept(cache, "abcd") == "bc"
    cache.put("b", "B", 11)
    assert kept(cache, "abcd") == "c"
    cache.clear()
    assert len(cache) == 0 and cache.get("c") is None


def test_copies_are_empty() -> None:
    cache = filled(2, 5, a=1)
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert len(other) == 0 and (other.entries, other.total_size) == (2, 5)
    assert kept(cache, "a") == "a"


def test_threads_can_share_a_cache() -> None:
    cache: BoundedCache[int] = BoundedCache(5, 50)

    def use(number: int) -> bool:
        key = number % 9
        found = cache.get(key)
        cache.put(key, key, 10)
        return found is None or found == key

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(2000)))
    assert len(cache) == 5
