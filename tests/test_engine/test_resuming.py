"""Interrupted runs can be resumed and end with the same weights."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.fileio import LocalBackend
from torch import Tensor

from odise_mm.checkpoints.safe_loading import save_state_dict
from odise_mm.checkpoints.training_state import (
    latest_checkpoint,
    read_training_state,
)
from odise_mm.config.changing import set_precision
from odise_mm.engine import OpenVocabRunner
from odise_mm.errors import CheckpointError, TrainingError
from odise_mm.utils.files import remove_leftovers, replacing
from tests.support.small_training import CONFIG, config, weights

ROOT = Path(__file__).resolve().parents[2]


def train(work_dir: Path, **changes) -> OpenVocabRunner:
    runner = OpenVocabRunner.from_cfg(config(work_dir, **changes))
    runner.train()
    return runner


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(folder)
    return folder / "iter_12.pth"


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("short")
    train(folder, train_cfg__max_iters=6)
    return folder / "iter_6.pth"


def assert_same_training(path: Path, reference: Path) -> None:
    """Compare weights, optimizer and schedule exactly."""
    found, wanted = read_training_state(path), read_training_state(reference)
    for key in ("state_dict", "optimizer", "param_schedulers"):
        assert same(found[key], wanted[key]), key
    assert found["meta"]["iter"] == wanted["meta"]["iter"]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_training_moves_the_weights(uninterrupted: Path) -> None:
    before = weights(uninterrupted.with_name("iter_9.pth"))
    after = weights(uninterrupted)
    assert all(not torch.equal(before[key], after[key]) for key in after)


def test_killed_twice(tmp_path: Path, uninterrupted: Path) -> None:
    """SIGKILL once between two checkpoints and once while one is written."""
    file = tmp_path / "small.py"
    file.write_text(CONFIG)

    def run(hook: str) -> int:
        command = [sys.executable, str(ROOT / "tools/train.py"), str(file), "--resume"]
        command += ["--work-dir", str(tmp_path / "work"), "--cfg-options"]
        # The last bits of sums depend on the number of threads.
        threads = str(torch.get_num_threads())
        environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS=threads)
        done = subprocess.run(
            [*command, f"custom_hooks=[{hook}]"], env=environment, capture_output=True, text=True
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode

    assert run("{'type': 'KillHook', 'iteration': 8}") == -9
    work = tmp_path / "work"
    assert latest_checkpoint(work).name == "iter_6.pth"
    assert run("{'type': 'KillHook', 'iteration': 9, 'saving': True}") == -9
    assert latest_checkpoint(work).name == "iter_6.pth"
    assert {p.name for p in work.glob("*.pth")} == {"iter_3.pth", "iter_6.pth"}
    assert len(list(work.glob(".iter_9.pth.*.tmp"))) == 1
    resumed = train(work, resume=True)
    assert [s["mode"] for s in resumed.model.seen].count("loss") == 6
    assert not list(work.glob(".*.tmp"))
    assert {p.name for p in work.glob("*.pth")} == {"iter_9.pth", "iter_12.pth"}
    assert_same_training(work / "iter_12.pth", uninterrupted)


class Crash(BaseException):
    """Simulate a crash within the process."""


@contextmanager
def crash_at(call: int) -> Iterator[None]:
    """Replace the given call of the functions that change files by a crash."""
    count = 0

    def crashing(function: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            nonlocal count
            count += 1
            if count == call:
                raise Crash
            return function(*args, **kwargs)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalBackend, "put", crashing(LocalBackend.put))
        patch.setattr(os, "fsync", crashing(os.fsync))
        patch.setattr(os, "replace", crashing(os.replace))
        patch.setattr(Path, "unlink", crashing(Path.unlink))
        yield
    assert count >= call, "there are fewer such calls"


@pytest.mark.parametrize("call", range(1, 20))  # two saves, the second of which removes the first
def test_crash_at_any_step_of_saving(call: int, tmp_path: Path, short: Path) -> None:
    one = dict(default_hooks__checkpoint__max_keep_ckpts=1, train_cfg__max_iters=6)
    with crash_at(call), pytest.raises(Crash):
        train(tmp_path, **one)
    for path in tmp_path.glob("*.pth"):
        read_training_state(path)  # files with a checkpoint's name are complete
    train(tmp_path, resume=True, **one)
    assert_same_training(tmp_path / "iter_6.pth", short)
    assert [p.name for p in tmp_path.glob("*.pth")] == ["iter_6.pth"]
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_full_disk_keeps_the_previous_checkpoint(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = LocalBackend.put

    def fill(backend: LocalBackend, content: bytes, path: str) -> None:
        if "iter_6" not in str(path):
            return put(backend, content, path)
        with open(path, "wb") as stream:  # as much as fits
            stream.write(content[:1000])
        with open("/dev/full", "wb", buffering=0) as stream:
            stream.write(content[1000:])

    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, "put", fill)
        with pytest.raises(TrainingError) as caught:
            train(tmp_path, default_hooks__checkpoint__max_keep_ckpts=1)
    message = str(caught.value)
    for part in ("iteration 6", os.strerror(errno.ENOSPC), "iter_3.pth is complete", "--resume"):
        assert part in message
    assert "\n" not in message
    assert [p.name for p in tmp_path.glob("*.pth")] == ["iter_3.pth"]
    assert not list(tmp_path.glob(".*.tmp"))
    train(tmp_path, resume=True)
    assert_same_training(tmp_path / "iter_12.pth", uninterrupted)


def test_resumed_with_worker_processes(tmp_path: Path, uninterrupted: Path) -> None:
    train(tmp_path, train_cfg__max_iters=7)
    workers = dict(train_dataloader__num_workers=2, train_dataloader__persistent_workers=True)
    train(tmp_path, resume=True, **workers)
    assert_same_training(tmp_path / "iter_12.pth", uninterrupted)


def test_resuming_loads_no_image_twice(tmp_path: Path) -> None:
    train(tmp_path, train_cfg__max_iters=3)
    resumed = train(tmp_path, resume=True, train_cfg__max_iters=5)
    assert len(resumed.train_dataloader.dataset.loaded) == 2 * 2


def test_other_samplers_resume_too(tmp_path: Path) -> None:
    """The batches that were seen are loaded and skipped, as in mmengine."""
    plain = dict(train_dataloader__sampler__type="mmengine.InfiniteSampler")
    whole = train(tmp_path / "whole", **plain)
    train(tmp_path / "parts", train_cfg__max_iters=3, **plain)
    parts = train(tmp_path / "parts", resume=True, **plain)
    images = [[s["images"] for s in r.model.seen if s["mode"] == "loss"] for r in (whole, parts)]
    assert images[0][3:] == images[1]


def test_default_seed_is_taken_from_the_checkpoint(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", randomness=dict(seed=None))
    seed = whole.seed
    train(tmp_path / "parts", randomness=dict(seed=seed), train_cfg__max_iters=6)
    train(tmp_path / "parts", randomness=dict(seed=None), resume=True)
    assert_same_training(tmp_path / "parts/iter_12.pth", tmp_path / "whole/iter_12.pth")


def test_nothing_to_resume_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = train(tmp_path, resume=True, train_cfg__max_iters=1)
    assert runner.iter == 1
    assert latest_checkpoint(tmp_path).name == "iter_1.pth"


def test_a_moved_folder_resumes(tmp_path: Path, uninterrupted: Path) -> None:
    train(tmp_path / "before", train_cfg__max_iters=6)
    (tmp_path / "before").rename(tmp_path / "after")
    train(tmp_path / "after", resume=True)
    assert_same_training(tmp_path / "after/iter_12.pth", uninterrupted)


def test_content_of_a_checkpoint(uninterrupted: Path) -> None:
    state = read_training_state(uninterrupted)
    assert set(state) == {
        "meta", "state_dict", "message_hub", "optimizer", "param_schedulers"
    }  # fmt: skip
    assert {key.split(".")[0] for key in state["state_dict"]} == {"layers"}
    assert len(state["optimizer"]["state"]) == len(state["state_dict"])
    assert "loss" in str(state["message_hub"]["log_scalars"].keys())
    assert state["meta"]["train_vocabulary"]["synonyms"] == [["cat"], ["dog"]]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "damaged"),
        (b"PK\x03\x04 cut off", "damaged"),
        (dict(state_dict={}), "no optimizer, meta, message_hub.*load_from"),
        ([1], "no state_dict, optimizer"),
    ],
)
def test_invalid_training_states_raise(content, message: str, tmp_path: Path) -> None:
    path = tmp_path / "iter_1.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_training_state(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_of_another_config_raises(uninterrupted: Path, tmp_path: Path) -> None:
    for changes, message in [
        (dict(model__width=5), r"of another shape \(first: layers.0.weight is \(4, 2\)"),
        (dict(train_dataloader__dataset__names="cat; bird", model__train_vocabulary="cat; bird"),
         "other class names"),
        (dict(optim_wrapper__paramwise_cfg=dict(custom_keys=dict(layers=dict(lr_mult=1.0)))), ""),
    ]:  # fmt: skip
        cfg = config(tmp_path, resume=True, load_from=str(uninterrupted), **changes)
        if not message:
            OpenVocabRunner.from_cfg(cfg).train()  # same parameters: the optimizer's state fits
            continue
        with pytest.raises(CheckpointError, match=message) as caught:
            OpenVocabRunner.from_cfg(cfg).train()
        assert str(uninterrupted) in str(caught.value) and "load_from" in str(caught.value)


def test_mixed_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resume runs in bf16, with autocast on the CPU."""
    wrapper = "mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available"
    monkeypatch.setattr(wrapper, lambda: True)
    monkeypatch.setattr("odise_mm.config.checking._check_devices", lambda cfg, world: None)

    def run(folder: str, precision: str, **changes) -> Path:
        cfg = config(tmp_path / folder, **changes)
        set_precision(cfg, precision)
        runner = OpenVocabRunner.from_cfg(cfg)
        runner.train()
        return tmp_path / folder / f"iter_{runner.max_iters}.pth"

    whole = run("whole", "bf16")
    run("parts", "bf16", train_cfg__max_iters=6)
    assert_same_training(run("parts", "bf16", resume=True), whole)
    assert not same(weights(whole), weights(run("fp32", "fp32")))


def test_a_checkpoint_of_another_optimizer_raises(uninterrupted: Path, tmp_path: Path) -> None:
    state = read_training_state(uninterrupted)
    state["optimizer"]["param_groups"].pop()
    path = tmp_path / "iter_12.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=f"{path} was made with another optimizer"):
        train(tmp_path / "work", resume=True, load_from=str(path))


def test_starting_from_weights(uninterrupted: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    save_state_dict(start, weights(uninterrupted))
    for path in (uninterrupted, start):
        run = train(tmp_path / path.stem, load_from=str(path), optim_wrapper__optimizer__lr=0.0)
        assert [s["mode"] for s in run.model.seen].count("loss") == 12
        assert same(weights(run.work_dir + "/iter_12.pth"), weights(uninterrupted))
    with pytest.raises(CheckpointError, match="does not match this config: .*layers.0.weight"):
        train(tmp_path / "other", load_from=str(start), model__width=5)


def test_last_checkpoint_names_a_missing_file(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "last_checkpoint").write_text("/gone/iter_3.pth")
    with pytest.raises(CheckpointError, match="last_checkpoint names /gone/iter_3.pth"):
        latest_checkpoint(tmp_path)


def test_replacing_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_only_leftovers_are_removed(tmp_path: Path) -> None:
    keep = [tmp_path / name for name in ("iter_3.pth", ".mine.tmp", "a.12345678.tmp", ".git")]
    leftover = tmp_path / ".iter_3.pth.0123abcd.tmp"
    for path in [*keep, leftover]:
        path.touch()
    assert remove_leftovers(tmp_path) == [leftover]
    assert set(tmp_path.iterdir()) == set(keep)


def test_the_old_best_checkpoint_is_removed_after_saving(tmp_path: Path) -> None:
    """mmengine removes the old file before it saves."""
    saved: list[list[str]] = []

    class Watched(OpenVocabRunner):
        def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
            saved.append([filename, *sorted(p.name for p in tmp_path.glob("best*"))])
            super().save_checkpoint(out_dir, filename, *args, **kwargs)

    cfg = config(
        tmp_path,
        val_evaluator=[dict(type="CountImages", growing=True)],
        default_hooks__checkpoint__save_best="count/images",
        default_hooks__checkpoint__rule="greater",
    )
    Watched.from_cfg(cfg).train()
    best = "best_count_images_iter_{}.pth".format
    assert [best(10), best(5)] in saved and [best(12), best(10)] in saved
    assert [p.name for p in tmp_path.glob("best*")] == [best(12)]
