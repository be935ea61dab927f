"""Computed metrics are written even if other files of the run cannot be."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.hooks import Hook

from odise_mm.benchmarks.report import Report
from odise_mm.cli import test as tool
from odise_mm.engine import OpenVocabRunner, result_writer
from odise_mm.engine.result_writer import ResultWriterHook
from odise_mm.errors import ConfigError, EvaluationError
from odise_mm.registry import HOOKS
from tests.support.small_test_set import write_project
from tests.support.small_training import config

SETS = {"five": (20, 16, 28, 8, 10), "one": (20,)}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_project(tmp_path, SETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def run(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[str, str]:
    """Return the error line of a test run and its output."""
    with pytest.raises(SystemExit) as end:
        tool.main(["model.py", "none", "--datasets", *SETS, *arguments])
    assert end.value.code == 2
    printed = capsys.readouterr()
    (line,) = (line for line in printed.err.splitlines() if line.startswith("error: "))
    return line, printed.out


def check_numbers(file: Path) -> dict[str, Any]:
    """Check that all metrics of both sets are in the file."""
    found = json.loads(file.read_text())
    assert found["done"] == list(SETS) and not found["not_done"]
    for name in SETS:
        metrics = found["sets"][name]["metrics"]
        for key in ("panoptic/PQ", "semantic/mIoU", "instance/AP"):
            assert metrics[key] > 0
    assert found["sets"]["one"]["metrics"]["panoptic/PQ"] == pytest.approx(100)
    return found


@pytest.mark.parametrize("part", ["_take_place", "write_json", "_write_json_list"])
def test_metrics_are_kept_if_a_dump_cannot_be_finished(
    part: str, project: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_writer, part, full_disk)
    line, out = run(capsys, "--dump", "dump", "--out", "out.json")
    for name in SETS:
        assert f"{name}, ResultWriterHook: dump/{name}: the dump of {name} could not be" in line
    assert "No space left on device" in line and "wrote out.json" in out
    found = check_numbers(project / "out.json")
    assert "dump/one" in found["sets"]["one"]["failed"]["ResultWriterHook"]


@pytest.mark.parametrize("part", ["_dump", "_show"])
def test_a_disk_that_fills_up_during_the_test(
    part: str, project: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing fails after the third image of the first set."""
    write: Callable = getattr(ResultWriterHook, part)
    calls = []

    def some(self: ResultWriterHook, *arguments: Any) -> None:
        calls.append(arguments)
        full_disk() if len(calls) == 4 else write(self, *arguments)

    monkeypatch.setattr(ResultWriterHook, part, some)
    line, _ = run(capsys, "--dump", "dump", "--show-dir", "show", "--out", "out.json")
    assert "five, ResultWriterHook: results of " in line and "003.png could not be written" in line
    assert "one, ResultWriterHook" not in line
    check_numbers(project / "out.json")
    assert not (project / "dump/five/panoptic.json").exists()
    assert (project / "dump/one/panoptic.json").exists()


def test_memory_errors_during_the_test(
    project: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = ResultWriterHook._dump, []

    def scarce(self: ResultWriterHook, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise MemoryError("Unable to allocate 4 GiB")
        write(self, *arguments)

    monkeypatch.setattr(ResultWriterHook, "_dump", scarce)
    line, _ = run(capsys, "--dump", "dump", "--out", "out.json")
    assert "002.png could not be written (Unable to allocate 4 GiB)" in line
    check_numbers(project / "out.json")


def test_a_dump_folder_that_became_a_file(
    project: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = ResultWriterHook._finish

    def replaced(self: ResultWriterHook) -> None:
        shutil.rmtree(self.dump_dir)
        self.dump_dir.write_text("a file")
        finish(self)

    monkeypatch.setattr(ResultWriterHook, "_finish", replaced)
    line, out = run(capsys, "--dump", "dump", "--out", "out.json")
    assert "/dump is not a folder; choose another one" in line
    found = json.loads((project / "out.json").read_text())
    assert found["done"] == ["five"] and found["sets"]["five"]["metrics"]["panoptic/PQ"] > 0


def test_write_errors_at_the_first_image_raise(
    project: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ResultWriterHook, "_dump", full_disk)
    line, _ = run(capsys, "--dump", "dump", "--out", "out.json")
    assert "No space left on device" in line and not (project / "out.json").exists()


def test_results_that_cannot_be_written_to_their_path(
    project: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Report.write

    def elsewhere(self: Report, path: Path) -> None:
        full_disk() if Path(path).name == "out.json" else write(self, path)

    monkeypatch.setattr(Report, "write", elsewhere)
    line, out = run(capsys, "--out", "out.json", "--work-dir", "work")
    assert "out.json: the results could not be written (No space left on device)" in line
    (spare,) = (project / "work").rglob("results.json")
    assert f"they are in {spare.absolute()}" in line
    check_numbers(spare)
    assert "wrote" not in out and "100.00" in out


@HOOKS.register_module()
class FailingHook(Hook):
    """Fail after the metrics are computed."""

    priority = "VERY_HIGH"

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        raise ConfigError("a hook's own error")


@HOOKS.register_module()
class KeepingHook(Hook):
    """Keep the metrics."""

    kept: list[dict] = []

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self.kept.append(dict(metrics or {}))


def test_other_hooks_are_called_after_a_failure(tmp_path: Path) -> None:
    hooks = [dict(type="FailingHook"), dict(type="KeepingHook")]
    KeepingHook.kept.clear()
    runner = OpenVocabRunner.from_cfg(config(tmp_path, custom_hooks=hooks))
    with pytest.raises(ConfigError, match="a hook's own error"):
        runner.train()
    assert KeepingHook.kept == [{"count/images": 3}]
    assert runner.iter == 5, "training ends where its validation failed"
    assert runner.failed_hooks is None


def test_failing_hooks_keep_the_metrics(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    cfg.test_cfg = dict(type="OpenVocabTestLoop")
    runner = OpenVocabRunner.from_cfg(cfg)

    class Broken(Hook):
        def after_test_epoch(self, runner: Any, metrics: dict | None = None) -> None:
            raise KeyError("bug")

    runner.register_hook(Broken())
    with pytest.raises(EvaluationError, match="Broken: 'bug'") as caught:
        runner.test()
    assert caught.value.numbers == {"count/images": 3}
    assert caught.value.failures == {"Broken": "'bug'"}
    assert "Traceback" in next(tmp_path.rglob("*.log")).read_text()
