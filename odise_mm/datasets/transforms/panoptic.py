"""Ground truth of panoptic datasets in training pipelines.

All segments are kept in one map of numbers, so the cost of flips, resizing and crops does not
depend on the number of segments. The masks are made from it on the training device.
"""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform
from pycocotools import mask as mask_utils

from odise_mm.annotations.ground_truth import count_values
from odise_mm.annotations.label_maps import class_indices, read_label_map
from odise_mm.annotations.masks import to_rle
from odise_mm.annotations.panoptic_io import read_panoptic_png
from odise_mm.datasets.segment_masks import SegmentMasks
from odise_mm.errors import DatasetError, PanopticFileError
from odise_mm.registry import TRANSFORMS
from odise_mm.utils.image import turned_hint
from odise_mm.utils.settings import check_whole

_FILL = 255
"""Value with which mmdet's and mmseg's transforms pad label maps by default."""


@TRANSFORMS.register_module()
class LoadPanopticMap(BaseTransform):
    """Read the segments of an image as one map of numbers, from any of the three datasets.

    Required keys: ``img``, ``img_path``, and what the dataset gives:

    - ``seg_map_path`` and ``segments_info`` of a ``PanopticDataset``. The PNG file is checked
      against the image and the annotations.
    - ``instances`` of an ``InstanceDataset``. Where masks overlap, the smaller one is on top, and
      crowd regions are below all others. Instances without a visible pixel are left out. Pixels
      outside the masks are unlabeled.
    - ``sem_seg_path`` of a ``SemanticDataset``. Every class of the image is one segment, of things,
      too. Ignored pixels are unlabeled.

    Added keys:

    - ``gt_seg_map`` (H, W) int32: number of the segment; 0 for void and crowd regions.
    - ``gt_segment_labels`` (n,) int64: class indices of the n segments that are not crowd regions,
      in the order of their numbers.

    Numbers are 1, 2, ... without 255, with which mmdet's and mmseg's transforms pad label maps.

    Raises:
        DatasetError: the file is missing or unreadable, its size differs from the image's, its
            segments differ from the annotated ones, or the dataset gives no annotations.
    """

    def transform(self, results: dict) -> dict:
        """Add the keys listed in the class's docstring."""
        if "seg_map_path" in results and "segments_info" in results:
            path, segments = results["seg_map_path"], results["segments_info"]
            try:
                ids = read_panoptic_png(path)
            except PanopticFileError as err:
                raise DatasetError(str(err)) from err
            _check_shape(path, ids, results)
            numbers = _local_numbers(ids, segments, path)
            labels = [segment["label"] for segment in segments if not segment["is_crowd"]]
        elif "instances" in results:
            numbers, labels = _draw_instances(results)
        elif "sem_seg_path" in results:
            numbers, labels = _read_classes(results)
        else:
            raise DatasetError(
                f"{results.get('img_path')}: the dataset gives no annotations to train on; use a "
                "PanopticDataset, an InstanceDataset or a SemanticDataset"
            )
        results["gt_seg_map"] = numbers
        results["gt_segment_labels"] = np.array(labels, dtype=np.int64)
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def _check_shape(path: str, found: np.ndarray, results: dict) -> None:
    shape = results["img"].shape[:2]
    if found.shape != shape:
        raise DatasetError(
            f"{path} has {found.shape[1]} x {found.shape[0]} pixels, but its image "
            f"{results['img_path']} has {shape[1]} x {shape[0]}; they do not match"
            + turned_hint(found.shape, shape, results["img_path"])
        )


def _draw_instances(results: dict) -> tuple[np.ndarray, list[int]]:
    """Draw the masks of mmdet's ``instances`` into a map, small ones on top of large ones.

    Returns:
        (H, W) int32 of local numbers, and the class indices in the order of the numbers.
    """
    instances, shape = results["instances"], results["img"].shape[:2]
    annotated = results["height"], results["width"]
    if annotated != shape:
        raise DatasetError(
            f"{results['img_path']} has {shape[1]} x {shape[0]} pixels, but its annotations are "
            f"for {annotated[1]} x {annotated[0]}; they do not match"
        )
    masks = [mask_utils.decode(to_rle(one["mask"], shape)).astype(bool) for one in instances]
    order = sorted(
        range(len(masks)), key=lambda i: (not instances[i]["ignore_flag"], -masks[i].sum())
    )
    drawn = np.zeros(shape, dtype=np.int32)
    for index in order:
        drawn[masks[index]] = 0 if instances[index]["ignore_flag"] else index + 1
    visible = np.unique(drawn[drawn > 0])
    return _renumbered(drawn, visible), [instances[i - 1]["bbox_label"] for i in visible]


def _read_classes(results: dict) -> tuple[np.ndarray, list[int]]:
    path = results["sem_seg_path"]
    classes = class_indices(
        read_label_map(path),
        path,
        results["num_classes"],
        bool(results.get("reduce_zero_label")),
    )
    _check_shape(path, classes, results)
    present = np.unique(classes[classes >= 0])
    return _renumbered(classes, present), present.tolist()


def _renumbered(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return a map with 1, 2, ... without 255 for the ascending ``chosen`` values, else 0."""
    places = np.arange(1, len(chosen) + 1, dtype=np.int32)
    numbers = np.append(places + (places >= _FILL), 0).astype(np.int32)
    rank = np.searchsorted(chosen, values)
    known = np.append(chosen, -1)[rank] == values
    return np.where(known, numbers[rank], 0).astype(np.int32)


def _local_numbers(ids: np.ndarray, segments: list[dict], path: str) -> np.ndarray:
    """Convert a map of segment ids (H, W) to numbers, see :class:`LoadPanopticMap`.

    Raises:
        DatasetError: the segments differ from the annotated ones.
    """
    known = np.array([0, *(segment["id"] for segment in segments)], dtype=np.int32)
    order = np.argsort(known)
    # Ids are looked up once for each horizontal run of equal pixels, not for each pixel.
    flat = ids.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[:1] - 1))
    lengths = np.diff(starts, append=flat.size)
    run_ids = flat[starts]
    place = np.searchsorted(known[order], run_ids)
    rank = order[np.minimum(place, len(known) - 1)].astype(np.int32)  # 0: void, i + 1: segments[i]
    unknown = run_ids[known[rank] != run_ids]
    if unknown.size:
        raise DatasetError(
            f"{path} has a segment with id {unknown[0]} ({(ids == unknown[0]).sum()} pixels), "
            "which is missing from `segments_info` of its annotation"
        )
    pixels = np.bincount(rank, weights=lengths, minlength=len(known))
    for segment, count in zip(segments, pixels[1:], strict=True):
        if count == 0:
            raise DatasetError(
                f"{path} has no pixels of segment {segment['id']}, which its annotation lists"
            )
    numbers = np.zeros(len(known), dtype=np.int32)
    shown = [i for i, segment in enumerate(segments, start=1) if not segment["is_crowd"]]
    places = np.arange(1, len(shown) + 1)
    numbers[shown] = places + (places >= _FILL)
    return np.repeat(numbers[rank], lengths).reshape(ids.shape)


@TRANSFORMS.register_module()
class PanopticMapToMasks(BaseTransform):
    """Split the map of segments into one mask per segment.

    Required keys, which are removed: ``gt_seg_map`` and ``gt_segment_labels`` of
    :class:`LoadPanopticMap`. Pixels with the values 0 and 255 belong to no segment.

    Added keys:

    - ``gt_masks``: :class:`~odise_mm.datasets.segment_masks.SegmentMasks` of the N segments that
      have pixels left, both things and stuff, in the order of their numbers.
    - ``gt_bboxes_labels`` (N,) int64: their class indices.
    """

    def transform(self, results: dict) -> dict:
        """Replace the map by the keys listed in the class's docstring."""
        numbers, labels = results.pop("gt_seg_map"), results.pop("gt_segment_labels")
        found, _ = count_values(numbers)
        left = found[(found != 0) & (found != _FILL)]
        results["gt_masks"] = SegmentMasks(numbers, left)
        results["gt_bboxes_labels"] = labels[left - 1 - (left > _FILL)]
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@TRANSFORMS.register_module()
class DrawWords(BaseTransform):
    """Draw random words of an image for caption supervision.

    Draws one caption at random, and then ``num_words`` of its noun phrases with replacement
    (ODISE, arXiv 2303.04803, section 3.4: K_word phrases per image-caption pair).

    Optional keys: ``captions_phrases`` and ``captions`` of the dataset.

    Added key: ``words``, a list of ``num_words`` strings; empty if the image has no captions or
    the drawn caption has no noun phrases. If there are ``captions``, ``caption`` is set to the
    drawn one.

    Args:
        num_words: number of words to draw.
    """

    def __init__(self, num_words: int = 8) -> None:
        check_whole("num_words", num_words)
        self.num_words = num_words

    def transform(self, results: dict) -> dict:
        """Draw a caption and its words."""
        of_captions, captions = results.get("captions_phrases"), results.get("captions")
        count = len(of_captions or captions or ())
        place = np.random.randint(count) if count else 0
        if captions:
            results["caption"] = captions[place]
        phrases = of_captions[place] if of_captions else []
        drawn = np.random.randint(len(phrases), size=self.num_words) if phrases else []
        results["words"] = [phrases[i] for i in drawn]
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_words={self.num_words})"
