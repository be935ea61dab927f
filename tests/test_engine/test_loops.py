"""Loops: vocabulary, tasks, finite losses, seeded iterations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.evaluator import BaseMetric, Evaluator

from odise_mm.engine import OpenVocabRunner
from odise_mm.engine.loops import bound_to, tasks_of, vocabulary_of
from odise_mm.errors import ConfigError, DatasetError, DeviceMemoryError, TrainingError
from tests.support.small_training import SmallDataset, SmallModel, config, weights


def runner(work_dir: Path, **changes: Any) -> OpenVocabRunner:
    return OpenVocabRunner.from_cfg(config(work_dir, **changes))


def test_vocabulary_and_tasks_are_set_and_restored(tmp_path: Path) -> None:
    run = runner(tmp_path, train_cfg__max_iters=5)
    run.train()
    seen = run.model.seen
    assert [s["mode"] for s in seen] == ["loss"] * 5 + ["predict"] * 3
    assert {s["vocabulary"] for s in seen[:5]} == {("cat", "dog")}
    assert {s["vocabulary"] for s in seen[5:]} == {("sky", "road", "tree")}
    assert seen[0]["tasks"] == ["panoptic", "semantic", "instance"]
    assert seen[-1]["tasks"] == ["semantic"]
    assert run.model.vocabulary.names == ("zebra",)
    assert run.model.test_cfg == dict(panoptic=True, semantic=True, instance=True, topk=5)


def test_everything_is_restored_after_an_error() -> None:
    model, dataset = SmallModel(), SmallDataset()
    with pytest.raises(ZeroDivisionError), bound_to(model, dataset):
        assert model.vocabulary.names == ("cat", "dog")
        raise ZeroDivisionError
    assert model.vocabulary.names == ("zebra",)


def metric(needed: str | None) -> BaseMetric:
    class Metric(BaseMetric):
        process = compute_metrics = None
        if needed:
            task = needed

    Metric.__abstractmethods__ = frozenset()
    return Metric()


@pytest.mark.parametrize(
    "needed, tasks",
    [
        (["semantic"], {"semantic"}),
        (["instance", "panoptic"], {"instance", "panoptic"}),
        (["semantic", None], {"panoptic", "semantic", "instance"}),
    ],
)
def test_tasks_of_metrics(needed: list[str | None], tasks: set[str]) -> None:
    assert tasks_of(Evaluator([metric(n) for n in needed])) == tasks


def test_vocabulary_of_datasets() -> None:
    class Plain:
        metainfo = dict(classes=("a", "b"))

    assert vocabulary_of(Plain()).names == ("a", "b")
    assert vocabulary_of([1, 2]) is None


def test_a_loss_that_is_not_finite_stops_before_saving(tmp_path: Path) -> None:
    run = runner(tmp_path, model__broken_at=6)  # a checkpoint would be saved at this iteration
    with pytest.raises(TrainingError) as caught:
        run.train()
    message = str(caught.value)
    images = run.model.seen[-1]["images"]
    assert "iteration 6: loss not finite" in message
    assert all(f"images/{i}.jpg (id {i})" in message for i in images) and len(images) == 2
    assert f"last good checkpoint is {tmp_path}/iter_3.pth" in message
    assert [p.name for p in tmp_path.glob("*.pth")] == ["iter_3.pth"]
    assert all(w.isfinite().all() for w in weights(tmp_path / "iter_3.pth").values())


def test_broken_loss_before_the_first_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="iteration 2: .*no checkpoint has been saved yet"):
        runner(tmp_path, model__broken_at=2).train()


def test_broken_weights_are_not_saved(tmp_path: Path) -> None:
    """Gradients can be infinite even if the loss is finite."""
    run = runner(tmp_path)
    step, count = run.model.train_step, 0

    def train_step(data: dict, optim_wrapper: Any) -> dict:
        nonlocal count
        logs, count = step(data, optim_wrapper), count + 1
        if count == 6:
            run.model.layers[0].bias.data[1] = float("inf")
        return logs

    run.model.train_step = train_step
    with pytest.raises(TrainingError, match="iteration 6: 1 weights .*layers.0.bias.*iter_3.pth"):
        run.train()
    assert [p.name for p in tmp_path.glob("*.pth")] == ["iter_3.pth"]


@pytest.mark.parametrize(
    "error, told",
    [
        (FloatingPointError("masks are not finite"), True),
        (ValueError("matrix contains invalid numeric entries"), True),  # scipy's assignment
        (ValueError("something else"), False),
    ],
)
def test_errors_of_broken_numbers_in_the_model(
    error: Exception, told: bool, tmp_path: Path
) -> None:
    run = runner(tmp_path)

    def train_step(data: dict, optim_wrapper: Any) -> dict:
        raise error

    run.model.train_step = train_step
    wanted = TrainingError if told else ValueError
    with pytest.raises(wanted, match=r"iteration 1: .*images/\d.jpg" if told else "else"):
        run.train()


def test_out_of_memory_names_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runner(tmp_path, train_cfg__max_iters=5)

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 9 GiB")

    monkeypatch.setattr(type(run.model), "forward", full)
    with pytest.raises(
        DeviceMemoryError, match="iteration 1: .*use_checkpoint.*no checkpoint has been saved"
    ):
        run.train()
    with pytest.raises(DeviceMemoryError, match="out of memory on cpu .*; lower"):
        run.val_loop.run()
    monkeypatch.setattr(type(run.model), "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.val_loop.run()


def test_random_numbers_depend_only_on_the_iteration(tmp_path: Path) -> None:
    drawn: list[list[float]] = []
    for start in (0, 2):
        run = runner(tmp_path)
        (hook,) = [h for h in run.hooks if type(h).__name__ == "IterationSeedHook"]
        numbers = []
        for iteration in range(start, 4):
            run.train_loop._iter = iteration
            torch.rand(start + 7)  # must not matter
            hook.before_train_iter(run, iteration)
            numbers.append(float(torch.rand(())))
        drawn.append(numbers)
    assert drawn[0][2:] == drawn[1]
    assert len(set(drawn[0])) == 4


def test_frozen_parts_do_not_change(tmp_path: Path) -> None:
    run = runner(tmp_path, train_cfg__max_iters=3)
    before = {k: v.clone() for k, v in run.model.frozen.named_parameters()}
    run.train()
    grouped = [p for g in run.optim_wrapper.optimizer.param_groups for p in g["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in run.model.layers.parameters()}
    assert all(torch.equal(before[k], v) for k, v in run.model.frozen.named_parameters())
    assert all(p.grad is None for p in run.model.frozen.parameters())
    assert not run.model.frozen.training


def test_frozen_parts_are_left_out_without_paramwise_cfg(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    del cfg.optim_wrapper["paramwise_cfg"]
    run = OpenVocabRunner.from_cfg(cfg)
    run.optim_wrapper = run.build_optim_wrapper(run.optim_wrapper)
    groups = run.optim_wrapper.optimizer.param_groups
    assert sum(len(g["params"]) for g in groups) == len(list(run.model.layers.parameters()))


def test_other_train_vocabulary_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set model.ensemble.train_vocabulary to"):
        runner(tmp_path, model__train_vocabulary="cat; zebra").train()


def test_default_train_vocabulary_is_the_dataset_s(tmp_path: Path) -> None:
    run = runner(tmp_path, model__train_vocabulary="zebra")
    run.model.train_vocabulary_is_open = True  # as in segmentors whose config sets none
    run.train()
    assert run.model.ensemble.train_vocabulary.synonyms == (("cat",), ("dog",))
    assert not run.model.train_vocabulary_is_open, "a checkpoint to begin with changes nothing"


def test_more_processes_than_images_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runner(tmp_path)
    monkeypatch.setattr(run, "_world_size", 4)
    with pytest.raises(ConfigError, match="4 processes for 3 images"):
        _ = run.val_loop


def test_dataset_errors_in_workers_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: SmallDataset, index: int) -> dict:
        raise DatasetError("images/3.jpg: 7 x 7 pixels, its PNG has 8 x 8")

    monkeypatch.setattr(SmallDataset, "__getitem__", refuse)
    with pytest.raises(DatasetError) as caught:
        runner(tmp_path, train_dataloader__num_workers=1).train()
    assert str(caught.value) == "images/3.jpg: 7 x 7 pixels, its PNG has 8 x 8"


def test_an_empty_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no image"):
        runner(tmp_path, train_dataloader__dataset__size=0).train()


def test_batches_larger_than_the_dataset_repeat_images(tmp_path: Path) -> None:
    run = runner(tmp_path, train_dataloader__batch_size=9, train_cfg__max_iters=1)
    run.train()
    assert len(run.model.seen[0]["images"]) == 9
    assert set(run.model.seen[0]["images"]) == set(range(7))


def test_test_on_another_test_set(tmp_path: Path) -> None:
    run = runner(tmp_path)
    for size, names in ((4, ("a", "b")), (6, ("c",))):
        cfg = config(tmp_path)
        cfg.test_dataloader = cfg.pop("val_dataloader")
        cfg.test_dataloader.dataset.update(size=size, names="; ".join(names))
        cfg.test_evaluator = cfg.pop("val_evaluator")
        cfg.pop("val_cfg")
        cfg.test_cfg = dict(type="OpenVocabTestLoop")
        assert run.test_on(cfg)["count/images"] == size
        assert run.model.seen[-1]["vocabulary"] == names
    assert isinstance(run.test_dataloader.dataset[0]["data_samples"], DetDataSample)
