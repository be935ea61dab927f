"""What all metrics share: images are counted, results summed or gathered over processes."""

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
    """Base of the metrics: an image comes, numbers of the whole dataset go.

    Subclasses say what an image adds to ``self.results`` (one running sum, or one record per
    image), and how the joined ``results`` of all processes become numbers. mmengine's way of
    collecting is not used: it cuts the joined list to the dataset's size, which hides images
    that a sampler repeated.

    Where the dataset has subsets of classes (``dataset_meta["subsets"]``), there are also the
    means over the classes of each: of ``panoptic/PQ`` and the subset "novel" it is
    ``panoptic/novel/PQ``. Results are the same, made with all names; classes without a number are
    left out, and the mean is NaN where none is left.

    Args:
        prefix: of the numbers' names; by default the class's own.

    Attributes:
        task: the result that the model has to make: panoptic, semantic or instance.
        class_means: number of a class, as in ``per_class`` -> name of its mean over classes; empty
            where classes have no numbers.
        ids_repeat: whether images of the dataset may share their ids, as those of joined data
            sets do; set by the loop.
        per_class: after ``evaluate``, in percent: class (the dataset's own name) -> number's
            name -> value. Classes that never occurred are left out. On all processes.
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
        """Take in one image's result: put into ``self.results`` what is kept of it."""

    @abstractmethod
    def compute(self, results: list) -> tuple[Numbers, list[Numbers | None]]:
        """Numbers in percent of everything that all processes kept; runs on the main process.

        Returns:
            Those of the whole dataset, and those of every class, None where it never occurred.
        """

    @property
    def vocabulary(self) -> Vocabulary:
        """The dataset's.

        Raises:
            ConfigError: ``dataset_meta`` does not hold one.
        """
        vocabulary = (self.dataset_meta or {}).get("vocabulary")
        if vocabulary is None:
            raise ConfigError(
                f"{type(self).__name__}: the dataset's metainfo has no vocabulary; take one of "
                "PanopticDataset, SemanticDataset, InstanceDataset"
            )
        return vocabulary

    @property
    def class_names(self) -> list[str]:
        """The dataset's own names, told apart by their index where two are spelled alike."""
        names = self.vocabulary.source_names
        return [n if names.count(n) == 1 else f"{n} (class {i})" for i, n in enumerate(names)]

    def prepare(self) -> None:
        """Read what is needed from files, before the first image; on the main process.

        Raises:
            DatasetError: a file is missing or wrong.
        """

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Take in the results of a batch, one image after the other."""
        for sample in data_samples:
            self.add_image(sample)
            self._images += 1

    def compute_metrics(self, results: list) -> Numbers:
        """As mmengine names it."""
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
        """Numbers of the whole dataset, the same on all processes; then starts anew.

        Args:
            size: number of images in the dataset.

        Raises:
            ConfigError: not every image came, or some came more than once.
            DatasetError: no image came, or ground truth is missing or broken.
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
        """Forget what was taken in."""
        self.results.clear()
        self._images = 0

    def _gather(self) -> Iterator[list]:
        # In portions: what is under way takes memory, with NCCL on the GPU.
        longest = max(all_gather_object(len(self.results)))
        for start in range(0, longest, GATHERED_AT_ONCE):
            yield from gather_object(self.results[start : start + GATHERED_AT_ONCE]) or []

    def _check_count(self, images: int, size: int) -> None:
        name = type(self).__name__
        if images == 0:
            raise DatasetError(f"{name}: no image was evaluated; the dataset is empty")
        if images != size:
            raise ConfigError(
                f"{name}: {images} images were evaluated, but the dataset has {size}; the test "
                "sampler must give every image once: sampler=dict(type='DefaultSampler', "
                "shuffle=False, round_up=False), drop_last=False"
            )


def result_of(sample: Mapping[str, Any], name: str, metric: DatasetMetric) -> Mapping[str, Any]:
    """The model's result of a kind.

    Raises:
        ConfigError: the model did not make it.
    """
    result = sample.get(name)
    if result is None:
        raise ConfigError(
            f"{name_of(sample)}: {type(metric).__name__} finds no {name}; let the model make it: "
            f"test_cfg=dict({metric.task}=True)"
        )
    return result


def check_labels(sample: Mapping[str, Any], labels: np.ndarray, num_classes: int) -> None:
    """Refuse class indices that the dataset's vocabulary does not have.

    Raises:
        ConfigError: there are some.
    """
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        bad = labels.max() if labels.min() >= 0 else labels.min()
        raise ConfigError(
            f"{name_of(sample)}: the model answers with class index {bad}, but the dataset's "
            f"vocabulary has {num_classes} classes; set model.vocabulary to the dataset's"
        )


def mean_of(values: Iterable[float]) -> float:
    """Of those that are numbers; NaN of none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


def to_numpy(value: Tensor | np.ndarray) -> np.ndarray:
    """A tensor of any device, or an array, as array."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
