"""All metrics: two processes with uneven shares equal one process; wrong shares raise."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.evaluator import Evaluator

from odise_mm.errors import ConfigError, DatasetError
from odise_mm.evaluation import base
from odise_mm.registry import METRICS
from odise_mm.vocabulary import Vocabulary
from tests.support import make
from tests.test_evaluation.test_evaluator import FOUND_IN_BOTH, failing_in_one_of_two

CLASSES = make.vocabulary(5)
COUNT = 7
KINDS = ("PanopticQuality", "SemanticIoU", "InstanceAP", "LVISInstanceAP", "AverageRecall")


def samples(folder: Path) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [make.sample(folder, 90 - i, rng, CLASSES) for i in range(COUNT)]


def lvis_file(folder: Path, items: list[dict[str, Any]]) -> str:
    path = folder / "lvis.json"
    content = make.instance_file(path, items, CLASSES)
    everything = [category["id"] for category in content["categories"]]
    federated = dict(neg_category_ids=everything, not_exhaustive_category_ids=everything[:1])
    content["images"] = [image | federated for image in content["images"]]
    for category, frequency in zip(content["categories"], "rcf", strict=True):
        category["frequency"] = frequency
    path.write_text(json.dumps(content))
    return str(path)


def build(folder: Path) -> Evaluator:
    ann_file = dict(ann_file=str(folder / "lvis.json"))
    metrics = [
        METRICS.build(dict(type=kind) | (ann_file if kind == "LVISInstanceAP" else {}))
        for kind in KINDS
    ]
    evaluator = Evaluator(metrics)
    evaluator.dataset_meta = dict(vocabulary=CLASSES)
    return evaluator


def one_of_two(rank: int, folder: Path, shares: list[list[int]]) -> None:
    """Evaluate a process's share, then a wrong one, then one that fails at the end."""
    os.environ |= dict(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    base.GATHERED_AT_ONCE = 2  # several rounds, more than the smaller share needs
    items = samples(folder / str(rank))
    evaluator = build(folder)
    answers = []
    for share in shares:
        for index in share[rank]:
            evaluator.process([items[index]])
        numbers = evaluator.evaluate(COUNT)
        answers.append((numbers, [metric.per_class for metric in evaluator.metrics]))
    padded = [[0, 2, 4, 6], [1, 3, 5, 0]]
    double = [[0, 2, 4, 6], [1, 3, 0]]  # right number of images, but one is missing
    errors = []
    for share, size, metrics in (
        (padded, COUNT, evaluator.metrics),
        ([[], []], COUNT, evaluator.metrics),
        (double, COUNT, evaluator.metrics[2:]),
    ):
        for metric in metrics:
            metric.process(None, [items[index] for index in share[rank]])
            try:
                metric.evaluate(size)
            except (ConfigError, DatasetError) as err:
                errors.append(str(err))
    failures = failing_in_one_of_two(rank)
    (folder / f"answers{rank}").write_bytes(pickle.dumps((answers, errors, failures)))
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    for rank in "01":
        (tmp_path / rank).mkdir()
    items = samples(tmp_path / "0")
    lvis_file(tmp_path, items)
    evaluator = build(tmp_path)
    evaluator.process(items)
    expected = evaluator.evaluate(COUNT)
    per_class = [metric.per_class for metric in evaluator.metrics]
    assert len(expected) == 9 + 3 + 6 + 9 + 1 and all(per_class[:4])

    shares = [[[0, 2, 4, 6], [1, 3, 5]], [list(range(COUNT)), []]]
    mp.spawn(one_of_two, (tmp_path, shares), nprocs=2)
    for rank in "01":
        found, errors, failures = pickle.loads((tmp_path / f"answers{rank}").read_bytes())
        assert failures == FOUND_IN_BOTH
        for numbers, classes in found:
            assert numbers == pytest.approx(expected, abs=1e-10, nan_ok=True)
            for ours, theirs in zip(classes, per_class, strict=True):
                assert ours.keys() == theirs.keys()
                for name, values in theirs.items():
                    assert ours[name] == pytest.approx(values, abs=1e-10, nan_ok=True)
        n = len(KINDS)
        assert len(errors) == n + n + n - 2  # in both processes, none waits forever
        for kind, error in zip(KINDS, errors[:n], strict=True):
            assert error.startswith(f"{kind}: 8 images were evaluated, but the dataset has 7")
            assert "round_up=False" in error
        assert all("no images were evaluated" in error for error in errors[n : 2 * n])
        assert all("image id 90 was evaluated more than once" in e for e in errors[2 * n :])


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_shares_in_one_process_raise(tmp_path: Path, kind: str) -> None:
    items = samples(tmp_path)
    lvis_file(tmp_path, items)
    metric = build(tmp_path).metrics[KINDS.index(kind)]
    with pytest.raises(DatasetError, match=f"{kind}: no images were evaluated"):
        metric.evaluate(COUNT)
    metric.process(None, items[:-1])
    with pytest.raises(ConfigError, match=f"{kind}: 6 images .* 7; .*round_up=False"):
        metric.evaluate(COUNT)
    # A failed evaluation leaves nothing behind.
    metric.process(None, items)
    assert len(metric.evaluate(COUNT)) > 0


def test_missing_vocabulary_raises(tmp_path: Path) -> None:
    metric = METRICS.build(dict(type="PanopticQuality"))
    metric.dataset_meta = dict(classes=("a",))
    with pytest.raises(ConfigError, match="PanopticQuality: .* no vocabulary; .*PanopticDataset"):
        metric.process(None, samples(tmp_path))


def test_equal_class_names_get_an_index() -> None:
    metric = METRICS.build(dict(type="PanopticQuality"))
    metric.dataset_meta = dict(vocabulary=Vocabulary((("a",), ("b",), ("a",)), (True, True, False)))
    assert metric.class_names == ["a (class 0)", "b", "a (class 2)"]


def test_prefixes_and_tasks() -> None:
    said = {
        kind: (metric.prefix, metric.task)
        for kind in KINDS
        for metric in [METRICS.get(kind)(**dict(ann_file="x") if "LVIS" in kind else {})]
    }
    assert said == dict(
        PanopticQuality=("panoptic", "panoptic"),
        SemanticIoU=("semantic", "semantic"),
        InstanceAP=("instance", "instance"),
        LVISInstanceAP=("lvis", "instance"),
        AverageRecall=("proposals", "instance"),
    )
    assert METRICS.get("AverageRecall")(prefix="things").prefix == "things"
