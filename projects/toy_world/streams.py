"""Scenes for pre-training, drawn as they are needed: nothing is stored, nothing repeats.

Both are map-style data sets for PyTorch's ``DataLoader``: item n is the same whatever the number of
workers, and another one than any other n. Drawing takes about 3 ms of one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from projects.toy_world.names import Name
from projects.toy_world.world import SIZE, Scene, Split, scene

Mode = Literal["crop", "masked", "masked_crop"]
MODES: tuple[str, ...] = get_args(Mode)
GREY = 128
"""What is not the region in masked pictures."""

_SMALLEST = 24  # side of a crop in pixels
_MARGIN = (0.05, 0.6)  # of a crop around a region, of the region's larger side
_OTHERS = 10**9  # keeps the random numbers of streams apart from those of scenes


class CaptionedScenes(Dataset):
    """Pictures with a caption: for a text-to-image model, or CLIP on whole pictures.

    An item is (picture (3, size, size) uint8, caption), the caption one of the scene's at random.

    Args:
        length: how many items; take as many as training will see.
        seed: other scenes for another one.
        size: of the pictures; ``SIZE`` as they are drawn, else resized.
        split: whose names: see :func:`projects.toy_world.world.scene`.
    """

    def __init__(
        self, length: int, seed: int = 0, *, size: int = SIZE, split: Split = "web"
    ) -> None:
        self.length, self.seed, self.size, self.split = length, seed, size, split

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        made = _item(self, index)
        rng = np.random.default_rng([_OTHERS, self.seed, index])
        caption = made.captions[rng.integers(len(made.captions))]
        return _tensor(_resized(made.image, self.size)), caption


class NamedRegions(Dataset):
    """Regions of scenes with their names: what CLIP must know to judge masks and crops.

    An item is (pictures (k, 3, size, size) uint8, k names, k labels): ``k`` segments of one scene
    drawn at random, each with one of its synonyms and the place of its class in
    :data:`projects.toy_world.names.NAMES`. :func:`collate_regions` makes batches of them.

    Args:
        length: how many items, i.e. scenes.
        seed: other scenes for another one.
        size: of the pictures.
        per_scene: k.
        modes: how a region is shown, one of them at random; see :func:`show_region`.
        split: whose names: see :func:`projects.toy_world.world.scene`.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        *,
        size: int = 64,
        per_scene: int = 4,
        modes: Sequence[Mode] = MODES,
        split: Split = "web",
    ) -> None:
        for mode in modes:
            _check_mode(mode)
        self.length, self.seed, self.size, self.split = length, seed, size, split
        self.per_scene, self.modes = per_scene, tuple(modes)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, list[str], Tensor]:
        made = _item(self, index)
        rng = np.random.default_rng([_OTHERS + 1, self.seed, index])
        count = len(made.segments)
        # each segment once before any comes again
        order = np.concatenate([rng.permutation(count) for _ in range(-(-self.per_scene // count))])
        chosen = [made.segments[i] for i in order[: self.per_scene]]
        pictures = []
        for segment in chosen:
            mode = self.modes[rng.integers(len(self.modes))]
            mask = made.panoptic == segment.id
            pictures.append(_tensor(show_region(made.image, mask, mode, self.size, rng)))
        names = [_wording(segment.name, rng) for segment in chosen]
        labels = torch.tensor([segment.name.category - 1 for segment in chosen])
        return torch.stack(pictures), names, labels


def collate_regions(
    items: Sequence[tuple[Tensor, list[str], Tensor]],
) -> tuple[Tensor, list[str], Tensor]:
    """Batches of :class:`NamedRegions` for a ``DataLoader``: (n, 3, size, size), names, (n,)."""
    pictures, names, labels = zip(*items, strict=True)
    return torch.cat(pictures), [name for group in names for name in group], torch.cat(labels)


def show_region(
    image: np.ndarray, mask: np.ndarray, mode: Mode, size: int, rng: np.random.Generator
) -> np.ndarray:
    """A region as a picture of its own, (size, size, 3) uint8.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) bool, with a pixel at least.
        mode: "crop": a square around it, larger by a margin at random. "masked": the whole picture,
            grey but for the region. "masked_crop": both.
        size: of the result.
        rng: of the margin.

    Raises:
        ValueError: another mode, or an empty mask.
    """
    _check_mode(mode)
    if not mask.any():
        raise ValueError("a region without a pixel cannot be shown")
    if mode != "crop":
        image = np.where(mask[..., None], image, np.uint8(GREY))
    if mode == "masked":
        return _resized(image, size)
    spans = [np.flatnonzero(mask.any(axis=axis))[[0, -1]] + [0, 1] for axis in (0, 1)]
    side = max(int(end - start) for start, end in spans)
    side = round(max(side * (1 + rng.uniform(*_MARGIN)), _SMALLEST))
    side = min(side, *mask.shape)
    box = []
    for (start, end), limit in zip(spans, mask.shape[::-1], strict=True):
        box.append(int(np.clip((start + end - side) // 2, 0, limit - side)))
    left, top = box
    return _resized(image[top : top + side, left : left + side], size)


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"a region is shown as one of {', '.join(MODES)}, not {mode!r}")


def _item(stream: CaptionedScenes | NamedRegions, index: int) -> Scene:
    if not 0 <= index < stream.length:
        raise IndexError(f"item {index} of {stream.length}")
    return scene((stream.seed, index), stream.split)


def _wording(name: Name, rng: np.random.Generator) -> str:
    return name.synonyms[rng.integers(len(name.synonyms))]


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
