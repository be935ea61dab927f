"""Regions that are given, not predicted: how they are embedded along with a model's own masks."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from odise_mm.models.heads.mask2former_head import Frame, MaskPrediction

LOGIT = 10.0
"""Mask logit inside a region, and with a minus outside."""
_APART = 0.1  # masks with a smaller intersection over union are other regions


class EmbeddedRegions(NamedTuple):
    """R regions of one image.

    Attributes:
        embeddings: normalized, (R, C) float32.
        overlap: largest intersection over union with one of the model's masks, (R,) float32. If it
            is low, the model makes no mask like this and will hardly find such regions.
        backgrounds: mean cosine to the model's masks of other regions, (R,) float32; NaN if there
            are none.
        surroundings: mean embedding of these masks, (R, C) float32, not normalized; NaN if there
            are none.
    """

    embeddings: Tensor
    overlap: Tensor
    backgrounds: Tensor
    surroundings: Tensor


def with_regions(prediction: MaskPrediction, regions: Tensor, image: Tensor) -> MaskPrediction:
    """Append given regions to the masks of one image.

    A region gets the mask embedding and objectness of the mask that overlaps it most, because only
    a query can have these.

    Args:
        prediction: masks of one image.
        regions: (R, H, W) bool, of any size; they cover the image without padding.
        image: the unpadded image, (3, h, w).
    """
    (frame,) = prediction.frames_of([image])
    logits = to_logits(regions, frame, prediction.masks.shape[-2:])
    logits = logits.to(prediction.masks)
    masks = torch.cat([prediction.masks, logits[None]], dim=1)
    changes: dict[str, Tensor] = {"masks": masks}
    if prediction.masks.shape[1]:
        best = overlaps(logits, prediction.masks[0]).argmax(1)
        for name in ("embeddings", "objectness"):
            values = getattr(prediction, name)
            if values is not None:
                changes[name] = torch.cat([values, values[:, best]], dim=1)
    elif prediction.objectness is not None:
        changes["objectness"] = prediction.objectness.new_zeros(1, len(regions), 2)
    return prediction._replace(**changes)


def to_logits(regions: Tensor, frame: Frame, size: tuple[int, int]) -> Tensor:
    """Resize regions to the masks of a model. A region that is too small keeps one position.

    Args:
        regions: (R, H, W) bool.
        frame: the image's size for the masks.
        size: height and width of the masks, which cover the padded image.

    Returns:
        (R, h, w) float32.
    """
    inside = tuple(
        max(1, min(side, round(side * image / padded)))
        for side, image, padded in zip(size, frame.image, frame.padded, strict=True)
    )
    cover = F.interpolate(regions.float()[None], inside, mode="area")[0]
    chosen = cover >= 0.5
    largest = cover.flatten(1).argmax(1)
    chosen.flatten(1)[torch.arange(len(chosen)), largest] = True
    padding = (0, size[1] - inside[1], 0, size[0] - inside[0])
    return F.pad(torch.where(chosen, LOGIT, -LOGIT), padding, value=-LOGIT)


def overlaps(masks: Tensor, others: Tensor) -> Tensor:
    """Compute the intersection over union of mask logits: (R, h, w), (Q, h, w) to (R, Q)."""
    first, second = ((each > 0).flatten(1).float() for each in (masks, others))
    shared = first @ second.T
    return shared / (first.sum(1)[:, None] + second.sum(1)[None] - shared).clamp_min(1)


def describe_regions(masks: Tensor, embeddings: Tensor, count: int) -> EmbeddedRegions:
    """Compare the last ``count`` masks of an image, which are regions, with the others.

    Args:
        masks: logits, (Q + R, h, w).
        embeddings: normalized, (Q + R, C).
        count: R.
    """
    own = len(masks) - count
    found, regions = embeddings[:own], embeddings[own:]
    overlap = overlaps(masks[own:], masks[:own])
    apart = (overlap < _APART) & (masks[:own] > 0).flatten(1).any(1)[None]
    surroundings = apart.to(found) @ found / apart.sum(1, keepdim=True)  # 0 / 0: NaN
    backgrounds = (regions * surroundings).sum(1)
    best = overlap.amax(1) if own else overlap.new_zeros(count)
    return EmbeddedRegions(regions.float(), best.float(), backgrounds.float(), surroundings.float())
