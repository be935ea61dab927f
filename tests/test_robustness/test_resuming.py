"""Training states that were copied, received from others or made with another config."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from odise_mm.checkpoints.training_state import latest_checkpoint, read_training_state
from odise_mm.engine import OpenVocabRunner
from odise_mm.errors import CheckpointError, ConfigError, TrainingError
from tests.support.small_training import config

BEST = dict(
    default_hooks__checkpoint__save_best="count/images",
    default_hooks__checkpoint__rule="greater",
    default_hooks__checkpoint__max_keep_ckpts=2,
    val_evaluator=[dict(type="CountImages", growing=True)],
)


def train(work_dir: Path, **changes: Any) -> OpenVocabRunner:
    runner = OpenVocabRunner.from_cfg(config(work_dir, **changes))
    runner.train()
    return runner


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train 6 iterations: a work directory with iter_5.pth, iter_6.pth and the best checkpoint."""
    folder = tmp_path_factory.mktemp("finished") / "work"
    train(folder, **BEST, train_cfg__max_iters=6)
    assert names(folder) == {"iter_5.pth", "iter_6.pth", "best_count_images_iter_6.pth"}
    return folder


@pytest.fixture
def work(finished: Path, tmp_path: Path) -> Path:
    """Copy the finished work directory."""
    return Path(shutil.copytree(finished, tmp_path / "work"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.pth")}


def change(path: Path, edit: Callable[[dict], Any]) -> None:
    state = torch.load(path, map_location="cpu", weights_only=True)
    edit(state)
    torch.save(state, path)


# --------------------------------------------------------------------- another config than before


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(train_dataloader__batch_size=3), "images per iteration: 2 in the checkpoint, 3 now"),
        (
            dict(optim_wrapper__optimizer__lr=0.02),
            "learning rate: 0.01 in the checkpoint, 0.02 now",
        ),
        (
            dict(train_dataloader__dataset__size=8),
            "images in the training data: 7 in the checkpoint, 8 now",
        ),
        (dict(train_dataloader__sampler__shuffle=False), "True in the checkpoint, False now"),
        (
            dict(train_dataloader__sampler__type="InfiniteSampler"),
            "sampler: SeededSampler in the checkpoint",
        ),
        (
            dict(train_dataloader__sampler__seed=3),
            "seed of the sampler: 0 in the checkpoint, 3 now",
        ),
        (
            dict(optim_wrapper__accumulative_counts=2),
            "iterations per update: 1 in the checkpoint, 2 now",
        ),
        (dict(randomness=dict(seed=5)), "seed=0, but this config sets 5"),
        (dict(param_scheduler=[]), "schedules (param_scheduler): 2 in the checkpoint, 0 now"),
        (
            dict(optim_wrapper__optimizer=dict(type="SGD", lr=0.01, momentum=0.9)),
            "different optimizer",
        ),
    ],
)
def test_different_settings_raise(work: Path, changes: dict, words: str) -> None:
    before = names(work)
    with pytest.raises(CheckpointError) as caught:
        train(work, **BEST, resume=True, **changes)
    message = str(caught.value)
    assert words in message and "load_from" in message and "\n" not in message
    assert str(work / "iter_6.pth") in message and names(work) == before


def test_all_differences_are_in_the_message(work: Path) -> None:
    changes = dict(train_dataloader__batch_size=1, optim_wrapper__optimizer__lr=1e-3)
    with pytest.raises(CheckpointError, match=r"images per iteration: .*; learning rate: 0\.01"):
        train(work, resume=True, **changes)


def test_settings_taken_from_the_checkpoint_are_logged(
    work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    longer = dict(param_scheduler__1__milestones=[11], optim_wrapper__optimizer__weight_decay=0.1)
    cfg = config(work, **BEST, resume=True, **longer)
    runner = OpenVocabRunner.from_cfg(cfg)
    runner.logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING):
        runner.train()
    assert (
        "weight_decay: 0.05 in the checkpoint, 0.1 now: the checkpoint's value is used"
        in caplog.text
    )
    assert (
        "MultiStepLR.milestones: {9: 1} in the checkpoint, {11: 1} now: the checkpoint's value"
        in caplog.text
    )


def test_another_number_of_processes_is_accepted(work: Path) -> None:
    """Two processes with one image each may resume a run of one process with two images."""
    change(work / "iter_6.pth", lambda state: state["meta"]["training"].update(processes=2))
    assert train(work, **BEST, resume=True).iter == 12


def test_more_iterations_are_accepted(work: Path) -> None:
    assert train(work, **BEST, resume=True, train_cfg__max_iters=14).iter == 14


# ------------------------------------------------------------------- which checkpoint, which files


def test_without_last_checkpoint_the_newest_is_used(work: Path) -> None:
    (work / "last_checkpoint").unlink()
    (work / "iter_9000.pth").mkdir()  # an unrelated folder
    assert latest_checkpoint(work) == work / "iter_6.pth"
    resumed = train(work, **BEST, resume=True, train_cfg__max_iters=9)
    assert [s["mode"] for s in resumed.model.seen].count("loss") == 3
    assert {"iter_6.pth", "iter_9.pth"} <= names(work) and (work / "iter_9000.pth").is_dir()


def test_last_checkpoint_that_is_not_text_raises(work: Path) -> None:
    (work / "last_checkpoint").write_bytes(b"\xff\x00\x1b[2J")
    with pytest.raises(
        CheckpointError, match=r"the newest in this folder is iter_6\.pth"
    ) as caught:
        latest_checkpoint(work)
    assert "\x1b" not in str(caught.value)


def test_a_new_run_does_not_remove_older_checkpoints(work: Path, finished: Path) -> None:
    content = {path.name: path.read_bytes() for path in work.glob("*.pth")}
    for changes in ({}, dict(load_from=str(work / "iter_6.pth"))):
        with pytest.raises(TrainingError, match=r"of another run .* and 2 more.*--resume"):
            train(work, **changes)
    # A run that resumes from elsewhere must not write here either.
    with pytest.raises(TrainingError, match="another --work-dir"):
        train(work, **BEST, resume=True, load_from=str(finished / "iter_6.pth"))
    assert {path.name: path.read_bytes() for path in work.glob("*.pth")} == content


def test_resuming_a_copy_does_not_change_the_original(work: Path, finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.glob("*.pth")}
    train(work, **BEST, resume=True, train_cfg__max_iters=18)
    assert {path: path.read_bytes() for path in finished.glob("*.pth")} == before
    assert names(work) == {"iter_15.pth", "iter_18.pth", "best_count_images_iter_18.pth"}
    assert latest_checkpoint(work) == work / "iter_18.pth"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_paths_in_a_training_state_are_not_followed(work: Path, tmp_path: Path, kind: str) -> None:
    outside, inside = tmp_path / "outside", work / "notes"
    for path in (outside, inside):
        if kind == "file":
            path.write_text("precious")
        else:
            path.mkdir()
            (path / "precious").touch()
    (work / "iter_1.pth").mkdir()
    victim = tmp_path / "iter_2.pth"
    victim.write_text("precious")

    def poison(state: dict) -> None:
        info = state["message_hub"]["runtime_info"]
        info.update(best_ckpt=str(outside), last_ckpt=str(inside), best_score=0)
        info["best_ckpt_count/images"] = str(inside)
        up = f"{outside}/iter", "../iter_2", -1, 2.0, True, None, [1]
        info["keep_ckpt_ids"] = [*up, 1, 3, 6]
        for key in info:
            state["message_hub"]["resumed_keys"][key] = True

    change(work / "iter_6.pth", poison)
    train(work, **BEST, resume=True)
    assert outside.exists() and inside.exists() and victim.read_text() == "precious"
    assert (work / "iter_1.pth").is_dir()
    assert latest_checkpoint(work) == work / "iter_12.pth"


def test_a_training_state_runs_no_code(work: Path, tmp_path: Path) -> None:
    """mmengine's runner would read meta['config'] as a config, which runs code."""
    written = tmp_path / "written"
    text = f"open({str(written)!r}, 'w').close()"
    change(work / "iter_6.pth", lambda state: state["meta"].update(config=text, hook="x"))
    train(work, **BEST, resume=True, train_cfg__max_iters=7)
    assert not written.exists()


# ----------------------------------------------------------------------------- of the wrong type


def put(*keys: str | int, value: Any) -> Callable[[dict], None]:
    def edit(state: Any) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return edit


@pytest.mark.parametrize(
    "edit, entry",
    [
        (put("meta", value=[1]), "meta"),
        (put("meta", "iter", value="6"), "meta['iter']"),
        (put("meta", "iter", value=-1), "meta['iter']"),
        (put("meta", "iter", value=6.5), "meta['iter']"),
        (put("meta", "iter", value=True), "meta['iter']"),
        (put("meta", "epoch", value=None), "meta['epoch']"),
        (put("meta", "seed", value="0\x1b[2J"), "meta['seed']"),
        (put("meta", "training", value=3), "meta['training']"),
        (put("message_hub", value=None), "message_hub"),
        (put("message_hub", "runtime_info", value=[]), "message_hub['runtime_info']"),
        (put("message_hub", "runtime_info", value={1: 2}), "message_hub['runtime_info']"),
        (put("message_hub", "resumed_keys", value="x"), "message_hub['resumed_keys']"),
        (put("message_hub", "log_scalars", value={"loss": 3}), "curve 'loss'"),
        (put("optimizer", "param_groups", value={}), "optimizer['param_groups']"),
        (put("optimizer", "state", value=[]), "optimizer['state']"),
        (put("optimizer", "state", value={0: 5}), "optimizer['state'][0]"),
        (put("message_hub", "resumed_keys", "iter", value="x"), "message_hub['resumed_keys']"),
        (put("param_schedulers", value=[1]), "param_schedulers"),
        (put("state_dict", value=[]), "state_dict"),
        (put("state_dict", "layers.0.weight", value=1.0), "layers.0.weight"),
    ],
)
def test_entries_of_the_wrong_type(finished: Path, tmp_path: Path, edit: Any, entry: str) -> None:
    path = tmp_path / "iter_6.pth"
    shutil.copy(finished / path.name, path)
    change(path, edit)
    with pytest.raises(CheckpointError, match="cannot be resumed from") as caught:
        read_training_state(path)
    message = str(caught.value)
    assert entry in message and str(path) in message and message.isprintable()


@pytest.mark.parametrize("iteration", [13, 10**30])
def test_more_iterations_than_the_run_has(work: Path, iteration: int) -> None:
    """Otherwise the run would end at once, as if it were finished."""
    change(work / "iter_6.pth", put("meta", "iter", value=iteration))
    with pytest.raises(CheckpointError, match="is from iteration 1.*max_iters is 12"):
        train(work, **BEST, resume=True)


def test_a_work_directory_that_is_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"work\xff")
    with pytest.raises(ConfigError, match=r"work_dir .*work\\udcff is not UTF-8 text") as caught:
        train(folder)
    assert str(caught.value).isprintable() and not folder.exists()


@pytest.mark.parametrize(
    "edit, words",
    [
        (put("optimizer", "param_groups", 0, "lr", value="0.01"), "lr: 0.01 in the checkpoint"),
        (put("optimizer", "param_groups", 0, "eps", value=None), "eps: None in the checkpoint"),
        (
            put("optimizer", "param_groups", 0, "betas", value=(0.9,)),
            "betas: (0.9,) in the checkpoint",
        ),
        (put("optimizer", "param_groups", 0, "betas", value=("a", 0.9)), "betas: "),
        (put("optimizer", "state", 0, "exp_avg", value=torch.ones(7)), "exp_avg of parameter 0"),
        (put("optimizer", "state", 0, "exp_avg_sq", value=[1.0]), "exp_avg_sq of parameter 0"),
        (
            put("param_schedulers", 0, "end", value=None),
            "LinearLR.end: None in the checkpoint, 5 now",
        ),
        (put("param_schedulers", 0, "last_step", value="6"), "LinearLR.last_step"),
        (put("param_schedulers", 1, "milestones", value=[9]), "MultiStepLR.milestones"),
    ],
)
def test_invalid_optimizer_states_raise(work: Path, edit: Any, words: str) -> None:
    change(work / "iter_6.pth", edit)
    with pytest.raises(CheckpointError) as caught:
        train(work, **BEST, resume=True)
    message = str(caught.value)
    assert words in message and str(work / "iter_6.pth") in message and "\n" not in message


def test_other_runtime_info_is_ignored(work: Path) -> None:
    def poison(state: dict) -> None:
        info = dict(best_score="high", best_ckpt=3, last_ckpt=None, keep_ckpt_ids="36")
        state["message_hub"]["runtime_info"].update(info)

    change(work / "iter_6.pth", poison)
    assert train(work, **BEST, resume=True).iter == 12
    assert "iter_12.pth" in names(work)
