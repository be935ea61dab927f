"""Evaluator that keeps the results of all other metrics if one fails."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement

from odise_mm.errors import EvaluationError, OdiseError


class OpenVocabEvaluator(Evaluator):
    """mmengine's ``Evaluator`` that handles the failure of single metrics.

    Metrics read their files before the first image. If a metric fails later, the error is logged
    and the other metrics continue; :meth:`raise_failures` reports the failure at the end. An error
    is raised at once in the first batch, where nothing can be lost, and if no metric is left.

    Args:
        metrics: see mmengine's ``Evaluator``.

    Attributes:
        failures: class name of a failed metric -> error.
        done: whether :meth:`evaluate` has finished.
    """

    def __init__(self, metrics: dict | BaseMetric | Sequence) -> None:
        super().__init__(metrics)
        self.failures: dict[str, Exception] = {}
        self.done = False
        self._numbers: dict[str, float] = {}
        self._batches = 0

    def prepare(self) -> None:
        """Reset, and let the metrics read their files in the main process.

        Raises:
            OdiseError: a file is missing or invalid; raised in all processes.
        """
        self.failures.clear()
        self.done, self._numbers, self._batches = False, {}, 0
        outcome: list[OdiseError | None] = [None]
        if is_main_process():
            try:
                for metric in self.metrics:
                    getattr(metric, "prepare", lambda: None)()
            except OdiseError as err:  # the other processes wait for an answer
                outcome = [err]
        broadcast_object_list(outcome)
        if outcome[0] is not None:
            raise outcome[0]

    def process(
        self, data_samples: Sequence[BaseDataElement | dict], data_batch: Any = None
    ) -> None:
        """Pass the results of a batch to the metrics."""
        samples = [s.to_dict() if isinstance(s, BaseDataElement) else s for s in data_samples]
        for metric in self.metrics:
            if self._name(metric) in self.failures:
                continue
            try:
                metric.process(data_batch, samples)
            except Exception as err:
                if self._batches == 0 or len(self.failures) + 1 == len(self.metrics):
                    raise
                self._note(metric, err)
        self._batches += 1

    def evaluate(self, size: int) -> dict[str, float]:
        """Compute the metrics; see :meth:`raise_failures` for those that failed.

        Args:
            size: number of images in the dataset.

        Returns:
            Name of the metric -> value, of the metrics that did not fail.
        """
        numbers: dict[str, float] = {}
        texts = {name: str(err) for name, err in self.failures.items()}
        failed = {name: text for part in all_gather_object(texts) for name, text in part.items()}
        for metric in self.metrics:
            name = self._name(metric)
            if name in failed:  # perhaps in another process
                self.failures.setdefault(name, EvaluationError(failed[name]))
                getattr(metric, "reset", metric.results.clear)()
                continue
            try:
                found = metric.evaluate(size)
                double = sorted(numbers.keys() & found.keys())
                if double:
                    raise EvaluationError(
                        f"two metrics are named {double[0]}; set another prefix for one of them"
                    )
                numbers.update(found)
            except Exception as err:
                self._note(metric, err)
        self.done, self._numbers = True, numbers
        return dict(numbers)

    def raise_failures(
        self, hooks: Mapping[str, Exception] | None = None, as_numbers: bool = True
    ) -> None:
        """Raise an error if metrics, or hooks after the evaluation, failed.

        Args:
            hooks: name -> error of the hooks that failed.
            as_numbers: if only hooks failed, whether to raise an EvaluationError that contains the
                metrics. If False, the first hook's error is raised.

        Raises:
            EvaluationError: some metrics or hooks failed. It contains the other metrics' values.
            Exception: the error of the first metric if all of them failed.
        """
        hooks = hooks or {}
        causes = [*self.failures.values(), *hooks.values()]
        if not causes:
            return
        if not self._numbers or (not self.failures and not as_numbers):
            raise causes[0]
        failed = {**self.failures, **hooks}
        reasons = {name: str(err) or repr(err) for name, err in failed.items()}
        text = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        if self.failures:
            text = (
                f"{len(self.failures)} of {len(self.metrics)} metrics failed, the results of the "
                f"others are kept: {text}"
            )
        raise EvaluationError(text, numbers=self._numbers, failures=reasons) from causes[0]

    def _name(self, metric: BaseMetric) -> str:
        kind = type(metric).__name__
        alike = [other for other in self.metrics if type(other).__name__ == kind]
        return kind if len(alike) == 1 else f"{kind} {alike.index(metric) + 1}"

    def _note(self, metric: BaseMetric, err: Exception) -> None:
        self.failures[self._name(metric)] = err
        # One line for mistakes of the user; bugs need the traceback.
        text = str(err) if isinstance(err, OdiseError) else traceback.format_exc()
        print_log(
            f"{self._name(metric)} failed and has no results: {text}",
            logger="current",
            level=logging.ERROR,
        )
