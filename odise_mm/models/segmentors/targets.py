"""What training asks of a batch's samples: masks with labels, captions and their words."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import Tensor

from odise_mm.errors import DatasetError


def targets_of(sample: DetDataSample, inputs: Tensor, num_classes: int | None) -> InstanceData:
    """Labels and masks of a sample, padded like the image.

    Args:
        sample: with ``gt_instances``: ``labels`` (N,) and ``masks`` of things and stuff (mmdet's
            ``BitmapMasks``, or (N, h, w)).
        inputs: the batch of padded images, (B, 3, H, W).
        num_classes: of the vocabulary; None: every segment is an "object", class 0.

    Returns:
        ``labels`` (N,) int64 and ``masks`` (N, H, W) bool, on the device of ``inputs``.

    Raises:
        DatasetError: labels or masks are missing, do not fit together, or are of no class.
    """
    name = sample.metainfo.get("img_path", "a sample")
    found = sample.get("gt_instances")
    missing = [key for key in ("labels", "masks") if found is None or key not in found]
    if missing:
        raise DatasetError(
            f"{name} has no gt_instances.{missing[0]}: training needs the masks and labels of all "
            "segments (PanopticMapToMasks and PackDetInputs in the training pipeline)"
        )
    labels, masks = found.labels.to(inputs.device, torch.long), found.masks
    if isinstance(masks, BitmapMasks):
        masks = masks.to_tensor(torch.bool, inputs.device)
    height, width = inputs.shape[-2:]
    bottom, right = height - masks.shape[-2], width - masks.shape[-1]
    if len(labels) != len(masks) or bottom < 0 or right < 0:
        raise DatasetError(
            f"{name}: {len(labels)} labels, {len(masks)} masks of {masks.shape[-2]} x "
            f"{masks.shape[-1]} pixels, an image padded to {height} x {width}; these do not fit "
            "together"
        )
    if num_classes is None:
        labels = torch.zeros_like(labels)
    elif len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise DatasetError(
            f"{name} has labels from {int(labels.min())} to {int(labels.max())}, but the model's "
            f"vocabulary has {num_classes} classes: train with the dataset's own vocabulary"
        )
    padded = F.pad(masks.to(inputs.device, torch.bool), (0, right, 0, bottom))
    return InstanceData(labels=labels, masks=padded)


def captions_of(samples: Sequence[DetDataSample]) -> list[str | None]:
    """What people wrote about each image, where the dataset knows."""
    return [sample.metainfo.get("caption") for sample in samples]


def words_of(samples: Sequence[DetDataSample]) -> list[Sequence[str]]:
    """The words of every sample's caption; equally many, or none.

    Raises:
        DatasetError: a sample without the entry ``words``, or different numbers of words.
    """
    for sample in samples:
        if "words" not in sample.metainfo:
            raise DatasetError(
                f"{sample.metainfo.get('img_path', 'a sample')} comes without words, and caption "
                "supervision learns names from them: give the dataset a phrases_file, put "
                "DrawWords into the training pipeline and 'words' into PackDetInputs' meta_keys"
            )
    words = [sample.metainfo["words"] for sample in samples]
    counts = sorted({len(caption) for caption in words if caption})
    if len(counts) > 1:
        raise DatasetError(
            f"images of one batch have {counts[0]} and {counts[-1]} words: draw equally many for "
            "all that have any (DrawWords)"
        )
    return words
