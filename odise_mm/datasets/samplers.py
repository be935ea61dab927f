"""Which images training sees, in which order, with which random numbers."""

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
    """An endless stream of shuffled epochs, a function of the seed and the position alone.

    Process r of w takes the positions r, r + w, r + 2 w ... So iteration i of w processes with b
    images each holds the positions from i w b to (i + 1) w b, as that of one process with w b
    images does. An item carries its own seed, that of (seed, epoch, index), so that its
    augmentation depends neither on worker processes nor on the images before it.

    Made for training by iterations: there is no last item.

    Args:
        dataset: what is sampled from.
        seed: by default one drawn by the first process.
        shuffle: False keeps the order of the dataset in every epoch.
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
        """Where the stream begins from now on; costs nothing, no data is loaded.

        Args:
            position: number of images that all processes together have seen, i.e. iterations done
                x images per process x processes.
        """
        if position < 0:
            raise ValueError(f"a stream starts at position 0 or later, not {position}")
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
        # numpy promises that RandomState's numbers never change, unlike torch.randperm's.
        return np.random.RandomState([self.seed % 2**32, epoch]).permutation(self.size)

    def __len__(self) -> int:
        """Images per process in an epoch, for those who ask how long one is."""
        return -(-self.size // self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Nothing to do: epochs follow from the position (mmengine's loops call it)."""


def item_seed(seed: int, epoch: int, index: int) -> int:
    """The seed, below 2^32, of one image in one epoch."""
    entropy = np.random.SeedSequence([seed % 2**32, epoch, index])
    return int(entropy.generate_state(1)[0])
