"""Results in the data types of other libraries, and the geometry of segments."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
import supervision
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from transformers import MaskFormerImageProcessor
from transformers.models.maskformer.modeling_maskformer import (
    MaskFormerForInstanceSegmentationOutput,
)

from odise_mm.structures import Instances, Segment, SegmentationResult


@pytest.fixture
def result() -> SegmentationResult:
    """A ring with a separate dot (thing), stuff, void, and a segment without pixels."""
    ids = np.zeros((40, 60), np.int32)
    cv2.circle(ids, (20, 20), 12, 7, -1)
    cv2.circle(ids, (20, 20), 5, 0, -1)
    ids[3:5, 50:53] = 7
    ids[34:, :] = 2
    segments = [
        Segment(7, 1, "ring", 0.75, int((ids == 7).sum()), True),
        Segment(2, 0, "<sand>", 0.5, int((ids == 2).sum()), False),
        Segment(9, 2, "cat", 0.4, 0, True),
    ]
    instances = Instances.pack(
        labels=np.array([1, 1, 2]),
        scores=np.array([0.9, 0.5, 0.1], np.float32),
        boxes=np.array([[8, 3, 53, 33]] * 3, np.float32),
        masks=np.stack([ids == 7, ids == 2, ids == 9]),
    )
    return SegmentationResult(
        None, "a.jpg", 40, 60, ids, segments, ids // 7, instances, ("sand", "ring", "cat")
    )


def test_coco_annotations_are_read_by_pycocotools(result: SegmentationResult) -> None:
    annotations = result.to_coco(image_id=5, category_ids=[10, 20, 30], first_id=100)
    assert [a["id"] for a in annotations] == [100, 101]  # a segment without pixels has no mask
    reader = COCO()
    reader.dataset = dict(
        images=[dict(id=5, height=40, width=60)],
        annotations=annotations,
        categories=[dict(id=i, name=str(i)) for i in (10, 20, 30)],
    )
    reader.createIndex()
    for annotation, segment in zip(reader.loadAnns([100, 101]), result.segments, strict=False):
        mask = reader.annToMask(annotation).astype(bool)
        assert np.array_equal(mask, result.mask(segment))
        assert annotation["area"] == segment.area == coco_mask.area(annotation["segmentation"])
        assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
    assert [a["category_id"] for a in annotations] == [20, 10]
    assert [a["category_id"] for a in result.to_coco()] == [2, 1]


def test_supervision_computes_the_same_boxes_and_areas(result: SegmentationResult) -> None:
    detections = result.to_supervision()
    assert detections["class_name"].tolist() == ["ring", "<sand>"]
    assert detections.area.tolist() == [segment.area for segment in result.segments[:2]]
    # supervision counts the last pixel as the edge of a box.
    corners = supervision.mask_to_xyxy(detections.mask) + np.array([0, 0, 1, 1])
    assert np.array_equal(detections.xyxy, corners)
    assert detections.confidence.tolist() == [0.75, 0.5] and detections.class_id.tolist() == [1, 0]
    assert len(SegmentationResult(panoptic=np.zeros((4, 5), np.int32)).to_supervision()) == 0


def test_fiftyone_draws_the_same_masks(result: SegmentationResult) -> None:
    """fiftyone (1 GB) is not among the test requirements; last run with 1.22.1."""
    pytest.importorskip("fiftyone")
    detections = result.to_fiftyone().detections
    assert [d.label for d in detections] == ["ring", "<sand>"]
    for detection, segment in zip(detections, result.segments, strict=False):
        drawn = detection.to_segmentation(frame_size=(60, 40), target=1).get_mask()
        assert np.array_equal(drawn > 0, result.mask(segment))
        assert (detection.confidence, detection.segment_id) == (segment.score, segment.id)


def test_without_fiftyone(result: SegmentationResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(ImportError, match="pip install fiftyone"):
        result.to_fiftyone()


def test_transformers_form_has_the_fields_of_transformers(result: SegmentationResult) -> None:
    logits = torch.tensor([[[9.0, 0.0, 0.0]]])
    outputs = MaskFormerForInstanceSegmentationOutput(
        class_queries_logits=logits, masks_queries_logits=torch.ones(1, 1, 4, 4)
    )
    (theirs,) = MaskFormerImageProcessor().post_process_panoptic_segmentation(outputs)
    ours = result.to_transformers()
    assert ours.keys() == theirs.keys()
    assert ours["segments_info"][0].keys() == theirs["segments_info"][0].keys()
    assert ours["segmentation"].dtype == theirs["segmentation"].dtype == torch.int32
    assert np.array_equal(ours["segmentation"], result.panoptic)
    assert [segment["was_fused"] for segment in ours["segments_info"]] == [False, True, False]


def test_sample_of_mmdet_and_back(result: SegmentationResult) -> None:
    back = SegmentationResult.from_sample(
        result.to_detsample(), result.class_names, height=40, width=60
    )
    assert np.array_equal(back.panoptic, result.panoptic) and back.segments == result.segments
    assert np.array_equal(back.semantic, result.semantic)
    assert np.array_equal(back.instances.masks, result.instances.masks)


def test_outlines_give_the_mask_again(result: SegmentationResult) -> None:
    ring = result.segments[0]
    outlines = result.outlines(ring)
    assert [len(outline.holes) for outline in outlines] in ([0, 1], [1, 0])
    filled = np.zeros((40, 60), np.uint8)
    for outline in outlines:
        cv2.fillPoly(filled, [outline.exterior], 1)
        for hole in outline.holes:
            cv2.fillPoly(filled, [hole], 0)
            cv2.polylines(filled, [hole], True, 1)
    assert np.array_equal(filled.astype(bool), result.mask(ring))
    parts = result.parts(ring)
    assert [int(part.sum()) for part in parts] == [ring.area - 6, 6]
    assert np.array_equal(parts[0] | parts[1], result.mask(ring))
    assert result.box(ring) == (8, 3, 53, 33)


def test_instances_can_be_chosen(result: SegmentationResult) -> None:
    good = result.instances[result.instances.scores > 0.3]
    assert len(good) == 2 and np.array_equal(good.masks, result.instances.masks[:2])
    assert result.instances[1].scores.tolist() == [0.5]
    assert result.instances[-1].labels.tolist() == [2]
    assert len(result.instances[[]]) == 0 and len(result.instances[:1]) == 1
    assert [len(one) for one in result.instances] == [1, 1, 1]
    assert repr(good) == "Instances(2 masks, best score 0.90)"


def test_short_representations(result: SegmentationResult) -> None:
    assert repr(result) == (
        "SegmentationResult('a.jpg', 60 x 40, 3 segments: ring 0.75, <sand> 0.50, cat 0.40)"
    )
    page = result._repr_html_()
    assert "&lt;sand&gt;" in page and "<sand>" not in page and "<img" not in page
    result.visualization = np.zeros((4, 4, 3), np.uint8)
    assert "data:image/jpeg;base64," in result._repr_html_()
    broken = SegmentationResult(image_name="b.jpg", error=ValueError("not an image"))
    assert repr(broken) == "SegmentationResult('b.jpg', error: not an image)"
    assert "not an image" in broken._repr_html_()


def test_plot_needs_a_drawn_image(result: SegmentationResult) -> None:
    with pytest.raises(ValueError, match="return_vis=True"):
        result.plot()
    result.visualization = np.full((4, 6, 3), (255, 0, 0), np.uint8)
    axes = result.plot()
    (shown,) = axes.get_images()
    assert np.array_equal(shown.get_array()[0, 0], (0, 0, 255))  # RGB
    assert axes.get_title() == "a.jpg"


def test_without_a_map_conversions_raise() -> None:
    empty = SegmentationResult(image_name="c.jpg", segments=[Segment(1, 0, "a", 1.0, 1, True)])
    for convert in (empty.to_coco, empty.to_supervision, empty.to_transformers):
        with pytest.raises(ValueError, match=r"c.jpg: the result has no panoptic map"):
            convert()


def test_a_result_without_a_map_is_not_an_empty_one() -> None:
    failed = SegmentationResult(image_name="a.jpg", error=ValueError("broken"))
    for convert in (failed.to_coco, failed.to_supervision, failed.to_transformers):
        with pytest.raises(ValueError, match="a.jpg: the result has no panoptic map"):
            convert()


def test_every_class_needs_a_category_id(result: SegmentationResult) -> None:
    with pytest.raises(ValueError, match="category_ids has 2 ids, but the vocabulary has 3"):
        result.to_coco(category_ids=[10, 20])
