"""Random numbers of a dataset's items: an index says which ones its pipeline sees."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from odise_mm.registry import TRANSFORMS


class SeededIndex(int):
    """An index of a data set that says which random numbers its pipeline sees: ``seed``."""

    seed: int

    def __new__(cls, index: int, seed: int) -> SeededIndex:
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __getnewargs__(self) -> tuple[int, int]:  # pickled on the way to worker processes
        return int(self), self.seed


@contextmanager
def random_numbers_of(seed: int) -> Iterator[None]:
    """``random`` and ``numpy.random`` seeded, and afterwards as they were."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


class SeededItems:
    """Mixin of data sets: a :class:`SeededIndex` decides all random numbers of its item.

    Pipelines are built by our registry, so that our transforms need no prefix anywhere.
    """

    def __init__(self, *args: Any, pipeline: Sequence[dict | Callable] = (), **kwargs: Any) -> None:
        steps = [TRANSFORMS.build(step) if isinstance(step, dict) else step for step in pipeline]
        super().__init__(*args, pipeline=steps, **kwargs)

    def __getitem__(self, index: int) -> dict:
        if not isinstance(index, SeededIndex):
            return super().__getitem__(index)
        with random_numbers_of(index.seed):
            return super().__getitem__(int(index))
