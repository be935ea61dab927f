"""Training targets of a batch: masks with labels, captions and their words."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import Tensor

from odise_mm.errors import DatasetError


def targets_of(sample: DetDataSample, inputs: Tensor, num_classes: int | None) -> InstanceData:
    """Return the labels and masks of a sample, padded like the image.

    Args:
        sample: sample with ``gt_instances``, which has ``labels`` (N,) and ``masks`` of things and
            stuff (mmdet's ``BitmapMasks``, or (N, h, w)).
        inputs: the batch of padded images, (B, 3, H, W).
        num_classes: number of classes of the vocabulary. None gives every segment the class 0,
            "object".

    Returns:
        ``labels`` (N,) int64 and ``masks`` (N, H, W) bool, on the device of ``inputs``.

    Raises:
        DatasetError: labels or masks are missing or do not match, or a label is out of range.
    """
    name = sample.metainfo.get("img_path", "a sample")
    instances = sample.get("gt_instances")
    missing = [key for key in ("labels", "masks") if instances is None or key not in instances]
    if missing:
        raise DatasetError(
            f"{name} has no gt_instances.{missing[0]}: training needs the masks and labels of all "
            "segments; add PanopticMapToMasks and PackDetInputs to the training pipeline"
        )
    labels, masks = instances.labels.to(inputs.device, torch.long), instances.masks
    if isinstance(masks, BitmapMasks):
        masks = masks.to_tensor(torch.bool, inputs.device)
    height, width = inputs.shape[-2:]
    bottom, right = height - masks.shape[-2], width - masks.shape[-1]
    if len(labels) != len(masks) or bottom < 0 or right < 0:
        raise DatasetError(
            f"{name}: {len(labels)} labels, {len(masks)} masks of {masks.shape[-2]} x "
            f"{masks.shape[-1]} pixels and an image padded to {height} x {width} do not match"
        )
    if num_classes is None:
        labels = torch.zeros_like(labels)
    elif len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise DatasetError(
            f"{name} has labels from {int(labels.min())} to {int(labels.max())}, but the model's "
            f"vocabulary has {num_classes} classes; train with the dataset's vocabulary"
        )
    padded = F.pad(masks.to(inputs.device, torch.bool), (0, right, 0, bottom))
    return InstanceData(labels=labels, masks=padded)


def captions_of(samples: Sequence[DetDataSample]) -> list[str | None]:
    """Return the caption of every image, or None if the dataset has no caption for it."""
    return [sample.metainfo.get("caption") for sample in samples]


def words_of(samples: Sequence[DetDataSample]) -> list[Sequence[str]]:
    """Return the words of every sample's caption.

    A sample may have no words. All others must have the same number of words.

    Raises:
        DatasetError: a sample has no entry ``words``, or the numbers of words differ.
    """
    for sample in samples:
        if "words" not in sample.metainfo:
            raise DatasetError(
                f"{sample.metainfo.get('img_path', 'a sample')} has no words, which caption "
                "supervision needs: set phrases_file in the dataset, add DrawWords to the training "
                "pipeline and 'words' to the meta_keys of PackDetInputs"
            )
    words = [sample.metainfo["words"] for sample in samples]
    counts = sorted({len(caption) for caption in words if caption})
    if len(counts) > 1:
        raise DatasetError(
            f"images of one batch have {counts[0]} and {counts[-1]} words; draw the same number "
            "for all images that have words (DrawWords)"
        )
    return words
