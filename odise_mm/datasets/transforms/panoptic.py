"""Ground truth of panoptic datasets in training pipelines.

All segments travel as one map of numbers, so that flips, resizing and crops cost the same however
many there are; one mask per segment is made at the end, of what is left.
"""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.structures.mask import BitmapMasks

from odise_mm.annotations.panoptic_io import read_panoptic_png
from odise_mm.errors import DatasetError, PanopticFileError
from odise_mm.registry import TRANSFORMS
from odise_mm.utils.image import turned_hint
from odise_mm.utils.settings import check_whole

_FILL = 255
"""What mmdet's and mmseg's transforms fill maps with beyond an image's borders, unless told."""


@TRANSFORMS.register_module()
class LoadPanopticMap(BaseTransform):
    """Read an image's panoptic PNG file and compare it with the image and the annotations.

    Required keys: ``img``, ``img_path``, ``seg_map_path``, ``segments_info``.

    Added keys: ``gt_seg_map`` (H, W) int32: 0 where there is nothing or a crowd region, else the
    segment's number; ``gt_segment_labels`` (n,) int64: class indices of the n segments that are no
    crowd regions, in order of their numbers. Numbers are 1, 2, ... without 255, which mmdet's and
    mmseg's transforms fill maps with.

    Raises:
        DatasetError: the file is missing or unreadable, has another size than the image, a segment
            that the annotations lack, or lacks one of theirs.
    """

    def transform(self, results: dict) -> dict:
        path, segments = results["seg_map_path"], results["segments_info"]
        try:
            ids = read_panoptic_png(path)
        except PanopticFileError as err:
            raise DatasetError(str(err)) from err
        shape = results["img"].shape[:2]
        if ids.shape != shape:
            raise DatasetError(
                f"{path} is {ids.shape[1]} x {ids.shape[0]} pixels, its image "
                f"{results['img_path']} {shape[1]} x {shape[0]}; they do not belong together"
                + turned_hint(ids.shape, shape, results["img_path"])
            )
        results["gt_seg_map"] = _local_numbers(ids, segments, path)
        labels = [segment["label"] for segment in segments if not segment["is_crowd"]]
        results["gt_segment_labels"] = np.array(labels, dtype=np.int64)
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def _local_numbers(ids: np.ndarray, segments: list[dict], path: str) -> np.ndarray:
    """Segment ids (H, W) as numbers, see :class:`LoadPanopticMap`."""
    known = np.array([0, *(segment["id"] for segment in segments)], dtype=np.int32)
    order = np.argsort(known)
    place = np.searchsorted(known[order], ids)
    rank = order[np.minimum(place, len(known) - 1)].astype(np.int32)  # 0 void, else 1 + in the list
    strange = ids[known[rank] != ids]
    if strange.size:
        raise DatasetError(
            f"{path} has a segment of id {strange[0]} ({(ids == strange[0]).sum()} pixels), which "
            "`segments_info` of its annotation lacks"
        )
    pixels = np.bincount(rank.ravel(), minlength=len(known))
    for segment, count in zip(segments, pixels[1:], strict=True):
        if count == 0:
            raise DatasetError(
                f"{path} has no pixel of segment {segment['id']}, which its annotation lists"
            )
    numbers = np.zeros(len(known), dtype=np.int32)
    shown = [i for i, segment in enumerate(segments, start=1) if not segment["is_crowd"]]
    places = np.arange(1, len(shown) + 1)
    numbers[shown] = places + (places >= _FILL)
    return numbers[rank]


@TRANSFORMS.register_module()
class PanopticMapToMasks(BaseTransform):
    """One mask per segment of what flips, resizing and crops left of the map.

    Required keys: ``gt_seg_map`` and ``gt_segment_labels`` of :class:`LoadPanopticMap`; they are
    removed. Pixels of 0 and of 255 have no segment.

    Added keys: ``gt_masks`` (``BitmapMasks`` of the N segments with a pixel left; things and
    stuff, in the order of their numbers) and ``gt_bboxes_labels`` (N,) int64.
    """

    def transform(self, results: dict) -> dict:
        numbers, labels = results.pop("gt_seg_map"), results.pop("gt_segment_labels")
        pixels = np.bincount(numbers.ravel(), minlength=_FILL + 1)
        pixels[[0, _FILL]] = 0
        left = np.flatnonzero(pixels)
        masks = np.empty((len(left), *numbers.shape), dtype=np.uint8)
        for mask, number in zip(masks, left, strict=True):
            np.equal(numbers, number, out=mask.view(np.bool_))
        results["gt_masks"] = BitmapMasks(masks, *numbers.shape)
        results["gt_bboxes_labels"] = labels[left - 1 - (left > _FILL)]
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@TRANSFORMS.register_module()
class DrawWords(BaseTransform):
    """Words of an image for caption supervision, other ones every time.

    One caption is drawn at random and from its noun phrases, with replacement, ``num_words`` words
    (ODISE, arXiv 2303.04803, section 3.4: K_word phrases per image-caption pair).

    Optional keys: ``captions_phrases`` and ``captions`` of the dataset.

    Added key: ``words``: ``num_words`` texts; none if the image has no caption, or the drawn
    caption no noun phrase. Modified key, where there are ``captions``: ``caption``, the drawn one.
    """

    def __init__(self, num_words: int = 8) -> None:
        check_whole("num_words", num_words)
        self.num_words = num_words

    def transform(self, results: dict) -> dict:
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
