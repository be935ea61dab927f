"""Features of frozen parts, computed once for every tile of the training images."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor

from odise_mm.models.segmentors.tiled_features import Captions
from odise_mm.utils.settings import check_number

GIGABYTE = 1e9


class _Kept(NamedTuple):
    """Where the maps of a tile are.

    Attributes:
        start: position in the file, in bytes.
        shapes: shape of every map, (C, H, W).
        dtypes: type of every map before it was stored as float16.
    """

    start: int
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]


class FeatureCache:
    """Raw feature maps by the pixels and the caption of a tile, in a temporary file.

    The maps are stored as float16. The maps that are computed are rounded in the same way, so the
    result does not depend on whether a tile is known. The operating system keeps the file in memory
    as far as there is room. The file has no name and disappears with the process.

    Args:
        folder: folder of the temporary file. None: the system's, see :mod:`tempfile`.
        max_gb: size of the file in gigabytes. When it is full, the maps of new tiles are not kept.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, max_gb: float = 20.0) -> None:
        check_number("max_gb", max_gb)
        self._max_bytes = int(max_gb * GIGABYTE)
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)
        self._kept: dict[bytes, _Kept] = {}
        self._end = 0
        self._full = False

    def __len__(self) -> int:
        """Number of tiles whose maps are kept."""
        return len(self._kept)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
        self._kept.clear()

    def __call__(
        self,
        tiles: Tensor,
        captions: Captions,
        compute: Callable[[Tensor, Captions], Sequence[Tensor]],
    ) -> list[Tensor]:
        """Return the maps of tiles.

        Args:
            tiles: (N, 3, S, S) in [0, 1].
            captions: the captions of their images, if the features depend on them.
            compute: function of the tiles and captions that are not known. It returns their maps,
                each (n, C, H, W). No gradients flow through it.

        Returns:
            One (N, C, H, W) map for every feature.
        """
        texts = captions or [None] * len(tiles)
        keys = [_key(tile, text) for tile, text in zip(tiles, texts, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in self._kept]
        maps: dict[int, list[Tensor]] = {}
        if new:
            with torch.no_grad():
                made = compute(tiles[new], [texts[i] for i in new] if captions else captions)
            for row, i in enumerate(new):
                maps[i] = self._keep(keys[i], [feature[row] for feature in made])
        for i, key in enumerate(keys):
            if i not in maps:
                maps[i] = self._read(self._kept[key], tiles.device)
        return [torch.stack(level) for level in zip(*map(maps.get, range(len(keys))), strict=True)]

    def _keep(self, key: bytes, maps: Sequence[Tensor]) -> list[Tensor]:
        """Store the maps of a tile, and return them as they will be read."""
        half = [one.half() for one in maps]
        size = 2 * sum(one.numel() for one in half)
        if not self._full and self._end + size <= self._max_bytes:
            block = np.concatenate([one.flatten().cpu().numpy() for one in half])
            try:
                os.pwrite(self._file.fileno(), block, self._end)
            except OSError as error:
                self._stop(str(error))
            else:
                shapes, dtypes = (m.shape for m in maps), (m.dtype for m in maps)
                self._kept[key] = _Kept(self._end, tuple(shapes), tuple(dtypes))
                self._end += size
        elif not self._full:
            self._stop(f"max_gb={self._max_bytes / GIGABYTE:g} is reached")
        return [one.to(full.dtype) for one, full in zip(half, maps, strict=True)]

    def _stop(self, why: str) -> None:
        self._full = True
        print_log(
            f"the feature cache keeps the {len(self):,} tiles that it has and no more: {why}. "
            "Training goes on; the features of other tiles are computed each time",
            logger="current",
            level=30,
        )

    def _read(self, kept: _Kept, device: torch.device) -> list[Tensor]:
        counts = [prod(shape) for shape in kept.shapes]
        block = np.empty(sum(counts), np.float16)
        if os.preadv(self._file.fileno(), [block], kept.start) != block.nbytes:
            raise OSError("the feature cache's temporary file was truncated")
        parts = torch.from_numpy(block).to(device).split(counts)
        rows = zip(parts, kept.shapes, kept.dtypes, strict=True)
        return [part.view(shape).to(dtype) for part, shape, dtype in rows]


def _key(tile: Tensor, caption: str | None) -> bytes:
    pixels = np.ascontiguousarray(tile.float().cpu().numpy())
    shape = f"{tuple(tile.shape)} {caption!r} ".encode()
    return blake2b(pixels, digest_size=16, key=blake2b(shape, digest_size=16).digest()).digest()
