"""Masks as they are kept until the end of an evaluation: run-length codes, some hundred bytes each.

Results come from the model, ground truth from an instance file or from a panoptic map.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_utils

from odise_mm.datasets.base import (
    check_categories,
    index_images,
    malformed_entries,
    read_annotations,
)
from odise_mm.datasets.vocabulary import Vocabulary
from odise_mm.errors import DatasetError
from odise_mm.evaluation.base import check_labels, to_numpy
from odise_mm.evaluation.ground_truth import PanopticTruth, check_size, name_of

Rle = dict[str, Any]
"""COCO's compressed form: ``size`` (height, width) and ``counts`` (bytes)."""


class TruthMask(NamedTuple):
    """One annotated object."""

    label: int
    """Class index."""
    segmentation: Rle | list
    """Also polygons or counts as integers, where they come from a file; see :func:`to_rle`."""
    area: float
    """As the file says, by which COCO tells small from large."""
    is_crowd: bool


class ResultMask(NamedTuple):
    """One object that the model found."""

    label: int
    score: float
    counts: bytes


class MaskRecord(NamedTuple):
    """What is kept of one image."""

    img_id: int | str
    path: str
    """Of the picture; empty where it is not known."""
    size: tuple[int, int]
    """Height and width."""
    results: list[ResultMask]
    """Best first."""
    truths: list[TruthMask] | None
    """None where they are in a file."""


def encode_results(
    sample: Mapping[str, Any], result: Mapping[str, Any], num_classes: int, limit: int | None
) -> tuple[tuple[int, int], list[ResultMask]]:
    """Encode ``pred_instances``, one mask at a time.

    Args:
        sample: for messages.
        result: ``masks`` (N, H, W) bool, ``labels`` and ``scores`` (N,).
        num_classes: of the vocabulary.
        limit: only so many, the best, are kept.

    Returns:
        Height and width, and the masks, best first (in the given order where scores are equal).

    Raises:
        ConfigError: a class that the vocabulary does not have.
        ValueError: a score that is not a number.
    """
    masks, labels, scores = result["masks"], to_numpy(result["labels"]), to_numpy(result["scores"])
    check_labels(sample, labels, num_classes)
    if not np.isfinite(scores).all():
        raise ValueError(f"{name_of(sample)}: a score of the result is not a finite number")
    kept = np.argsort(-scores, kind="stable")[:limit].tolist()
    encoded = [
        ResultMask(int(labels[i]), float(scores[i]), _encode(to_numpy(masks[i]))["counts"])
        for i in kept
    ]
    return tuple(masks.shape[1:]), encoded


def encode_things(truth: PanopticTruth) -> list[TruthMask]:
    """The things of a panoptic map; their area is the number of pixels there."""
    return [
        TruthMask(segment.label, rle, float(mask_utils.area(rle)), segment.is_crowd)
        for segment in truth.segments
        if segment.is_thing
        for rle in [_encode(truth.ids == segment.id)]
    ]


def to_rle(segmentation: Rle | list, size: tuple[int, int]) -> Rle:
    """Any of COCO's forms (polygons, counts as integers or as text) to the compressed one."""
    if isinstance(segmentation, list):
        return mask_utils.merge(mask_utils.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return mask_utils.frPyObjects(segmentation, *size)
    return segmentation


class InstanceFile:
    """Ground truth of an instance annotation file in COCO's format.

    Args:
        path: the JSON file.
        vocabulary: its ``source_names`` are the categories' names; None: all objects are of
            class 0.

    Attributes:
        images: image id -> the file's entry.
        label_of: category id -> class index; categories of which no object is annotated may be
            missing in the vocabulary.
        categories: the file's.

    Raises:
        DatasetError: the file is missing or holds something else, or objects of a category that
            the vocabulary does not have.
    """

    def __init__(self, path: str | os.PathLike, vocabulary: Vocabulary | None) -> None:
        self.path = str(path)
        content = read_annotations(path, "instance")
        self.categories: list[dict] = content["categories"]
        with malformed_entries(self.path):
            if vocabulary is None:
                self.label_of = {category["id"]: 0 for category in self.categories}
            else:
                index_of = {name: index for index, name in enumerate(vocabulary.source_names)}
                self.label_of = {
                    category["id"]: index_of[category["name"]]
                    for category in self.categories
                    if category["name"] in index_of
                }
            self.images = index_images(content["images"], self.path)
            annotations = content["annotations"]
            used = {annotation["category_id"] for annotation in annotations}
            check_categories(used, self.label_of, self.categories, self.path)
            self._truths: dict[Any, list[TruthMask]] = {}
            for one in annotations:
                if not _is_mask(one["segmentation"]):
                    raise DatasetError(
                        f"{self.path}: annotation {one.get('id')} has no mask: neither polygons "
                        "nor run lengths"
                    )
                truth = TruthMask(
                    self.label_of[one["category_id"]],
                    one["segmentation"],
                    one["area"],
                    bool(one.get("iscrowd", 0)),
                )
                self._truths.setdefault(one["image_id"], []).append(truth)

    def check_id(self, img_id: int | str) -> None:
        """Refuse images that the file does not have.

        Raises:
            DatasetError: it does not.
        """
        if img_id not in self.images:
            raise DatasetError(
                f"{self.path}: image id {img_id!r} was evaluated, but is not among the file's "
                f"{len(self.images)} images; ann_file must be of the same data set"
            )

    def truths(self, record: MaskRecord) -> list[TruthMask]:
        """Objects of a record's image.

        Raises:
            DatasetError: it is not in the file, or is of another size there.
        """
        self.check_id(record.img_id)
        with malformed_entries(self.path):
            image = self.images[record.img_id]
            where = f"{self.path}, image id {record.img_id}"
            check_size(where, (image["height"], image["width"]), record.size)
        return self._truths.get(record.img_id, [])


def _is_mask(segmentation: Any) -> bool:
    """Whether pycocotools can read it, which has no message for what it cannot."""
    if isinstance(segmentation, dict):
        return {"size", "counts"} <= segmentation.keys()
    polygons = segmentation if isinstance(segmentation, list) else []
    return bool(polygons) and all(isinstance(one, list) and len(one) >= 4 for one in polygons)


def _encode(mask: np.ndarray) -> Rle:
    return mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
