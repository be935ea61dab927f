"""Loops that set the model's vocabulary to the dataset's and make the results its metrics need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine.dist import all_gather_object
from mmengine.evaluator import Evaluator
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, IterBasedTrainLoop, TestLoop, ValLoop
from torch import nn
from torch.utils.data import Dataset

from odise_mm.checkpoints.training_names import take_names
from odise_mm.datasets.class_names import OBJECT
from odise_mm.engine.hooks import last_checkpoint, stopped
from odise_mm.errors import (
    ConfigError,
    DatasetError,
    DeviceMemoryError,
    EvaluationError,
    OdiseError,
)
from odise_mm.evaluation.evaluator import OpenVocabEvaluator
from odise_mm.registry import LOOPS
from odise_mm.utils.memory import is_out_of_memory, memory_guard
from odise_mm.vocabulary import Vocabulary

TASKS = ("panoptic", "semantic", "instance")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model without the wrapper for distributed training."""
    return model.module if is_model_wrapper(model) else model


def vocabulary_of(dataset: Dataset) -> Vocabulary | None:
    """Return the vocabulary of a dataset.

    It is ``metainfo["vocabulary"]``, or is made from the classes in the metainfo. None if there are
    no classes.

    Raises:
        DatasetError: the dataset concatenates datasets with different metainfo.
    """
    metainfo = getattr(dataset, "metainfo", None) or {}
    if not isinstance(metainfo, Mapping):  # mmdet's ConcatDataset with different metainfo
        raise DatasetError(
            f"{type(dataset).__name__} concatenates datasets with different metainfo, so its "
            "classes have no common names: give all datasets in it the same vocabulary, and build "
            "it with odise_mm's registry"
        )
    if metainfo.get("vocabulary") is None and metainfo.get("classes"):
        return Vocabulary.from_metainfo(metainfo)
    return metainfo.get("vocabulary")


def tasks_of(evaluator: Evaluator) -> set[str]:
    """Return the tasks whose results an evaluator's metrics need.

    A metric without a ``task`` is assumed to need all of them.
    """
    tasks = {getattr(metric, "task", None) for metric in evaluator.metrics}
    return set(TASKS) if None in tasks or not tasks else tasks


@contextmanager
def bound_to(model: nn.Module, dataset: Dataset, evaluator: Evaluator | None = None) -> Iterator:
    """Set a model up for a dataset and an evaluator.

    Inside the context, ``model.vocabulary`` is the dataset's, and ``model.test_cfg`` enables the
    results that the evaluator needs. Both are restored at the end. Nothing is changed if the model
    lacks these attributes or the dataset has no class names.
    """
    model = unwrapped(model)
    vocabulary = vocabulary_of(dataset)
    before = {
        name: getattr(model, name) for name in ("vocabulary", "test_cfg") if hasattr(model, name)
    }
    if "vocabulary" in before and vocabulary is not None:
        model.vocabulary = vocabulary
    if isinstance(before.get("test_cfg"), dict) and evaluator is not None:
        needed = tasks_of(evaluator)
        model.test_cfg = {**model.test_cfg, **{task: task in needed for task in TASKS}}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)


@contextmanager
def plain_worker_errors() -> Iterator[None]:
    """Remove the worker's traceback, which torch adds to the message, from a dataset's errors."""
    try:
        yield
    except OdiseError as err:
        kind = type(err).__name__
        _, in_worker, text = str(err).rpartition(f"{kind}: ")
        if "Original Traceback" in str(err) and in_worker:
            raise type(err)(text.strip()) from err
        raise


@LOOPS.register_module()
class OpenVocabTrainLoop(IterBasedTrainLoop):
    """Iteration-based training on the class names of the training dataset.

    A resumed run continues with the next image. No images are loaded just to skip them if the
    sampler has a method ``start_at``, like ``SeededSampler``. The arguments are those of mmengine's
    ``IterBasedTrainLoop``.

    Raises:
        ConfigError: the config sets ``model.ensemble.train_vocabulary`` to other class names than
            the training dataset's.
        DatasetError: the dataset is empty.
    """

    def __init__(self, runner: Any, dataloader: Any, **kwargs: Any) -> None:
        super().__init__(runner, dataloader, **kwargs)
        if not len(self.dataloader.dataset):
            raise DatasetError("the training dataset has no images")
        _set_train_vocabulary(unwrapped(runner.model), vocabulary_of(self.dataloader.dataset))

    @property
    def total_batch(self) -> int:
        """Images per iteration, over all processes."""
        sampler = self.dataloader.batch_sampler
        return (self.dataloader.batch_size or sampler.batch_size) * self.runner.world_size

    def run(self) -> nn.Module:
        """Train until ``max_iters``."""
        with plain_worker_errors(), bound_to(self.runner.model, self.dataloader.dataset):
            return self._run()

    def _run(self) -> nn.Module:
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self._skip_seen_images()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._decide_current_val_interval()
            if (
                self.runner.val_loop is not None
                and self._iter >= self.val_begin
                and (self._iter % self.val_interval == 0 or self._iter == self._max_iters)
            ):
                self.runner.val_loop.run()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def _skip_seen_images(self) -> None:
        if self._iter == 0:
            return
        sampler = getattr(self.dataloader.batch_sampler, "sampler", self.dataloader.sampler)
        if hasattr(sampler, "start_at"):
            sampler.start_at(self._iter * self.total_batch)
            self.dataloader_iterator = iter(self.dataloader)
            return
        print_log(
            f"{type(sampler).__name__} has no start_at: loading and skipping the {self._iter} "
            "batches that were already seen",
            logger="current",
        )
        for _ in range(self._iter):
            next(self.dataloader_iterator)

    def run_iter(self, data_batch: Any) -> None:
        """Run one iteration.

        Raises:
            TrainingError: the model's numbers are not finite. The message names the images and the
                last checkpoint.
            DeviceMemoryError: out of memory. The message lists settings that need less.
        """
        try:
            super().run_iter(data_batch)
        except (RuntimeError, MemoryError) as err:
            device = next(self.runner.model.parameters()).device
            if not is_out_of_memory(err, device):
                raise
            raise DeviceMemoryError(
                f"iteration {self._iter + 1}: out of memory on {device}; set "
                "model.backbone.use_checkpoint=True, lower train_dataloader.batch_size, use "
                "--precision bf16 or fp16, or use a device with more memory; "
                f"{last_checkpoint(self.runner)}"
            ) from err
        except (FloatingPointError, ValueError) as err:
            # SciPy raises ValueError while matching masks to segments, before the loss is computed.
            if isinstance(err, ValueError) and "invalid numeric entries" not in str(err):
                raise
            raise stopped(self.runner, data_batch, f"numbers not finite ({err})") from err


def _set_train_vocabulary(model: nn.Module, vocabulary: Vocabulary | None) -> None:
    """Set the model's training vocabulary to the training dataset's.

    Raises:
        ConfigError: the config sets other class names.
    """
    expected = getattr(getattr(model, "ensemble", None), "train_vocabulary", None)
    if expected is None or vocabulary is None or vocabulary == OBJECT:
        return
    if take_names(model, vocabulary):
        model.train_vocabulary_is_open = False  # ``load_from`` must not replace it
        return
    if expected.synonyms != vocabulary.synonyms:
        raise ConfigError(
            f"model.ensemble.train_vocabulary has the names of '{expected.name}' ({len(expected)} "
            f"classes), but the training dataset has those of '{vocabulary.name}' "
            f"({len(vocabulary)} classes): set model.ensemble.train_vocabulary to the value of "
            "train_dataloader.dataset.vocabulary, so that these classes are base classes"
        )


class _Evaluation(BaseLoop):
    """Mixin with the common code of the validation and test loops."""

    def __init__(self, runner: Any, dataloader: Any, evaluator: Any, **kwargs: Any) -> None:
        super().__init__(runner, dataloader, evaluator, **kwargs)
        if type(self.evaluator) is Evaluator:  # keep evaluators of other types
            self.evaluator = OpenVocabEvaluator(self.evaluator.metrics)
        images = len(self.dataloader.dataset)
        if images < runner.world_size:
            raise ConfigError(
                f"{runner.world_size} processes for {images} images to evaluate: start at most "
                "as many processes as there are images"
            )
        for metric in self.evaluator.metrics:
            metric.ids_repeat = getattr(self.dataloader.dataset, "ids_repeat", False)

    def run(self) -> dict[str, float]:
        """Evaluate the model.

        Returns:
            Name of the metric -> value.

        Raises:
            EvaluationError: a metric failed, or, in testing, a hook failed after the metrics were
                computed. All other hooks have been called, and the error contains the computed
                metrics.
            Exception: in validation, the error of the first hook that failed.
            OdiseError: a file that a metric needs is missing or invalid; raised before the first
                image.
        """
        model, dataset = self.runner.model, self.dataloader.dataset
        evaluator = self.evaluator if isinstance(self.evaluator, OpenVocabEvaluator) else None
        with plain_worker_errors(), bound_to(model, dataset, self.evaluator):
            if evaluator is not None:
                evaluator.prepare()
            with self._hooks_one_by_one() as failed:
                numbers = super().run()
            if evaluator is not None:
                evaluator.raise_failures(failed, as_numbers=isinstance(self, TestLoop))
            elif failed:
                raise next(iter(failed.values()))
            return numbers

    @contextmanager
    def _hooks_one_by_one(self) -> Iterator[dict[str, Exception]]:
        """Call all hooks after an evaluation, even if some of them fail.

        Yields:
            The hooks that failed in any process; complete once the context ends.
        """
        failed: dict[str, Exception] = {}
        self.runner.failed_hooks = failed
        try:
            yield failed
        finally:
            self.runner.failed_hooks = None
        for texts in all_gather_object({name: str(err) for name, err in failed.items()}):
            for name, text in texts.items():
                failed.setdefault(name, EvaluationError(text))

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Evaluate one batch.

        Raises:
            DeviceMemoryError: out of memory. The message names the image sizes and the settings to
                lower.
        """
        model = unwrapped(self.runner.model)
        device = next(model.parameters()).device
        infos = [sample.metainfo for sample in data_batch["data_samples"]]
        seen, own = ([i[key][:2] for i in infos if key in i] for key in ("img_shape", "ori_shape"))
        with memory_guard(device, getattr(model, "precision", "fp32"), seen, own):
            super().run_iter(idx, data_batch)


@LOOPS.register_module()
class OpenVocabValLoop(_Evaluation, ValLoop):
    """Validation on the class names of its dataset. Arguments: see mmengine's ``ValLoop``."""


@LOOPS.register_module()
class OpenVocabTestLoop(_Evaluation, TestLoop):
    """Testing on the class names of its dataset. Arguments: see mmengine's ``TestLoop``."""
