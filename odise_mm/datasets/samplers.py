"""Sampler that makes the order and the augmentation of training images reproducible."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from odise_mm.datasets.seeding import SeededIndex
from odise_mm.registry import DATA_SAMPLERS
from odise_mm.utils.settings import check_flag, check_whole


@DATA_SAMPLERS.register_module()
class SeededSampler(Sampler):
    """Infinite stream of shuffled epochs that depends only on the seed and the position.

    Process r of w takes the positions r, r + w, r + 2 w ... Iteration i of w processes with b
    images each therefore covers the positions from i w b to (i + 1) w b, the same as one process
    with w b images. Each item carries a seed derived from (seed, epoch, index), so its augmentation
    depends neither on worker processes nor on the images before it.

    Use it for iteration-based training; the stream never ends.

    Args:
        dataset: dataset to sample from.
        seed: seed of the stream; by default the first process draws one.
        shuffle: whether to shuffle each epoch. If False, epochs keep the order of the dataset.
    """

    def __init__(self, dataset: Sized, seed: int | None = None, shuffle: bool = True) -> None:
        if seed is not None:
            check_whole("seed", seed, least=-(2**63))
        check_flag("shuffle", shuffle)
        self.size = len(dataset)
        self.seed = int(sync_random_seed() if seed is None else seed)
        self.shuffle = shuffle
        self.rank, self.world_size = get_dist_info()
        self.position = 0

    def start_at(self, position: int) -> None:
        """Set the position at which the stream starts. This loads no data.

        Args:
            position: number of images that all processes have seen together: completed iterations
                x images per process x processes.

        Raises:
            ValueError: ``position`` is negative.
        """
        if position < 0:
            raise ValueError(f"the position in the stream must be at least 0, not {position}")
        self.position = position

    def __iter__(self) -> Iterator[SeededIndex]:
        position, order, of_epoch = self.position + self.rank, None, -1
        while True:
            epoch, place = divmod(position, self.size)
            if epoch != of_epoch:
                order, of_epoch = self._order(epoch), epoch
            index = int(order[place])
            yield SeededIndex(index, item_seed(self.seed, epoch, index))
            position += self.world_size

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.size)
        # NumPy guarantees that RandomState's numbers never change; torch.randperm's may.
        return np.random.RandomState([self.seed % 2**32, epoch]).permutation(self.size)

    def __len__(self) -> int:
        """Return the number of images per process in one epoch."""
        return -(-self.size // self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the position determines the epoch. mmengine's loops call this method."""


def item_seed(seed: int, epoch: int, index: int) -> int:
    """Return the seed, in [0, 2^32), of one image in one epoch."""
    entropy = np.random.SeedSequence([seed % 2**32, epoch, index])
    return int(entropy.generate_state(1)[0])
