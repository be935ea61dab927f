"""Masks of results and ground truth, kept as run-length codes of some hundred bytes each.

Results come from the model, ground truth from an instance file or a panoptic map.
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
from odise_mm.structures.geometry import encode_mask
from odise_mm.vocabulary import Vocabulary
from odise_mm.vocabulary.categories import label_of_category


class TruthMask(NamedTuple):
    """One annotated object."""

    label: int
    """Class index."""
    segmentation: Rle | list
    """From a file, it can also be polygons or uncompressed counts, see ``to_rle``."""
    area: float
    """Annotated area; COCO uses it to distinguish small and large objects."""
    is_crowd: bool


class ResultMask(NamedTuple):
    """One predicted object."""

    label: int
    score: float
    counts: bytes


class MaskRecord(NamedTuple):
    """Masks of one image."""

    img_id: int | str
    path: str
    """Path of the image; empty if it is unknown."""
    size: tuple[int, int]
    """Height and width."""
    results: list[ResultMask]
    """Highest score first."""
    truths: list[TruthMask] | None
    """None if they are in a file."""


def encode_results(
    sample: Mapping[str, Any], result: Mapping[str, Any], num_classes: int, limit: int | None
) -> tuple[tuple[int, int], list[ResultMask]]:
    """Encode ``pred_instances``, one mask at a time.

    Args:
        sample: the image, for messages.
        result: ``masks`` (N, H, W) bool, ``labels`` and ``scores`` (N,).
        num_classes: number of classes in the vocabulary.
        limit: maximum number of masks; those with the highest scores are kept. None for no limit.

    Returns:
        Height and width, and the masks sorted by descending score; equal scores keep their order.

    Raises:
        ConfigError: a class index is not in the vocabulary.
        ValueError: a score is not finite.
    """
    masks, labels, scores = result["masks"], to_numpy(result["labels"]), to_numpy(result["scores"])
    check_labels(sample, labels, num_classes)
    if not np.isfinite(scores).all():
        raise ValueError(f"{name_of(sample)}: a score of the result is not a finite number")
    kept = np.argsort(-scores, kind="stable")[:limit].tolist()
    encoded = [
        ResultMask(int(labels[i]), float(scores[i]), encode_mask(to_numpy(masks[i]))["counts"])
        for i in kept
    ]
    return tuple(masks.shape[1:]), encoded


def encode_things(truth: PanopticTruth) -> list[TruthMask]:
    """Encode the things of a panoptic map; their area is their number of pixels."""
    return [
        TruthMask(segment.label, rle, float(mask_utils.area(rle)), segment.is_crowd)
        for segment in truth.segments
        if segment.is_thing
        for rle in [encode_mask(truth.ids == segment.id)]
    ]


class InstanceFile:
    """Ground truth of an instance annotation file in COCO's format.

    Args:
        path: the JSON file.
        vocabulary: its ``source_names`` are the names of the categories. None assigns class 0 to
            all objects.

    Attributes:
        images: image id -> entry of the file.
        label_of: category id -> class index. Categories without objects may be missing in the
            vocabulary.
        categories: entries of the file.

    Raises:
        DatasetError: the file is missing or invalid, or has objects of a category that is not in
            the vocabulary.
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
        """Check that the file has an image.

        Raises:
            DatasetError: the image is not in the file.
        """
        if img_id not in self.images:
            raise DatasetError(
                f"{self.path}: image id {shown(img_id)} was evaluated, but is not among the file's "
                f"{len(self.images)} images{twin(img_id, self.images)}; ann_file must belong to "
                "the same dataset"
            )

    def check_size(self, img_id: Id, size: tuple[int, int]) -> None:
        """Check that results have the annotated height and width of the image.

        Raises:
            DatasetError: the sizes differ.
        """
        image = self.images[img_id]
        where = f"{self.path}, image id {shown(img_id)}"
        check_size(where, (image["height"], image["width"]), size)

    def truths(self, record: MaskRecord) -> list[TruthMask]:
        """Return the objects of a record's image.

        Raises:
            DatasetError: the image is not in the file, or has another size there.
        """
        self.check_id(record.img_id)
        self.check_size(record.img_id, record.size)
        return self._truths.get(record.img_id, [])
