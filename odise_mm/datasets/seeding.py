"""Seeded dataset items: an index carries the seed of its item's random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from odise_mm.registry import DATASETS, TRANSFORMS


class SeededIndex(int):
    """Index of a dataset item that also carries the seed for the item's random numbers."""

    seed: int

    def __new__(cls, index: int, seed: int) -> SeededIndex:
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __getnewargs__(self) -> tuple[int, int]:  # worker processes get it pickled
        return int(self), self.seed


@contextmanager
def random_numbers_of(seed: int) -> Iterator[None]:
    """Seed ``random``, ``numpy.random`` and torch on the CPU; restore their states at the end."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed also seeds GPUs
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class TakesSeeds:
    """Mixin for datasets: a :class:`SeededIndex` determines all random numbers of its item."""

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, SeededIndex):
            return super().__getitem__(index)
        with random_numbers_of(index.seed):
            return super().__getitem__(int(index))


class SeededItems(TakesSeeds):
    """:class:`TakesSeeds` for datasets with a pipeline.

    This package's registry builds the pipeline, so its transforms need no prefix in configs.
    """

    def __init__(self, *args: Any, pipeline: Sequence[dict | Callable] = (), **kwargs: Any) -> None:
        steps = [TRANSFORMS.build(step) if isinstance(step, dict) else step for step in pipeline]
        super().__init__(*args, pipeline=steps, **kwargs)


class _SeededStranger:
    """Proxy of a dataset of any class that adds seeded items."""

    def __init__(self, dataset: Any) -> None:
        self.__dict__["_dataset"] = dataset

    def __getattr__(self, name: str) -> Any:
        if name == "_dataset":  # not there yet while unpickling
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
    """Build and load a dataset; its items accept seeds, whatever its class.

    Args:
        dataset: config of the dataset.

    Raises:
        DatasetError: see the dataset's class.
    """
    built = DATASETS.build(dataset)
    if hasattr(built, "full_init"):
        built.full_init()
    return built if isinstance(built, TakesSeeds) else _SeededStranger(built)
