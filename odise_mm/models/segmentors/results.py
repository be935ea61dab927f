"""Outputs of a segmentor, and how they are written into data samples."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from odise_mm.models.classifiers.base import ClassPrediction
from odise_mm.models.classifiers.region_memory import RegionMemory
from odise_mm.models.heads.mask2former_head import Frame, MaskPrediction
from odise_mm.models.postprocess import (
    instance_inference,
    merge_masks,
    resize_masks,
    semantic_inference,
)
from odise_mm.structures import Evidence, Segment
from odise_mm.structures.queries import MaskFate
from odise_mm.vocabulary import Vocabulary


class SegmentedImages(NamedTuple):
    """Masks and class predictions of B images of one padded size, before the ensemble.

    Attributes:
        places: indices of the B images in the batch of the call.
        prediction: output of the head or of a mask source: mask logits of the padded images,
            (B, Q, H / 4, W / 4) or as ``prediction.frames`` say, and mask embeddings, (B, Q, C).
        class_predictions: output of every classifier: ``logits`` (B, Q, K) and optionally
            ``p_void`` (B, Q).
        vocabulary: the K classes.
    """

    places: list[int]
    prediction: MaskPrediction
    class_predictions: list[ClassPrediction]
    vocabulary: Vocabulary


def cropped(
    inputs: Tensor, data_samples: Sequence[DetDataSample] | None, shape: str
) -> list[Tensor]:
    """Return the images of a batch without padding, or without that of other images.

    Args:
        inputs: (B, 3, H, W), padded at bottom and right.
        data_samples: samples of the batch; None if no image is padded.
        shape: ``img_shape`` for images without padding; ``pad_shape`` for images with their own.
    """
    if data_samples is None:
        return list(inputs)
    sizes = [sample.metainfo[shape][:2] for sample in data_samples]
    return [image[:, :h, :w] for image, (h, w) in zip(inputs, sizes, strict=True)]


def write_results(
    found: SegmentedImages,
    probabilities: Tensor,
    data_samples: Sequence[DetDataSample],
    test_cfg: Mapping[str, Any],
) -> list[list[MaskFate]]:
    """Call :func:`add_results` for all images segmented together, at their ``ori_shape``.

    Args:
        found: masks of B images.
        probabilities: probabilities of the K classes and void, (B, Q, K + 1).
        data_samples: samples of the whole batch.
        test_cfg: see :func:`add_results`.

    Returns:
        For every image of ``found``, what became of its masks.
    """
    samples = [data_samples[place] for place in found.places]
    fates = []
    for sample, frame, masks, scores in zip(
        samples, frames_of(found, samples), found.prediction.masks, probabilities, strict=True
    ):
        masks = resize_for_results(masks, frame, sample.ori_shape[:2], test_cfg)
        fates.append(add_results(sample, masks, scores, found.vocabulary, test_cfg))
    return fates


def frames_of(found: SegmentedImages, samples: Sequence[DetDataSample]) -> Sequence[Frame]:
    """Return the areas that the masks of segmented images cover; ``samples`` are theirs."""
    return found.prediction.frames or [Frame(s.pad_shape[:2], s.img_shape[:2]) for s in samples]


def resize_for_results(
    masks: Tensor, frame: Frame, size: tuple[int, int], test_cfg: Mapping[str, Any]
) -> Tensor:
    """Resize one image's masks for :func:`add_results`.

    Args:
        masks: mask logits, (Q, h, w).
        frame: area that the masks cover.
        size: height and width of the result.
        test_cfg: all settings of the segmentor.

    Returns:
        (Q, H, W) float32.
    """
    probabilities = _class_maps_are_resized(test_cfg)
    sigmoid_first = test_cfg["mask_resize"] == "probability"
    return resize_masks(
        masks.float(), *frame, size, probabilities=probabilities, sigmoid_first=sigmoid_first
    )


def _class_maps_are_resized(test_cfg: Mapping[str, Any]) -> bool:
    """Return whether masks at the size of the result are probabilities, not logits.

    FC-CLIP's code resizes class maps only if neither of the other two results is computed.
    """
    alone = not (test_cfg["panoptic"] or test_cfg["instance"])
    return alone and test_cfg["semantic_resize"] == "class_maps"


def add_results(
    sample: DetDataSample,
    masks: Tensor,
    scores: Tensor,
    vocabulary: Vocabulary,
    test_cfg: Mapping[str, Any],
) -> list[MaskFate]:
    """Write one image's results into its sample.

    The results are:

    - ``pred_panoptic_seg``: ``sem_seg``, (1, H, W) int32 segment ids, 0 for void, and
      ``segments_info`` in its metainfo.
    - ``pred_sem_seg``: ``sem_seg``, (1, H, W) class indices.
    - ``pred_instances``: ``masks``, ``labels``, ``scores`` and ``bboxes``.

    Args:
        sample: sample of the image.
        masks: output of :func:`resize_for_results`, (Q, H, W) float32.
        scores: probabilities of the K classes and void, (Q, K + 1).
        vocabulary: the K classes.
        test_cfg: all settings of the segmentor.

    Returns:
        What became of each mask in the panoptic map; empty if it is not computed.
    """
    fates: list[MaskFate] = []
    names, is_thing = vocabulary.names, vocabulary.is_thing
    if test_cfg["panoptic"]:
        ids, segments, fates = merge_masks(
            scores,
            masks,
            is_thing,
            test_cfg["overlap_threshold"],
            score_threshold=test_cfg["score_threshold"],
            min_area=test_cfg["min_area"],
        )
        info = [
            Segment(name=names[segment.label], **segment._asdict()).to_info()
            for segment in segments
        ]
        sample.pred_panoptic_seg = PixelData(sem_seg=ids[None], metainfo=dict(segments_info=info))
    if test_cfg["semantic"]:
        probabilities = _class_maps_are_resized(test_cfg)
        semantic = semantic_inference(scores, masks, are_probabilities=probabilities)
        sample.pred_sem_seg = PixelData(sem_seg=semantic[None])
    if test_cfg["instance"]:
        values, labels, binary, boxes = instance_inference(
            scores,
            masks,
            is_thing,
            test_cfg["topk"],
            quality=test_cfg["instance_quality"],
        )
        sample.pred_instances = InstanceData(
            scores=values, labels=labels, masks=binary, bboxes=boxes
        )
    return fates


def add_evidence(
    sample: DetDataSample,
    predictions: Sequence[ClassPrediction],
    fates: Sequence[MaskFate],
    memory: RegionMemory,
    index: int,
    count: int = 3,
) -> None:
    """Add the most similar regions of a memory to the segments of a sample.

    Args:
        sample: sample with ``pred_panoptic_seg``; nothing is done without it.
        predictions: of a batch, one of them with ``neighbors``.
        fates: what became of the image's masks. Of merged masks, the largest counts.
        memory: where the neighbors are from. Regions that were removed meanwhile are left out.
        index: of the image in the batch.
        count: number of regions per segment.
    """
    found = next((each for each in predictions if each.neighbors is not None), None)
    if found is None or "pred_panoptic_seg" not in sample:
        return
    largest: dict[int, tuple[int, int]] = {}
    for query, fate in enumerate(fates):
        if fate.segment:
            largest[fate.segment] = max(largest.get(fate.segment, (-1, 0)), (fate.pixels, query))
    for info in sample.pred_panoptic_seg.metainfo["segments_info"]:
        query = largest[info["id"]][1]
        regions = evidence_of(
            found.neighbors[index, query, :count], found.similarities[index, query, :count], memory
        )
        info["evidence"] = [asdict(region) for region in regions]


def evidence_of(ids: Tensor, similarities: Tensor, memory: RegionMemory) -> list[Evidence]:
    """Return regions of a memory by their ids, (N,), without those that were removed."""
    found = []
    for id_, similarity in zip(ids.tolist(), similarities.tolist(), strict=True):
        region = memory.get(id_)
        if region is not None:
            picture = memory.picture(id_)
            found.append(
                Evidence(region.name, similarity, region.image, region.box, region.id, picture)
            )
    return found


def check_finite(tensors: Sequence[Tensor], precision: str) -> None:
    """Check that masks and probabilities are finite.

    Raises:
        FloatingPointError: a tensor contains NaN or infinity.
    """
    if not all(tensor.is_meta or torch.isfinite(tensor).all() for tensor in tensors):
        raise FloatingPointError(
            f"the model's masks are not finite numbers at precision {precision}: "
            "the weights are broken, or float16 overflowed (use bf16 or fp32)"
        )
