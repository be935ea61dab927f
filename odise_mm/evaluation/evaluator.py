"""The evaluator of our loops: a metric that fails does not take the others' numbers with it."""

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
    """mmengine's ``Evaluator``, with metrics that fail one by one.

    What a metric needs is read before the first image. Later on, a metric that fails is left out
    with an error in the log, and the others go on; :meth:`raise_failures` says so when all is done.
    At the first batch, where nothing can be lost, an error is raised at once, and so it is where no
    metric is left.

    Attributes:
        failures: why a metric has no numbers, by its class's name.
        done: whether :meth:`evaluate` has come to its end.
    """

    def __init__(self, metrics: dict | BaseMetric | Sequence) -> None:
        super().__init__(metrics)
        self.failures: dict[str, Exception] = {}
        self.done = False
        self._numbers: dict[str, float] = {}
        self._batches = 0

    def prepare(self) -> None:
        """Start anew, and let the metrics read their files, on the main process.

        Raises:
            OdiseError: a file is missing or wrong; on all processes.
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
        """Give a batch's results to the metrics."""
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
        """Numbers of the metrics that did not fail; see :meth:`raise_failures` for the others.

        Args:
            size: number of images in the dataset.
        """
        numbers: dict[str, float] = {}
        said = {name: str(err) for name, err in self.failures.items()}
        failed = {name: text for part in all_gather_object(said) for name, text in part.items()}
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
                        f"another metric gives {double[0]}, too; set another prefix for one of them"
                    )
                numbers.update(found)
            except Exception as err:
                self._note(metric, err)
        self.done, self._numbers = True, numbers
        return dict(numbers)

    def raise_failures(
        self, hooks: Mapping[str, Exception] | None = None, as_numbers: bool = True
    ) -> None:
        """Say which metrics failed, and which hooks when the numbers were there.

        Args:
            hooks: those that failed, by name.
            as_numbers: whether hooks alone that failed are an EvaluationError with the numbers in
                it; else the first one's error is raised.

        Raises:
            EvaluationError: some failed; the numbers that there are are in it.
            Exception: all metrics failed; the first one's error.
        """
        hooks = hooks or {}
        causes = [*self.failures.values(), *hooks.values()]
        if not causes:
            return
        if not self._numbers or (not self.failures and not as_numbers):
            raise causes[0]
        failed = {**self.failures, **hooks}
        said = {name: str(err) or repr(err) for name, err in failed.items()}
        text = "; ".join(f"{name}: {why}" for name, why in said.items())
        if self.failures:
            text = (
                f"{len(self.failures)} of {len(self.metrics)} metrics failed, the others' numbers "
                f"are kept: {text}"
            )
        raise EvaluationError(text, numbers=self._numbers, failures=said) from causes[0]

    def _name(self, metric: BaseMetric) -> str:
        kind = type(metric).__name__
        alike = [other for other in self.metrics if type(other).__name__ == kind]
        return kind if len(alike) == 1 else f"{kind} {alike.index(metric) + 1}"

    def _note(self, metric: BaseMetric, err: Exception) -> None:
        self.failures[self._name(metric)] = err
        # A bug has to be found; a mistake of the user's is told in one line.
        text = str(err) if isinstance(err, OdiseError) else traceback.format_exc()
        print_log(
            f"{self._name(metric)} failed and gives no numbers: {text}",
            logger="current",
            level=logging.ERROR,
        )
