"""Masks as they are kept until the end of an evaluation: run-length codes, some hundred bytes each.

Results come from the model, ground truth from an instance file or from a panoptic map.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_utils

from odise_mm.annotations.coco_json import Id
from odise_mm.annotations.ground_truth import PanopticTruth, check_size, name_of
from odise_mm.annotations.json_fields import shown, twin
from odise_mm.annotations.masks import Rle
from odise_mm.annotations.reading import read_annotations
from odise_mm.errors import DatasetError
from odise_mm.evaluation.base import check_labels, to_numpy
from odise_mm.vocabulary import Vocabulary
from odise_mm.vocabulary.categories import label_of_category


class TruthMask(NamedTuple):
    """One annotated object."""

    label: int
    """Class index."""
    segmentation: Rle | list
    """Also polygons or counts as integers, where they come from a file; see ``to_rle``."""
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
    """Of the image; empty where it is not known."""
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
        content = read_annotations(path, "instance", boxes=False)
        self.path = content.path
        self.images = content.images
        self.categories = list(content.categories.values())
        self.label_of = label_of_category(content, vocabulary, complete=False)
        self._truths: dict[Id, list[TruthMask]] = {}
        for one in content.annotations:
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
                f"{self.path}: image id {shown(img_id)} was evaluated, but is not among the file's "
                f"{len(self.images)} images{twin(img_id, self.images)}; ann_file must be of the "
                "same dataset"
            )

    def check_size(self, img_id: Id, size: tuple[int, int]) -> None:
        """Refuse results of another height and width than the file's image.

        Raises:
            DatasetError: they are.
        """
        image = self.images[img_id]
        where = f"{self.path}, image id {shown(img_id)}"
        check_size(where, (image["height"], image["width"]), size)

    def truths(self, record: MaskRecord) -> list[TruthMask]:
        """Objects of a record's image.

        Raises:
            DatasetError: it is not in the file, or is of another size there.
        """
        self.check_id(record.img_id)
        self.check_size(record.img_id, record.size)
        return self._truths.get(record.img_id, [])


def _encode(mask: np.ndarray) -> Rle:
    return mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
