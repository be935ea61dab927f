"""Masks that do not overlap, stored as one map of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet.structures.mask import BitmapMasks
from torch import Tensor


class SegmentMasks(BitmapMasks):
    """mmdet's ``BitmapMasks`` of segments, stored as one map instead of one mask per segment.

    The masks are made when they are read: on the target device by ``to_tensor``, as an array by
    ``masks``. So a worker process sends one map in shared memory to the training process: 1 MB for
    an image of 1024 x 1024, instead of 1 MB for each segment. Methods that change masks return
    ordinary ``BitmapMasks``.

    Args:
        numbers: (H, W) integers from 0 to 2^31 - 1.
        chosen: (N,) the numbers of the segments, in the order of the masks.

    Attributes:
        height: H.
        width: W.
    """

    def __init__(self, numbers: np.ndarray, chosen: np.ndarray) -> None:
        largest = max(int(numbers.max(initial=0)), int(chosen.max(initial=0)))
        dtypes = (np.uint8, np.int16, np.int32)
        dtype = next(each for each in dtypes if largest <= np.iinfo(each).max)
        self.height, self.width = numbers.shape
        self._numbers = torch.from_numpy(numbers.astype(dtype))
        self._chosen = torch.from_numpy(chosen.astype(dtype))

    @property
    def masks(self) -> np.ndarray:
        """(N, H, W) uint8, 1 inside a mask; made anew with every access."""
        return self.to_tensor(torch.bool, torch.device("cpu")).numpy().view(np.uint8)

    def __len__(self) -> int:
        return len(self._chosen)

    def to_tensor(self, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """Make the masks on a device.

        Returns:
            (N, H, W) of the given type, 1 inside a mask.
        """
        chosen = self._chosen.to(device)[:, None, None]
        return (self._numbers.to(device) == chosen).to(dtype)

    @classmethod
    def cat(cls, masks: Sequence[BitmapMasks]) -> BitmapMasks:
        """Concatenate masks, of this class or not, as mmdet does."""
        return BitmapMasks.cat(masks)

    def __getitem__(self, index: Any) -> SegmentMasks:
        """Return some of the masks; an integer gives one mask, as in ``BitmapMasks``."""
        chosen = np.atleast_1d(self._chosen.numpy()[index])
        return SegmentMasks(self._numbers.numpy(), chosen)
