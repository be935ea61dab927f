"""Post-processing: mask logits and class probabilities to panoptic, semantic, instance results.

These are pure functions on tensors on any device. They compute in float32 for all input types and
ignore an active autocast. They process the image in strips of rows, or a few masks at a time, so
memory does not grow with the number of classes: beyond the mask logits and the results, they need
at most ``max_bytes``.

Class probabilities have the shape (Q, K + 1): K classes after the softmax, then the void class.
Flags, not positions, mark the thing classes. Source: ODISE, arXiv 2303.04803, section 3.6, and
the inference of Mask2Former, arXiv 2112.01527, which it builds on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from odise_mm.errors import ConfigError
from odise_mm.structures.queries import MaskFate
from odise_mm.utils.precision import full_precision
from odise_mm.utils.settings import (
    check_choice,
    check_flag,
    check_number,
    check_weight,
    check_whole,
)

# Small enough for the CPU's caches, large enough to keep a GPU busy.
MAX_BYTES = 32 * 2**20

QUALITIES = ("probability", "logit")
"""What the class probability of an instance is multiplied by: the mean over its mask of this."""

RESIZED = ("masks", "class_maps")
"""What is resized to the size of the image for semantic results."""

MASK_RESIZE = ("logit", "probability")
"""Which values of masks are resized."""

TEST_CFG: dict[str, Any] = {
    "score_threshold": 0.0,
    "overlap_threshold": 0.8,
    "min_area": 0,
    "topk": 100,
    "instance_quality": "probability",
    "mask_resize": "logit",
    "semantic_resize": "masks",
    "panoptic": True,
    "semantic": True,
    "instance": True,
    "keep_queries": False,
}
"""Default settings of the results; see :class:`~odise_mm.models.OpenVocabSegmentor`."""

EXPONENTS = ("alpha", "beta")
"""Settings of a call that replace the exponents of the ensemble. In configs, they belong to it."""

WEIGHTS = (*EXPONENTS, "memory_weight")
"""Settings of a call that change the weights of the ensemble, which are numbers from 0 to 1."""


def check_test_cfg(
    test_cfg: Mapping[str, Any] | None, unknown: type[Exception] = ConfigError
) -> dict[str, Any]:
    """Check settings and return them as a dictionary.

    Args:
        test_cfg: any of the settings in :data:`TEST_CFG`; None means no settings.
        unknown: type of the error for an unknown setting. Parts of a config use TypeError, as for
            any unknown argument.

    Raises:
        ConfigError: a value is not allowed; the message names the setting and the allowed values.
    """
    if test_cfg is not None and not isinstance(test_cfg, Mapping):
        raise ConfigError(
            f"test_cfg={test_cfg!r} must be a dictionary with any of {', '.join(TEST_CFG)}"
        )
    for name, value in (test_cfg or {}).items():
        if name not in TEST_CFG:
            raise unknown(f"unknown key {name!r} in test_cfg (known keys: {', '.join(TEST_CFG)})")
        _check_value(f"test_cfg.{name}", name, value)
    return dict(test_cfg or {})


def check_settings(
    settings: Mapping[str, Any] | None, unknown: type[Exception] = ConfigError
) -> dict[str, Any]:
    """Check the settings of a call and return them as a dictionary.

    Args:
        settings: any of the settings in :data:`TEST_CFG` and :data:`WEIGHTS`. A weight that is None
            is that of the ensemble.
        unknown: type of the error for an unknown setting.

    Raises:
        ConfigError: a value is not allowed.
    """
    if settings is not None and not isinstance(settings, Mapping):
        return check_test_cfg(settings)
    for name, value in (settings or {}).items():
        if name not in TEST_CFG and name not in WEIGHTS:
            known = ", ".join((*TEST_CFG, *WEIGHTS))
            raise unknown(f"unknown setting {name!r} (known settings: {known})")
        _check_value(name, name, value)
    return dict(settings or {})


def _check_value(shown: str, name: str, value: Any) -> None:
    """Check the value of a setting; ``shown`` is its name in messages."""
    if name in WEIGHTS:
        if value is not None:
            check_weight(shown, value)
    elif name in ("overlap_threshold", "score_threshold"):
        check_number(shown, value, 0, 1)
    elif name == "topk":
        check_whole(shown, value)
    elif name == "min_area":
        check_whole(shown, value, least=0)
    elif name == "instance_quality":
        check_choice(shown, value, QUALITIES)
    elif name == "mask_resize":
        check_choice(shown, value, MASK_RESIZE)
    elif name == "semantic_resize":
        check_choice(shown, value, RESIZED)
    else:
        check_flag(shown, value)


class Segment(NamedTuple):
    """One segment of a panoptic map.

    Attributes:
        id: value of the segment's pixels in the map, from 1.
        label: class index.
        score: class probability of the mask, in [0, 1]. For merged stuff masks, the mean over the
            masks, weighted by their pixels in the map.
        area: number of pixels in the map.
        is_thing: whether the class is countable.
    """

    id: int
    label: int
    score: float
    area: int
    is_thing: bool


def _check(mask_cls: Tensor, mask_logits: Tensor, is_thing: Sequence[bool] | None = None) -> int:
    if mask_cls.ndim != 2 or mask_logits.ndim != 3 or len(mask_cls) != len(mask_logits):
        raise ValueError(
            "mask_cls must be (Q, K + 1) and mask_logits (Q, H, W), with the same Q, got "
            f"{tuple(mask_cls.shape)} and {tuple(mask_logits.shape)}"
        )
    num_classes = mask_cls.shape[1] - 1
    if num_classes < 1:
        raise ValueError("mask_cls needs at least one class besides the void class")
    if is_thing is not None and len(is_thing) != num_classes:
        raise ValueError(
            f"is_thing has {len(is_thing)} flags for the {num_classes} classes of mask_cls"
        )
    return num_classes


def _strips(mask_logits: Tensor, floats_per_pixel: int, max_bytes: int) -> Iterator[slice]:
    height, width = mask_logits.shape[-2:]
    rows = max(1, max_bytes // max(1, 4 * floats_per_pixel * width))
    for start in range(0, height, rows):
        yield slice(start, min(start + rows, height))


def _areas(masks: Tensor) -> Tensor:
    """Areas (N,) int64 of masks (N, H, W) of float32 zeros and ones.

    Sums of floats are faster than sums of booleans, and exact for a single row.
    """
    return masks.sum(dim=2).long().sum(dim=1)


class PanopticMerge(NamedTuple):
    """A panoptic map and where it comes from.

    Attributes:
        ids: (H, W) int32 map of segment ids, 0 for void.
        segments: its segments in order of their ids.
        fates: what became of each of the Q masks.
    """

    ids: Tensor
    segments: list[Segment]
    fates: list[MaskFate]


def panoptic_inference(
    mask_cls: Tensor,
    mask_logits: Tensor,
    is_thing: Sequence[bool],
    overlap_threshold: float = 0.8,
    max_bytes: int = MAX_BYTES,
    score_threshold: float = 0.0,
    min_area: int = 0,
) -> tuple[Tensor, list[Segment]]:
    """Return the panoptic map and the segments of :func:`merge_masks`."""
    merged = merge_masks(
        mask_cls, mask_logits, is_thing, overlap_threshold, max_bytes, score_threshold, min_area
    )
    return merged.ids, merged.segments


@torch.no_grad()
def merge_masks(
    mask_cls: Tensor,
    mask_logits: Tensor,
    is_thing: Sequence[bool],
    overlap_threshold: float = 0.8,
    max_bytes: int = MAX_BYTES,
    score_threshold: float = 0.0,
    min_area: int = 0,
) -> PanopticMerge:
    """Merge masks into a panoptic map without overlaps.

    Every mask gets its most probable class. Masks of the void class are dropped, and so are masks
    whose class probability is not above ``score_threshold``. A pixel is
    assigned to the mask with the highest class probability times mask probability. It stays void
    if that mask's probability is below 0.5. The area of a mask is the number of pixels with a
    probability of at least 0.5. If fewer pixels than ``overlap_threshold`` times this area are
    assigned to a mask, it is dropped and its pixels become void. All stuff masks of one class form
    one segment. Finally, segments with fewer than ``min_area`` pixels become void.

    Args:
        mask_cls: (Q, K + 1) class probabilities, void last.
        mask_logits: (Q, H, W) logits at the size of the result.
        is_thing: K flags.
        overlap_threshold: fraction in [0, 1].
        max_bytes: limit of the working memory in bytes; at least one row is processed at a time.
        score_threshold: fraction in [0, 1]; published: 0 (ODISE, FC-CLIP), 0.2 (MAFT+).
        min_area: number of pixels; published: 0.

    Returns:
        The map, its segments, and what became of each mask.

    Raises:
        ValueError: the shapes do not match.
    """
    num_classes = _check(mask_cls, mask_logits, is_thing)
    device = mask_logits.device
    panoptic = torch.zeros(mask_logits.shape[-2:], dtype=torch.int32, device=device)
    scores, labels = mask_cls.float().max(dim=1)
    is_void = labels == num_classes
    fates = [MaskFate("void" if void else "score") for void in is_void.tolist()]
    kept = (~is_void & (scores > score_threshold)).nonzero().flatten()
    if len(kept) == 0 or panoptic.numel() == 0:
        for index in kept.tolist():
            fates[index] = MaskFate("empty")
        return PanopticMerge(panoptic, [], fates)
    scores, labels = scores[kept], labels[kept]
    weights = scores.to(device)[:, None, None]
    kept_on_device = kept.to(device)

    # First pass: the winning mask of each pixel (0 where its probability is below 0.5), the area
    # of each mask, and the number of pixels it wins, with and without that condition.
    count = len(kept)
    own_area, won, visible = torch.zeros(3, count, dtype=torch.int64, device=device)
    for rows in _strips(mask_logits, 3 * count, max_bytes):
        prob = mask_logits[kept_on_device, rows].float().sigmoid()
        own_area += _areas((prob >= 0.5).float())
        winner = (weights * prob).argmax(dim=0)
        inside = prob.gather(0, winner[None])[0] >= 0.5
        won += torch.bincount(winner.flatten(), minlength=count)
        visible += torch.bincount(winner[inside], minlength=count)
        panoptic[rows] = torch.where(inside, winner + 1, 0).int()

    # Then loop over the masks: at most Q cheap steps on Python numbers.
    segments: list[Segment] = []
    stuff_at: dict[int, int] = {}
    masks_of: list[list[int]] = []  # per segment, positions in `kept`
    counts = torch.stack([own_area, won, visible]).T.tolist()
    queries = kept.tolist()
    masks = zip(counts, labels.tolist(), scores.tolist(), strict=True)
    for index, ((own, wins, area), label, score) in enumerate(masks):
        if area == 0 or wins / own < overlap_threshold:
            fates[queries[index]] = MaskFate("overlap" if own else "empty", 0, own, area)
            continue
        if not is_thing[label] and label in stuff_at:
            first = segments[stuff_at[label]]
            total = first.area + area
            mean = (first.score * first.area + score * area) / total
            segments[stuff_at[label]] = first._replace(score=mean, area=total)
            masks_of[stuff_at[label]].append(index)
            continue
        if not is_thing[label]:
            stuff_at[label] = len(segments)
        segments.append(Segment(0, label, score, area, bool(is_thing[label])))
        masks_of.append([index])

    large: list[Segment] = []
    segment_of = [0] * (count + 1)
    for segment, members in zip(segments, masks_of, strict=True):
        number = 0
        if segment.area >= min_area:
            number = len(large) + 1
            large.append(segment._replace(id=number))
        for place, index in enumerate(members):
            reason = ("merged" if place else "kept") if number else "area"
            own, _, area = counts[index]
            fates[queries[index]] = MaskFate(reason, number, own, area)
            segment_of[index + 1] = number
    lookup = torch.tensor(segment_of, dtype=torch.int32, device=device)
    for rows in _strips(mask_logits, 4, max_bytes):
        panoptic[rows] = lookup[panoptic[rows].long()]
    return PanopticMerge(panoptic, large, fates)


@torch.no_grad()
def confidence_map(
    mask_cls: Tensor, mask_logits: Tensor, fates: Sequence[MaskFate], max_bytes: int = MAX_BYTES
) -> Tensor:
    """Compute by which value each pixel's mask won it in :func:`merge_masks`.

    Args:
        mask_cls: (Q, K + 1) class probabilities, void last.
        mask_logits: (Q, H, W) logits at the size of the result.
        fates: what became of the masks.
        max_bytes: limit of the working memory in bytes; at least one row is processed at a time.

    Returns:
        (H, W) float32, class probability times mask probability; 0 where the map is void.
    """
    out = torch.zeros(mask_logits.shape[-2:], device=mask_logits.device)
    rivals = [i for i, fate in enumerate(fates) if fate.reason not in ("void", "score")]
    if not rivals:
        return out
    weights = mask_cls[rivals].float().max(dim=1).values.to(out)[:, None, None]
    kept = torch.tensor([fates[i].segment > 0 for i in rivals], device=out.device)
    for rows in _strips(mask_logits, 3 * len(rivals), max_bytes):
        prob = mask_logits[rivals, rows].float().sigmoid()
        value, winner = (weights * prob).max(dim=0)
        inside = prob.gather(0, winner[None])[0] >= 0.5
        out[rows] = torch.where(inside & kept[winner], value, 0)
    return out


@torch.no_grad()
def semantic_inference(
    mask_cls: Tensor,
    mask_logits: Tensor,
    max_bytes: int = MAX_BYTES,
    are_probabilities: bool = False,
) -> Tensor:
    """Compute the most probable class of every pixel.

    This is the argmax over k of the sum over q of p(q, k) * m(q, pixel). The void class is left
    out, so every pixel gets a class. The K x H x W scores are never in memory at once.

    Args:
        mask_cls: (Q, K + 1) class probabilities, void last.
        mask_logits: (Q, H, W) logits at the size of the result.
        max_bytes: limit of the working memory in bytes; at least one row is processed at a time.
        are_probabilities: whether ``mask_logits`` are probabilities already, see
            :func:`resize_masks`.

    Returns:
        (H, W) int32 class indices.

    Raises:
        ValueError: the shapes do not match.
    """
    num_classes = _check(mask_cls, mask_logits)
    device = mask_logits.device
    out = torch.zeros(mask_logits.shape[-2:], dtype=torch.int32, device=device)
    probs = mask_cls[:, :-1].float().to(device)
    width = out.shape[1]
    with full_precision(mask_logits):
        for rows in _strips(mask_logits, num_classes + 2 * len(mask_logits), max_bytes):
            masks = mask_logits[:, rows].float()
            masks = (masks if are_probabilities else masks.sigmoid()).flatten(1)
            # Pixels come first so that the argmax reads contiguous memory: twice as fast.
            out[rows] = (masks.T @ probs).argmax(dim=1).view(-1, width).int()
    return out


def _boxes(masks: Tensor) -> Tensor:
    """Boxes (N, 4) float32 xyxy of masks (N, H, W), right and bottom exclusive; 0 if empty."""

    def first_and_end(hit: Tensor) -> tuple[Tensor, Tensor]:
        first = hit.int().argmax(dim=1)
        end = hit.shape[1] - hit.flip(1).int().argmax(dim=1)
        return first, torch.where(hit.any(dim=1), end, 0)

    left, right = first_and_end(masks.any(dim=1))
    top, bottom = first_and_end(masks.any(dim=2))
    return torch.stack([left, top, right, bottom], dim=1).float()


@torch.no_grad()
def instance_inference(
    mask_cls: Tensor,
    mask_logits: Tensor,
    is_thing: Sequence[bool],
    topk: int = 100,
    max_bytes: int = MAX_BYTES,
    quality: str = "probability",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the instances of thing classes, which may overlap.

    First, the ``topk`` best (mask, class) pairs are selected. Then pairs with stuff classes are
    dropped, so fewer than ``topk`` instances may remain. The score is the class probability times
    the mean probability, or the mean logit, of the mask's pixels.

    Args:
        mask_cls: (Q, K + 1) class probabilities, void last.
        mask_logits: (Q, H, W) logits at the size of the result.
        is_thing: K flags.
        topk: number of pairs to select.
        max_bytes: limit of the working memory in bytes; at least one mask is processed at a time.
        quality: ``probability``, or ``logit`` as in OVRCOAT, whose scores exceed 1.

    Returns:
        Scores (N,) float32 in descending order, labels (N,) int64, masks (N, H, W) bool (logit
        above 0), and boxes (N, 4) float32 xyxy in pixels. Right and bottom edges are exclusive;
        the box of an empty mask is all zeros.

    Raises:
        ValueError: the shapes do not match.
    """
    num_classes = _check(mask_cls, mask_logits, is_thing)
    device = mask_logits.device
    height, width = mask_logits.shape[-2:]
    pairs = mask_cls[:, :-1].float().to(device).flatten()
    scores, index = pairs.topk(min(topk, len(pairs)))
    labels = index % num_classes
    things = torch.as_tensor(is_thing, dtype=torch.bool, device=device)[labels]
    scores, labels, query = scores[things], labels[things], (index // num_classes)[things]

    # A mask may be selected with several classes; process it only once.
    unique, which = query.unique(return_inverse=True)
    masks = torch.zeros(len(unique), height, width, dtype=torch.bool, device=device)
    means = torch.zeros(len(unique), device=device)
    step = max(1, max_bytes // max(1, 12 * height * width))
    for start in range(0, len(unique), step):
        part = slice(start, start + step)
        logits = mask_logits[unique[part]].float()
        masks[part] = logits > 0
        inside = masks[part].float()
        values = logits.sigmoid() if quality == "probability" else logits
        total = (values * inside).sum(dim=(1, 2))
        means[part] = total / (_areas(inside) + 1e-6)
    boxes = _boxes(masks) if masks.numel() else torch.zeros(len(unique), 4, device=device)

    scores, order = (scores * means[which]).sort(descending=True, stable=True)
    which = which[order]
    return scores, labels[order], masks[which], boxes[which]


@torch.no_grad()
def resize_masks(
    mask_logits: Tensor,
    padded_hw: tuple[int, int],
    image_hw: tuple[int, int],
    out_hw: tuple[int, int],
    max_bytes: int = MAX_BYTES,
    probabilities: bool = False,
    sigmoid_first: bool = False,
) -> Tensor:
    """Resize mask logits to the size of the result, in the same steps as the published model.

    The masks are resized to the padded image (bilinear, half-pixel centers), cropped to the image
    without padding, and resized to the result (bilinear).

    With ``probabilities``, the second resize is that of mask probabilities. The class maps of
    :func:`semantic_inference` are sums of these, and resizing is linear, so they then equal class
    maps that are computed at the size of the padded image and resized. The published code of
    FC-CLIP does the latter.

    Args:
        mask_logits: (Q, h, w) logits, usually at a quarter of the padded size.
        padded_hw: height and width of the padded image in pixels.
        image_hw: height and width of the image without padding, which is at the top left.
        out_hw: height and width of the result.
        max_bytes: limit of the working memory in bytes; at least one mask is processed at a time.
        probabilities: see above.
        sigmoid_first: whether probabilities are resized in all steps, as in MaskCLIP++. The logits
            of the result are then at most 16 in absolute value.

    Returns:
        (Q, H, W) float32 logits, or probabilities.

    Raises:
        ValueError: the image is larger than the padded image, or a size is not positive.
    """
    if min(*padded_hw, *image_hw, *out_hw) < 1:
        raise ValueError(f"sizes must be positive: {padded_hw=}, {image_hw=}, {out_hw=}")
    if image_hw[0] > padded_hw[0] or image_hw[1] > padded_hw[1]:
        raise ValueError(f"image {tuple(image_hw)} is larger than its padding {tuple(padded_hw)}")

    def resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
        if tuple(masks.shape[-2:]) == tuple(size):
            return masks
        return F.interpolate(masks[None], size=tuple(size), mode="bilinear", align_corners=False)[0]

    out = mask_logits.new_empty((len(mask_logits), *out_hw), dtype=torch.float32)
    floats = 2 * padded_hw[0] * padded_hw[1] + out_hw[0] * out_hw[1]
    step = max(1, max_bytes // (4 * floats))
    for start in range(0, len(mask_logits), step):
        part = slice(start, start + step)
        values = mask_logits[part].float()
        if sigmoid_first:
            values = values.sigmoid()
        padded = resize(values, padded_hw)
        if probabilities and not sigmoid_first:
            padded = padded.sigmoid()
        out[part] = resize(padded[:, : image_hw[0], : image_hw[1]], out_hw)
    return out.logit_(eps=1e-7) if sigmoid_first and not probabilities else out
