"""Sizes of images inside a model whose parts look at images of different sizes."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def resize_image(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize an image (C, h, w) to a height and width (bilinear, without antialiasing)."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image[None].float(), tuple(size), mode="bilinear", align_corners=False)[0]


def resize_short_side(image: Tensor, length: int) -> Tensor:
    """Resize an image (C, h, w) so that its short side has a length in pixels.

    The long side is rounded down.
    """
    height, width = map(int, image.shape[-2:])
    short = min(height, width)
    return resize_image(image, [int(side * length / short) for side in (height, width)])


def stack_padded(
    images: Sequence[Tensor], divisor: int, color: Sequence[float] = (0.0, 0.0, 0.0)
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Pad images at bottom and right and stack them.

    Args:
        images: B images, each (3, h, w).
        divisor: height and width of an image are padded to multiples of this.
        color: color of the padding in the units of the images.

    Returns:
        (B, 3, H, W), and the padded height and width of every image by itself.
    """
    sizes = [tuple(-(-side // divisor) * divisor for side in image.shape[-2:]) for image in images]
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    batch = images[0].new_tensor(color)[:, None, None].repeat(len(images), 1, height, width)
    for padded, image in zip(batch.unflatten(1, (3, 1)).squeeze(2), images, strict=True):
        padded[:, : image.shape[-2], : image.shape[-1]] = image
    return batch, sizes
