"""Ground truth of panoptic datasets in training pipelines.

All segments are kept in one map of numbers, so the cost of flips, resizing and crops does not
depend on the number of segments. The masks are made from it on the training device.
"""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform

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
    """Read an image's panoptic PNG file and check it against the image and the annotations.

    Required keys: ``img``, ``img_path``, ``seg_map_path``, ``segments_info``.

    Added keys:

    - ``gt_seg_map`` (H, W) int32: number of the segment; 0 for void and crowd regions.
    - ``gt_segment_labels`` (n,) int64: class indices of the n segments that are not crowd regions,
      in the order of their numbers.

    Numbers are 1, 2, ... without 255, with which mmdet's and mmseg's transforms pad label maps.

    Raises:
        DatasetError: the file is missing or unreadable, its size differs from the image's, or its
            segments differ from the annotated ones.
    """

    def transform(self, results: dict) -> dict:
        """Add the keys listed in the class's docstring."""
        path, segments = results["seg_map_path"], results["segments_info"]
        try:
            ids = read_panoptic_png(path)
        except PanopticFileError as err:
            raise DatasetError(str(err)) from err
        shape = results["img"].shape[:2]
        if ids.shape != shape:
            raise DatasetError(
                f"{path} has {ids.shape[1]} x {ids.shape[0]} pixels, but its image "
                f"{results['img_path']} has {shape[1]} x {shape[0]}; they do not match"
                + turned_hint(ids.shape, shape, results["img_path"])
            )
        results["gt_seg_map"] = _local_numbers(ids, segments, path)
        labels = [segment["label"] for segment in segments if not segment["is_crowd"]]
        results["gt_segment_labels"] = np.array(labels, dtype=np.int64)
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


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
        pixels = np.bincount(numbers.ravel(), minlength=_FILL + 1)
        pixels[[0, _FILL]] = 0
        left = np.flatnonzero(pixels)
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
