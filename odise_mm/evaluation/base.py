"""Base class of the metrics, and helpers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.dist import (
    all_gather_object,
    broadcast_object_list,
    gather_object,
    is_main_process,
)
from mmengine.evaluator import BaseMetric
from torch import Tensor

from odise_mm.annotations.ground_truth import name_of
from odise_mm.errors import ConfigError, DatasetError, EvaluationError, OdiseError
from odise_mm.vocabulary import Vocabulary

Numbers = dict[str, float]
GATHERED_AT_ONCE = 256


class DatasetMetric(BaseMetric):
    """Base of the metrics, which collect results image by image.

    Subclasses define what an image adds to ``self.results`` (one running sum, or one record per
    image), and how the metrics are computed from the ``results`` of all processes. mmengine's
    gathering is not used, because it cuts the list to the size of the dataset and so hides images
    that a sampler repeated.

    If the dataset has subsets of classes (``dataset_meta["subsets"]``), means over the classes of
    each subset are reported as well: ``panoptic/novel/PQ`` is the mean of ``panoptic/PQ`` over the
    subset "novel". They use the same results, made with all class names. Classes without a value
    are left out; if none is left, the mean is NaN.

    Args:
        prefix: prefix of the metrics' names; by default that of the class.

    Attributes:
        task: the result that the metric needs: panoptic, semantic or instance.
        class_means: name of a per-class value -> name of its mean over classes; empty if there are
            no per-class values.
        ids_repeat: whether images of the dataset may share ids, as in concatenated datasets; set
            by the loop.
        per_class: after ``evaluate``, in all processes: class name in the dataset -> name of the
            metric -> value in percent. Classes that never occurred are left out.
    """

    task: str
    class_means: Mapping[str, str] = {}

    def __init__(self, prefix: str | None = None) -> None:
        super().__init__(prefix=prefix)
        self.per_class: dict[str, Numbers] = {}
        self.ids_repeat = False
        self._images = 0

    @abstractmethod
    def add_image(self, sample: Mapping[str, Any]) -> None:
        """Add one image to ``self.results``.

        Args:
            sample: results and ground truth of the image.
        """

    @abstractmethod
    def compute(self, results: list) -> tuple[Numbers, list[Numbers | None]]:
        """Compute the metrics, in percent; called only in the main process.

        Args:
            results: the ``results`` of all processes.

        Returns:
            Metrics of the whole dataset, and a list with those of each class; None for classes that
            never occurred.
        """

    @property
    def vocabulary(self) -> Vocabulary:
        """The dataset's vocabulary.

        Raises:
            ConfigError: ``dataset_meta`` has no vocabulary.
        """
        vocabulary = (self.dataset_meta or {}).get("vocabulary")
        if vocabulary is None:
            raise ConfigError(
                f"{type(self).__name__}: the dataset's metainfo has no vocabulary; use "
                "PanopticDataset, SemanticDataset or InstanceDataset"
            )
        return vocabulary

    @property
    def class_names(self) -> list[str]:
        """Class names in the dataset; names that occur twice get their class index added."""
        names = self.vocabulary.source_names
        return [n if names.count(n) == 1 else f"{n} (class {i})" for i, n in enumerate(names)]

    def prepare(self) -> None:
        """Read files that the metric needs.

        It is called in the main process before the first image.

        Raises:
            DatasetError: a file is missing or invalid.
        """

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Add the images of a batch."""
        for sample in data_samples:
            self.add_image(sample)
            self._images += 1

    def compute_metrics(self, results: list) -> Numbers:
        """Compute the metrics, including those of subsets, and set ``per_class``."""
        numbers, per_class = self.compute(results)
        pairs = zip(self.class_names, per_class, strict=True)
        self.per_class = {name: values for name, values in pairs if values is not None}
        return numbers | self._of_subsets(per_class)

    def _of_subsets(self, per_class: Sequence[Numbers | None]) -> Numbers:
        numbers = {}
        for subset, labels in ((self.dataset_meta or {}).get("subsets") or {}).items():
            occurring = [per_class[label] for label in labels if per_class[label] is not None]
            for key, mean in self.class_means.items():
                numbers[f"{subset}/{mean}"] = mean_of(values[key] for values in occurring)
        return numbers

    def evaluate(self, size: int) -> Numbers:
        """Compute the metrics of the whole dataset and reset.

        Args:
            size: number of images in the dataset.

        Returns:
            Name of the metric -> value, the same in all processes.

        Raises:
            ConfigError: images are missing, or some were evaluated more than once.
            DatasetError: no image was evaluated, or ground truth is missing or invalid.
        """
        own: Exception | None = None
        try:
            self._check_count(sum(all_gather_object(self._images)), size)
            results = [record for part in self._gather() for record in part]
            outcome: list[Any] = [None]
            if is_main_process():
                try:
                    outcome = [(self.compute_metrics(results), self.per_class)]
                except Exception as err:  # the other processes wait for an answer
                    own = err
                    outcome = [err if isinstance(err, OdiseError) else EvaluationError(repr(err))]
            broadcast_object_list(outcome)
        finally:
            self.reset()
        if isinstance(outcome[0], OdiseError):
            raise own or outcome[0]
        numbers, self.per_class = outcome[0]
        return {f"{self.prefix}/{name}": value for name, value in numbers.items()}

    def reset(self) -> None:
        """Discard all results."""
        self.results.clear()
        self._images = 0

    def _gather(self) -> Iterator[list]:
        # Gathering needs extra memory (GPU memory with NCCL), so it is done in portions.
        longest = max(all_gather_object(len(self.results)))
        for start in range(0, longest, GATHERED_AT_ONCE):
            yield from gather_object(self.results[start : start + GATHERED_AT_ONCE]) or []

    def _check_count(self, images: int, size: int) -> None:
        name = type(self).__name__
        if images == 0:
            raise DatasetError(f"{name}: no images were evaluated; the dataset is empty")
        if images != size:
            raise ConfigError(
                f"{name}: {images} images were evaluated, but the dataset has {size}; the test "
                "sampler must return each image once: sampler=dict(type='DefaultSampler', "
                "shuffle=False, round_up=False), drop_last=False"
            )


def result_of(sample: Mapping[str, Any], name: str, metric: DatasetMetric) -> Mapping[str, Any]:
    """Return one of the model's results.

    Args:
        sample: results of an image.
        name: key of the result.
        metric: the metric that needs it, for the message.

    Raises:
        ConfigError: the model did not compute this result.
    """
    result = sample.get(name)
    if result is None:
        raise ConfigError(
            f"{name_of(sample)}: {type(metric).__name__} needs {name}, which the model did not "
            f"compute; set test_cfg=dict({metric.task}=True)"
        )
    return result


def check_labels(sample: Mapping[str, Any], labels: np.ndarray, num_classes: int) -> None:
    """Check that predicted class indices are in the dataset's vocabulary.

    Args:
        sample: the image, for the message.
        labels: predicted class indices, of any shape.
        num_classes: number of classes in the vocabulary.

    Raises:
        ConfigError: a class index is out of range.
    """
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        bad = labels.max() if labels.min() >= 0 else labels.min()
        raise ConfigError(
            f"{name_of(sample)}: the model predicts class index {bad}, but the dataset's "
            f"vocabulary has {num_classes} classes; set model.vocabulary to the dataset's"
        )


def mean_of(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


def to_numpy(value: Tensor | np.ndarray) -> np.ndarray:
    """Convert a tensor on any device, or an array, to an array."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
