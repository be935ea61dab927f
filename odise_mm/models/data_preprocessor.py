"""Batches padded with a color instead of black."""

from collections.abc import Sequence
from typing import Any

from mmdet.models import DetDataPreprocessor
from torch import Tensor

from odise_mm.errors import ConfigError
from odise_mm.registry import MODELS
from odise_mm.utils.settings import is_number


@MODELS.register_module()
class ColorPaddingPreprocessor(DetDataPreprocessor):
    """mmdet's preprocessor, with padding of any color.

    Its output images are in [0, 1], and each part of a model normalizes them for itself. A model
    that was trained on images that were normalized first and then padded with zeros, as detectron2
    does, has seen padding of the mean color.

    Args:
        pad_color: red, green and blue in [0, 1].
        **options: :class:`mmdet.models.DetDataPreprocessor`'s arguments.
    """

    def __init__(self, pad_color: Sequence[float] = (0.0, 0.0, 0.0), **options: Any) -> None:
        super().__init__(**options)
        numbers = isinstance(pad_color, list | tuple) and len(pad_color) == 3
        if not (numbers and all(is_number(c) and 0 <= c <= 1 for c in pad_color)):
            raise ConfigError(
                f"data_preprocessor.pad_color={pad_color!r}: three numbers from 0 to 1"
            )
        self.pad_color = tuple(map(float, pad_color))

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Return the batch: ``inputs`` (B, 3, H, W) padded at bottom and right."""
        data = super().forward(data, training)
        inputs: Tensor = data["inputs"]
        color = inputs.new_tensor(self.pad_color)[:, None, None]
        for image, sample in zip(inputs, data["data_samples"] or (), strict=False):
            height, width = sample.img_shape[:2]
            image[:, height:] = color
            image[:, :, width:] = color
        return data
