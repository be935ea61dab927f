"""The results of other metrics are kept if one fails."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest

from odise_mm.errors import ConfigError, DatasetError, EvaluationError
from odise_mm.evaluation.base import DatasetMetric
from odise_mm.evaluation.evaluator import OpenVocabEvaluator
from tests.support import make


class Counting(DatasetMetric):
    """Count images; fail at a given image or method."""

    task = "panoptic"

    def __init__(self, prefix: str, at: Any = None, error: Exception | None = None) -> None:
        super().__init__(prefix=prefix)
        self.at, self.error = at, error or DatasetError(f"{prefix} does not fit")

    def fail(self, where: Any) -> None:
        if where == self.at:
            raise self.error

    def prepare(self) -> None:
        self.fail("file")

    def add_image(self, sample: Mapping[str, Any]) -> None:
        self.fail(sample["img_id"])
        self.results.append(1)

    def compute(self, results: list) -> tuple[dict[str, float], list]:
        self.fail("end")
        return {"images": float(sum(results))}, [None, None]


class Other(Counting):
    """The same metric under another name."""


def evaluator(*metrics: DatasetMetric) -> OpenVocabEvaluator:
    made = OpenVocabEvaluator(list(metrics))
    made.dataset_meta = dict(vocabulary=make.vocabulary(2))
    return made


def run(made: OpenVocabEvaluator, images: int = 4) -> dict[str, float]:
    made.prepare()
    for image in range(images):
        made.process([dict(img_id=image)])
    numbers = made.evaluate(images)
    made.raise_failures()
    return numbers


@pytest.mark.parametrize("at", ["end", 2])
@pytest.mark.parametrize("error", [None, TypeError("argument")])
def test_results_of_other_metrics_are_kept(
    at: Any, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    made = evaluator(Counting("a", at, error), Other("b"))
    with caplog.at_level(logging.ERROR), pytest.raises(EvaluationError) as caught:
        run(made)
    assert caught.value.numbers == {"b/images": 4} and made.done
    why = str(error or "a does not fit")
    assert caught.value.failures == {"Counting": why}
    assert "1 of 2 metrics failed" in str(caught.value) and why in str(caught.value)
    made.metrics[0].at = None  # afterwards both metrics are reset
    assert run(made) == {"a/images": 4, "b/images": 4} and made.failures == {}


def test_invalid_files_raise_before_the_first_image() -> None:
    made = evaluator(Counting("a"), Other("b", "file"))
    with pytest.raises(DatasetError, match="b does not fit"):
        run(made)
    assert made.metrics[0].results == []


def test_errors_in_the_first_batch_raise_at_once() -> None:
    made = evaluator(Counting("a", 0, ConfigError("no such class")), Other("b"))
    with pytest.raises(ConfigError, match="no such class"):
        run(made)
    assert made.metrics[1].results == []


def test_evaluation_ends_if_no_metric_is_left() -> None:
    made = evaluator(Counting("a", 1), Other("b", 2))
    with pytest.raises(DatasetError, match="b does not fit"):
        run(made, images=1000)
    made = evaluator(Counting("a", "end"), Other("b", "end"))
    with pytest.raises(DatasetError, match="a does not fit"):
        run(made)


def test_metrics_with_the_same_prefix_raise() -> None:
    with pytest.raises(
        EvaluationError, match="Counting 2: two metrics are named a/images"
    ) as caught:
        run(evaluator(Counting("a"), Counting("a")))
    assert caught.value.numbers == {"a/images": 4}


def failing_in_one_of_two(rank: int) -> list:
    """Run in the processes of test_processes.py."""
    found = []
    # at an image of the second process only; in the main process only, in two ways; in a file
    for at, error in ((3, None), ("end", None), ("end", TypeError("argument")), ("file", None)):
        made = evaluator(Counting("a", at, error), Other("b"))
        try:
            made.prepare()
            for image in (0, 2, 4) if rank == 0 else (1, 3):
                made.process([dict(img_id=image)])
            made.evaluate(5)
            made.raise_failures()
        except EvaluationError as err:
            found.append((err.numbers, list(err.failures)))
        except DatasetError as err:
            found.append(str(err))
    return found


FOUND_IN_BOTH = [({"b/images": 5}, ["Counting"])] * 3 + ["a does not fit"]
