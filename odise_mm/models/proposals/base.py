"""Interface of mask sources, and a base class of sources that look at one image at a time."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from odise_mm.errors import ConfigError
from odise_mm.models.classifiers.base import ClassPrediction
from odise_mm.models.heads.mask2former_head import Frame, MaskPrediction
from odise_mm.models.segmentors.base_segmentor import Samples
from odise_mm.models.segmentors.results import SegmentedImages, cropped
from odise_mm.vocabulary import Vocabulary

MASK_LOGIT = 10.0
"""Logit inside a binary mask, and with a minus outside. The probability is 0.99995 or 0.00005."""


class MaskSource(nn.Module):
    """Base class of mask sources: where a :class:`~odise_mm.models.ProposalSegmentor` gets masks.

    A source with weights is also a :class:`~odise_mm.models.frozen.FrozenModule`: it loads its own
    weights, and checkpoints of the segmentor do not contain them.

    Attributes:
        names_masks: whether the source makes class predictions, so that no classifier is needed.
    """

    names_masks = False

    def segment(
        self, inputs: Tensor, data_samples: Samples | None, vocabulary: Vocabulary
    ) -> Iterator[SegmentedImages]:
        """Yield the masks of a batch of images.

        Args:
            inputs: (B, 3, H, W) in [0, 1], RGB, padded at bottom and right.
            data_samples: samples with ``img_shape`` and ``pad_shape``, and whatever else the source
                needs, such as ``img_path``; None if no image is padded.
            vocabulary: the K classes.

        Yields:
            Groups of images whose masks have the same size. Each has the places of its images in
            the batch, and a ``prediction`` with mask logits that cover the padded images at stride
            4, (N, Q, H / 4, W / 4). Sources that look at images of another size, or whose masks
            have another stride, set ``prediction.frames``. Embeddings may be None.
            ``class_predictions`` is empty if the source does not name its masks.
        """
        raise NotImplementedError


class Proposals(NamedTuple):
    """Masks of one image.

    Attributes:
        masks: logits, (Q, h, w), which cover the image without padding. (h, w) is the size at which
            classifiers look at the image.
        scores: probability that a mask is an object, (Q,), in [0, 1].
        classes: class prediction of the source, with logits (Q, K); None for class-agnostic masks.
    """

    masks: Tensor
    scores: Tensor
    classes: ClassPrediction | None = None


class ImageMaskSource(MaskSource):
    """Base class of mask sources that look at one image at a time.

    A subclass implements :meth:`propose`. Masks have the resolution of the image (stride 1), and
    each image has its own number of masks, which may be 0. The score of a mask becomes its
    objectness: if neither the source nor the first classifier predicts void, the probability of
    void is 1 - score.
    """

    def propose(
        self, image: Tensor, sample: DetDataSample | None, vocabulary: Vocabulary
    ) -> Proposals:
        """Return the masks of an image.

        Args:
            image: the image without padding, (3, H, W) in [0, 1], RGB.
            sample: its data sample; None if the caller has none.
            vocabulary: the K classes, for sources that look for classes.
        """
        raise NotImplementedError

    @torch.no_grad()
    def segment(
        self, inputs: Tensor, data_samples: Samples | None, vocabulary: Vocabulary
    ) -> Iterator[SegmentedImages]:
        """See :meth:`MaskSource.segment`. Every image is a group.

        Raises:
            ConfigError: the tensors have no values (meta device). The number of masks depends on
                the image.
        """
        if inputs.is_meta:
            raise ConfigError(
                f"{type(self).__name__} cannot run on the meta device: the number of masks "
                "depends on the image, so the operations cannot be counted in advance"
            )
        samples = data_samples or [None] * len(inputs)
        images = cropped(inputs, data_samples, "img_shape")
        for place, (image, sample) in enumerate(zip(images, samples, strict=True)):
            masks, scores, classes = self.propose(image, sample, vocabulary)
            size = tuple(masks.shape[-2:])
            prediction = MaskPrediction(
                masks[None], objectness=_objectness(scores)[None], frames=[Frame(size, size)]
            )
            named = [] if classes is None else [_batch_of_one(classes)]
            yield SegmentedImages([place], prediction, named, vocabulary)


def resize_masks_to(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize mask logits (Q, h, w) to a height and width (bilinear, half-pixel centers)."""
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    if len(masks) == 0:  # torch cannot interpolate nothing
        return masks.new_zeros(0, *size)
    return F.interpolate(masks[None], size, mode="bilinear", align_corners=False)[0]


def _objectness(scores: Tensor) -> Tensor:
    """Return logits (Q, 2) whose softmax is (score, 1 - score), up to 1e-6."""
    logits = torch.logit(scores.float(), eps=1e-6)
    return torch.stack([logits, torch.zeros_like(logits)], dim=-1)


def _batch_of_one(classes: ClassPrediction) -> ClassPrediction:
    return ClassPrediction(*(None if field is None else field[None] for field in classes))
