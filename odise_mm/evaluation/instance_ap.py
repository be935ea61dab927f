"""Metrics of instance masks, based on pycocotools: COCO's AP, LVIS's AP, average recall."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from pycocotools import mask as mask_utils

from odise_mm.annotations.ground_truth import check_size, name_of, read_panoptic_truth
from odise_mm.annotations.json_fields import fault, shown
from odise_mm.annotations.masks import to_rle
from odise_mm.errors import DatasetError
from odise_mm.evaluation.base import DatasetMetric, Numbers, mean_of, result_of
from odise_mm.evaluation.mask_matching import ALL, ClassCurves, average_precision, match_class
from odise_mm.evaluation.mask_records import (
    InstanceFile,
    MaskRecord,
    ResultMask,
    TruthMask,
    encode_results,
    encode_things,
)
from odise_mm.registry import METRICS
from odise_mm.utils.display import printable
from odise_mm.utils.settings import check_whole

_LVIS = "LVISInstanceAP needs LVIS v1's own file; use InstanceAP for other files"


class MaskMetric(DatasetMetric):
    """Base of the metrics that match scored masks to objects.

    Masks are kept until the end as run-length codes. A mask takes about 0.6 kB at COCO's image
    size; COCO's 5,000 images with 100 masks each take 300 MB. The main process matches them.

    Args:
        ann_file: instance annotations in COCO's format. None uses the things of the samples'
            panoptic ground truth.
        prefix: see :class:`DatasetMetric`.
    """

    task = "instance"
    class_means = {name: name for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
    max_dets = 100
    """Maximum number of results per image and class."""
    max_dets_of_image: int | None = None
    """Maximum number of results per image, over all classes; None for no limit."""
    uses_classes = True

    def __init__(self, ann_file: str | None = None, prefix: str | None = None) -> None:
        super().__init__(prefix=prefix)
        self.ann_file = ann_file
        self._file: InstanceFile | None = None

    def prepare(self) -> None:
        """Read ``ann_file``.

        Raises:
            DatasetError: it is missing or invalid, or has other classes.
        """
        if self.ann_file is not None:
            self._read_file()

    def add_image(self, sample: Mapping[str, Any]) -> None:
        """Encode an image's ``pred_instances``, and its ground truth if that is panoptic.

        Raises:
            DatasetError: the ground truth is missing or invalid, or has another size.
            ConfigError: the model made no instances, or used another vocabulary.
        """
        num_classes = len(self.vocabulary)
        img_id = sample.get("img_id")
        if img_id is None:
            raise DatasetError(f"{name_of(sample)}: {type(self).__name__} needs its img_id")
        # Only the main process reads the file; compute() checks the other processes' images.
        file = self._read_file() if self.ann_file is not None and is_main_process() else None
        if file is not None:
            file.check_id(img_id)
        result = result_of(sample, "pred_instances", self)
        size, found = encode_results(sample, result, num_classes, self.max_dets_of_image)
        if file is not None:
            file.check_size(img_id, size)
        truths = None
        if self.ann_file is None:
            truth = read_panoptic_truth(sample, num_classes)
            check_size(truth.path, truth.ids.shape, size, sample.get("img_path"))
            truths = encode_things(truth)
        path = str(sample.get("img_path") or "")
        self.results.append(MaskRecord(img_id, path, size, found, truths))

    def compute(self, results: list[MaskRecord]) -> tuple[Numbers, list[Numbers | None]]:
        """Match the masks class by class.

        Images are sorted by id, so the result does not depend on the number of processes.
        """
        self._check_ids(results)
        file, self._file = None if self.ann_file is None else self._read_file(), None
        records = sorted(
            results, key=lambda record: (str(type(record.img_id)), record.img_id, record.path)
        )
        return self.summarize(dict(self._match(records, file)), file)

    def _check_ids(self, records: Iterable[MaskRecord]) -> None:
        path_of: dict[int | str, str] = {}
        for record in records:
            name = f"{type(self).__name__}: image id {record.img_id!r}"
            if record.img_id in path_of and not self.ids_repeat:
                raise DatasetError(
                    f"{name} was evaluated more than once; every image needs a unique id"
                )
            other = path_of.setdefault(record.img_id, record.path)
            if other != record.path and self.ann_file is not None:
                raise DatasetError(
                    f"{name} is used by {printable(other)} and {printable(record.path)}, which "
                    f"{printable(self.ann_file)} cannot distinguish: test the datasets separately"
                )

    def summarize(
        self, curves: dict[int, ClassCurves], file: InstanceFile | None
    ) -> tuple[Numbers, list[Numbers | None]]:
        """Compute the metrics of the dataset and of its classes.

        Args:
            curves: class index -> precision and recall.
            file: annotations, or None.

        Returns:
            See :meth:`compute`.
        """
        found = {label: average_precision(curve) for label, curve in curves.items()}
        found = {label: numbers for label, numbers in found.items() if numbers["AP"] >= 0}
        numbers = {
            name: mean_of(numbers[name] for numbers in found.values()) for name in self.class_means
        }
        return numbers, [found.get(label) for label in range(len(self.vocabulary))]

    def known_labels(self, record: MaskRecord, file: InstanceFile | None) -> Container[int] | None:
        """Return the classes whose presence in the image was annotated; None for all."""
        return None

    def incomplete_labels(self, record: MaskRecord, file: InstanceFile | None) -> Iterable[int]:
        """Return the classes of which only some objects in the image are annotated."""
        return ()

    def _read_file(self) -> InstanceFile:
        if self._file is None:
            assert self.ann_file is not None, "only called for metrics with a file"
            vocabulary = self.vocabulary if self.uses_classes else None
            self._file = InstanceFile(self.ann_file, vocabulary)
            self.check_file(self._file)
        return self._file

    def check_file(self, file: InstanceFile) -> None:
        """Check that the file has everything that the metric needs."""

    def _match(
        self, records: list[MaskRecord], file: InstanceFile | None
    ) -> Iterator[tuple[int, ClassCurves]]:
        # label -> index in records -> masks; classes without objects have no metrics.
        truths: dict[int, dict[int, list[TruthMask]]] = defaultdict(lambda: defaultdict(list))
        results: dict[int, dict[int, list[ResultMask]]] = defaultdict(lambda: defaultdict(list))
        incomplete: dict[int, set[int]] = defaultdict(set)
        number = 0
        empty: list[int | str] = []
        for place, record in enumerate(records):
            annotated = record.truths if file is None else file.truths(record)
            assert annotated is not None, "without a file, records contain the ground truth"
            labels = {self._label(truth.label) for truth in annotated}
            for truth in annotated:
                rle = to_rle(truth.segmentation, record.size)
                truths[self._label(truth.label)][place].append(truth._replace(segmentation=rle))
                number += 1
                if not truth.is_crowd and not mask_utils.area(rle):
                    empty.append(record.img_id)
            known = self.known_labels(record, file)
            for mask in record.results:
                label = self._label(mask.label)
                if known is None or label in labels or label in known:
                    results[label][place].append(mask)
            for label in self.incomplete_labels(record, file):
                incomplete[label].add(place)
        self._warn_of_empty(number, empty)
        for label in sorted(truths):
            yield (
                label,
                match_class(
                    {
                        place: [
                            dict(
                                segmentation=one.segmentation,
                                area=one.area,
                                iscrowd=int(one.is_crowd),
                            )
                            for one in masks
                        ]
                        for place, masks in truths[label].items()
                    },
                    {
                        place: [_detection(one.counts, one.score, records[place]) for one in masks]
                        for place, masks in results[label].items()
                    },
                    self.max_dets,
                    incomplete[label],
                ),
            )

    def _warn_of_empty(self, number: int, empty: list[int | str]) -> None:
        """Log how many objects have no pixels, for example because a polygon is a line."""
        if empty:
            print_log(
                f"{self.prefix}: {len(empty)} of {number} annotated objects have masks without "
                f"pixels (the first: in image {shown(empty[0])} of {printable(self.ann_file)}). "
                "They count as missed objects, as in pycocotools; fix their masks, or remove them",
                logger="current",
                level=logging.WARNING,
            )

    def _label(self, label: int) -> int:
        return label if self.uses_classes else 0


@METRICS.register_module()
class InstanceAP(MaskMetric):
    """COCO's mask AP: at most 100 results per image and class, crowd regions are ignored.

    It reports ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm`` and ``APl``. Results of classes without
    objects in the ground truth, such as stuff, are not counted.
    """

    default_prefix = "instance"


@METRICS.register_module()
class LVISInstanceAP(MaskMetric):
    """LVIS v1's mask AP (arXiv 1908.03195), equal to that of lvis-api, which needs an old numpy.

    At most 300 results per image, over all classes, are counted. Results are counted only for
    classes that the image has, or is known not to have (``neg_category_ids``). If a class is
    annotated incompletely (``not_exhaustive_category_ids``), results without a match are ignored.
    In addition to COCO's metrics, it reports ``APr``, ``APc`` and ``APf`` of rare, common and
    frequent classes.

    Args:
        ann_file: LVIS's JSON file.
        prefix: see :class:`DatasetMetric`.
    """

    default_prefix = "lvis"
    max_dets = max_dets_of_image = 300

    def __init__(self, ann_file: str, prefix: str | None = None) -> None:
        super().__init__(ann_file=ann_file, prefix=prefix)

    def check_file(self, file: InstanceFile) -> None:
        """Check that the file has federated annotations and class frequencies.

        Raises:
            DatasetError: they are missing.
        """
        for image in file.images.values():
            for key in ("neg_category_ids", "not_exhaustive_category_ids"):
                problem = fault(image, key, "a list of whole numbers or texts")
                if problem:
                    name = f"{file.path}: image {shown(image['id'])}"
                    raise DatasetError(f"{name} {problem}; {_LVIS}")
        for category in file.categories:
            if category.get("frequency") not in ("r", "c", "f"):
                name = f"{file.path}: category {shown(category['id'])}"
                raise DatasetError(f"{name} has no frequency 'r', 'c' or 'f'; {_LVIS}")

    def known_labels(self, record: MaskRecord, file: InstanceFile | None) -> Container[int]:
        """Return the classes that are known to be absent; present ones need no annotation."""
        return {*self._labels(record, file, "neg_category_ids")}

    def incomplete_labels(self, record: MaskRecord, file: InstanceFile | None) -> Iterable[int]:
        """Return the classes that the file marks as not exhaustively annotated."""
        return self._labels(record, file, "not_exhaustive_category_ids")

    def _labels(self, record: MaskRecord, file: InstanceFile | None, key: str) -> list[int]:
        assert file is not None, "ann_file is a required argument"
        ids = file.images[record.img_id][key]
        return [file.label_of[i] for i in ids if i in file.label_of]

    def summarize(
        self, curves: dict[int, ClassCurves], file: InstanceFile | None
    ) -> tuple[Numbers, list[Numbers | None]]:
        """Compute COCO's metrics, and AP of rare, common and frequent classes."""
        assert file is not None, "ann_file is a required argument"
        numbers, per_class = super().summarize(curves, file)
        for group in "rcf":
            labels = [
                file.label_of[category["id"]]
                for category in file.categories
                if category["frequency"] == group and category["id"] in file.label_of
            ]
            found = [per_class[label] for label in labels]
            numbers[f"AP{group}"] = mean_of(each["AP"] for each in found if each is not None)
        return numbers, per_class


@METRICS.register_module()
class AverageRecall(MaskMetric):
    """Class-agnostic average recall over IoU 0.5 to 0.95, reported as ``AR@100``.

    Classes of masks and objects are ignored. The objects are those of ``ann_file``, or the things
    of the panoptic ground truth. With ``class_agnostic=True`` in the dataset, stuff segments are
    things as well.

    Args:
        ann_file: see :class:`MaskMetric`. Its categories need not be in the vocabulary.
        max_dets: maximum number of masks per image; those with the highest scores are used.
        prefix: see :class:`DatasetMetric`.
    """

    default_prefix = "proposals"
    uses_classes = False
    class_means = {}

    def __init__(
        self, ann_file: str | None = None, max_dets: int = 100, prefix: str | None = None
    ) -> None:
        super().__init__(ann_file=ann_file, prefix=prefix)
        check_whole("max_dets", max_dets)
        self.max_dets = self.max_dets_of_image = max_dets

    def summarize(
        self, curves: dict[int, ClassCurves], file: InstanceFile | None
    ) -> tuple[Numbers, list[Numbers | None]]:
        """Compute average recall; there are no per-class values."""
        recall = float(curves[0].recall[:, ALL].mean()) if curves else np.nan
        return {f"AR@{self.max_dets}": 100 * recall}, [None] * len(self.vocabulary)


def _detection(counts: bytes, score: float, record: MaskRecord) -> dict[str, Any]:
    rle = dict(size=list(record.size), counts=counts)
    return dict(segmentation=rle, score=score, area=float(mask_utils.area(rle)))
