"""Results in the data types of other libraries. The methods of ``SegmentationResult`` call this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from odise_mm.structures.geometry import box_of, encode_mask

if TYPE_CHECKING:
    import fiftyone
    import supervision
    from mmdet.structures import DetDataSample

    from odise_mm.structures.result import SegmentationResult


def to_coco(
    result: SegmentationResult,
    image_id: int,
    category_ids: Sequence[int] | None,
    first_id: int,
) -> list[dict[str, Any]]:
    """See :meth:`SegmentationResult.to_coco`."""
    result.require_panoptic()  # otherwise a result without a map seems to have no segments
    annotations: list[dict[str, Any]] = []
    if category_ids is not None and len(category_ids) != len(result.class_names):
        raise ValueError(
            f"category_ids has {len(category_ids)} ids, but the vocabulary has "
            f"{len(result.class_names)} classes; pass one id per class"
        )
    for segment in result.segments:
        mask = result.mask(segment)
        if not mask.any():
            continue
        encoded = encode_mask(mask)
        left, top, right, bottom = box_of(mask)
        label = segment.label
        annotations.append(
            dict(
                id=first_id + len(annotations),
                image_id=image_id,
                category_id=label + 1 if category_ids is None else category_ids[label],
                segmentation=dict(size=encoded["size"], counts=encoded["counts"].decode()),
                area=int(mask.sum()),
                bbox=[left, top, right - left, bottom - top],
                iscrowd=0,
                score=segment.score,
            )
        )
        if segment.track_id is not None:
            annotations[-1]["track_id"] = segment.track_id
    return annotations


def to_supervision(result: SegmentationResult) -> supervision.Detections:
    """See :meth:`SegmentationResult.to_supervision`."""
    try:
        import supervision
    except ImportError as error:
        raise ImportError(
            f"supervision is not installed ({error}): pip install supervision"
        ) from error

    result.require_panoptic()  # otherwise a result without a map seems to have no segments
    segments = [segment for segment in result.segments if result.mask(segment).any()]
    if not segments:
        return supervision.Detections.empty()
    masks = np.stack([result.mask(segment) for segment in segments])
    tracks = [segment.track_id for segment in segments]
    return supervision.Detections(
        xyxy=np.array([box_of(mask) for mask in masks], np.float32),
        mask=masks,
        confidence=np.array([segment.score for segment in segments], np.float32),
        class_id=np.array([segment.label for segment in segments]),
        tracker_id=None if None in tracks else np.array(tracks),
        data=dict(
            class_name=np.array([segment.name for segment in segments]),
            is_thing=np.array([segment.is_thing for segment in segments]),
            segment_id=np.array([segment.id for segment in segments]),
        ),
    )


def to_fiftyone(result: SegmentationResult) -> fiftyone.Detections:
    """See :meth:`SegmentationResult.to_fiftyone`."""
    try:
        import fiftyone
    except ImportError as error:
        raise ImportError(f"fiftyone is not installed ({error}): pip install fiftyone") from error

    height, width = result.require_panoptic().shape
    detections = []
    for segment in result.segments:
        mask = result.mask(segment)
        if not mask.any():
            continue
        left, top, right, bottom = box_of(mask)
        detection = fiftyone.Detection(
            label=segment.name,
            bounding_box=[
                left / width,
                top / height,
                (right - left) / width,
                (bottom - top) / height,
            ],
            mask=np.ascontiguousarray(mask[top:bottom, left:right]),
            confidence=segment.score,
            index=segment.track_id,
            segment_id=segment.id,
            is_thing=segment.is_thing,
        )
        detections.append(detection)
    return fiftyone.Detections(detections=detections)


def to_transformers(result: SegmentationResult) -> dict[str, Any]:
    """See :meth:`SegmentationResult.to_transformers`."""
    import torch

    ids = result.require_panoptic()
    segments = [
        dict(
            id=segment.id,
            label_id=segment.label,
            was_fused=not segment.is_thing,
            score=segment.score,
        )
        for segment in result.segments
    ]
    return dict(segmentation=torch.from_numpy(ids.copy()), segments_info=segments)


def to_detsample(result: SegmentationResult) -> DetDataSample:
    """See :meth:`SegmentationResult.to_detsample`."""
    import torch
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData, PixelData

    shape = (result.height, result.width)
    sample = DetDataSample(
        metainfo=dict(img_path=result.image_path, img_shape=shape, ori_shape=shape)
    )
    if result.panoptic is not None:
        info = [segment.to_info() for segment in result.segments]
        sample.pred_panoptic_seg = PixelData(
            sem_seg=torch.from_numpy(result.panoptic[None].copy()),
            metainfo=dict(segments_info=info),
        )
    if result.semantic is not None:
        sample.pred_sem_seg = PixelData(sem_seg=torch.from_numpy(result.semantic[None].copy()))
    if result.instances is not None:
        found = result.instances
        sample.pred_instances = InstanceData(
            scores=torch.from_numpy(found.scores.copy()),
            labels=torch.from_numpy(found.labels.copy()),
            bboxes=torch.from_numpy(found.boxes.copy()),
            masks=torch.from_numpy(found.masks.copy()),
        )
    return sample
