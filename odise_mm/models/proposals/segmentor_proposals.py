"""Masks of another segmentor."""

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmdet.structures import DetDataSample
from torch import Tensor

from odise_mm.checkpoints.published import load_weights, use_contained_clip
from odise_mm.config.building import build_part
from odise_mm.errors import CheckpointError
from odise_mm.models.frozen import FrozenModule, is_meta_context, same_random_weights
from odise_mm.models.heads.mask2former_head import Frame
from odise_mm.models.image_sizes import resize_short_side, stack_padded
from odise_mm.models.proposals.base import MaskSource
from odise_mm.models.segmentors.base_segmentor import BaseSegmentor, Part, Samples
from odise_mm.models.segmentors.results import SegmentedImages, cropped
from odise_mm.registry import MODELS
from odise_mm.utils.settings import check_whole
from odise_mm.vocabulary import Vocabulary


@MODELS.register_module()
class SegmentorProposals(MaskSource, FrozenModule):
    """Masks, and optionally class predictions, of another segmentor, which is not trained.

    The segmentor gets the images without the padding of the batch, and pads them as its own
    preprocessor does.

    Args:
        segmentor: the segmentor or its config, such as the ``model`` of ``fcclip_coco``.
        weights: its checkpoint, ours or a published one. None: the weights that it has; those of a
            config are random and the same every time.
        num_classifiers: number of its classifiers that are used, from the first. Their predictions
            come before those of the classifiers that name the masks. None: all.
        short_side: length in pixels that the short side of an image is resized to (bilinear). None:
            images have the size that the test pipeline gives them.

    Raises:
        ConfigError: a number is not an integer, or is too small.
        CheckpointError: the weights are missing or do not match the segmentor.
    """

    @classmethod
    def fetch_weights(cls, weights: str | None = None, **settings: Any) -> None:
        """See :meth:`FrozenModule.fetch_weights`. Checkpoints have no names to download them by."""
        if weights is not None and not Path(weights).expanduser().is_file():
            raise CheckpointError(
                f"{weights}: no such file. It is the checkpoint of the segmentor that makes the "
                "masks: download it by hand, and set model.proposals.weights to its path"
            )

    def __init__(
        self,
        segmentor: Part,
        weights: str | None = None,
        num_classifiers: int | None = None,
        short_side: int | None = None,
    ) -> None:
        super().__init__()
        if num_classifiers is not None:
            check_whole("num_classifiers", num_classifiers, least=0)
        if short_side is not None:
            check_whole("short_side", short_side)
        self.short_side = short_side
        if weights is not None and not is_meta_context():
            self.fetch_weights(weights)
            weights = str(Path(weights).expanduser())
            if isinstance(segmentor, dict):
                segmentor = copy.deepcopy(segmentor)
                use_contained_clip(segmentor, weights)
        with same_random_weights() if weights is None else nullcontext():
            self.segmentor: BaseSegmentor = build_part(segmentor, MODELS)
        if weights is not None and not is_meta_context():
            load_weights(self.segmentor, weights)
        if num_classifiers is not None:
            self.segmentor.classifiers = self.segmentor.classifiers[:num_classifiers]
        self.names_masks = len(self.segmentor.classifiers) > 0
        self.freeze()

    @torch.no_grad()
    def segment(
        self, inputs: Tensor, data_samples: Samples | None, vocabulary: Vocabulary
    ) -> Iterator[SegmentedImages]:
        """See :meth:`.MaskSource.segment`."""
        images = cropped(inputs, data_samples, "img_shape")
        if self.short_side is not None:
            images = [resize_short_side(image, self.short_side) for image in images]
        preprocessor = self.segmentor.data_preprocessor
        color = getattr(preprocessor, "pad_color", (float(preprocessor.pad_value),) * 3)
        inputs, padded = stack_padded(images, preprocessor.pad_size_divisor, color)
        frames = [
            Frame(size, tuple(image.shape[-2:])) for size, image in zip(padded, images, strict=True)
        ]
        samples = [
            _resized(sample, frame)
            for sample, frame in zip(data_samples or [None] * len(frames), frames, strict=True)
        ]
        for found in self.segmentor.segment(inputs, samples, vocabulary):
            own = [frames[place] for place in found.places]
            yield found._replace(prediction=found.prediction._replace(frames=own))

    def cast(self, dtype: torch.dtype) -> None:
        """Do nothing: the frozen parts of the segmentor are cast one by one."""

    def compile_parts(self, **options: Any) -> None:
        """Do nothing: the frozen parts of the segmentor are compiled one by one."""


def _resized(sample: DetDataSample | None, frame: Frame) -> DetDataSample:
    """Return a sample with the metainfo of another and the sizes of a frame, without results."""
    info = {} if sample is None else dict(sample.metainfo)
    return DetDataSample(metainfo={**info, "img_shape": frame.image, "pad_shape": frame.padded})
