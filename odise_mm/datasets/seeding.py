"""Random numbers of a dataset's items: an index says which ones its pipeline sees."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from odise_mm.registry import DATASETS, TRANSFORMS


class SeededIndex(int):
    """An index of a dataset that says which random numbers its pipeline sees: ``seed``."""

    seed: int

    def __new__(cls, index: int, seed: int) -> SeededIndex:
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __getnewargs__(self) -> tuple[int, int]:  # pickled on the way to worker processes
        return int(self), self.seed


@contextmanager
def random_numbers_of(seed: int) -> Iterator[None]:
    """``random``, ``numpy.random`` and torch's on the CPU seeded, and afterwards as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs, too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class TakesSeeds:
    """Mixin of datasets: a :class:`SeededIndex` decides all random numbers of its item."""

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, SeededIndex):
            return super().__getitem__(index)
        with random_numbers_of(index.seed):
            return super().__getitem__(int(index))


class SeededItems(TakesSeeds):
    """:class:`TakesSeeds` for datasets with a pipeline.

    Pipelines are built by our registry, so that our transforms need no prefix anywhere.
    """

    def __init__(self, *args: Any, pipeline: Sequence[dict | Callable] = (), **kwargs: Any) -> None:
        steps = [TRANSFORMS.build(step) if isinstance(step, dict) else step for step in pipeline]
        super().__init__(*args, pipeline=steps, **kwargs)


class _SeededStranger:
    """A dataset of any class whose items take seeds; in everything else it is that dataset."""

    def __init__(self, dataset: Any) -> None:
        self.__dict__["_dataset"] = dataset

    def __getattr__(self, name: str) -> Any:
        if name == "_dataset":  # asked for before unpickling has put it there
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._dataset, name, value)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, SeededIndex):
            return self._dataset[index]
        with random_numbers_of(index.seed):
            return self._dataset[index]


def build_seeded(dataset: dict[str, Any]) -> Any:
    """A dataset of a config, loaded; whatever its class, its items take seeds.

    Raises:
        DatasetError: see the class.
    """
    built = DATASETS.build(dataset)
    if hasattr(built, "full_init"):
        built.full_init()
    return built if isinstance(built, TakesSeeds) else _SeededStranger(built)
