"""What a run shows on the console, and what only its log file has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from odise_mm.cli import train
from odise_mm.engine import OpenVocabRunner
from odise_mm.errors import ConfigError
from tests.support.small_training import CONFIG, config

LOSS = re.compile(r"Iter\(train\) \[.* loss: ")
PROGRESS = re.compile(r"Iter\(val\) \[.* eta: ")


@pytest.fixture
def shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], request) -> tuple[list[str], str]:
    """Lines on the console, and the log file, of a run at a ``log_level``."""
    path = tmp_path / "small.py"
    path.write_text(CONFIG)
    changes = [f"log_level={request.param}", "val_dataloader.dataset.size=40"]
    arguments = [str(path), "--work-dir", str(tmp_path / "w"), "--cfg-options", *changes]
    assert train.main(arguments) == 0
    (log,) = tmp_path.glob("w/*/*.log")
    return capsys.readouterr().out.splitlines(), log.read_text()


@pytest.mark.parametrize("shown", ["INFO"], indirect=True)
def test_losses_and_results_come_within_30_lines(shown: tuple[list[str], str]) -> None:
    lines, log = shown
    is_result = ["count/images: 40" in line for line in lines]
    assert [bool(LOSS.search(line)) for line in lines].index(True) < 30
    assert is_result.index(True) < 30
    assert len(PROGRESS.findall("\n".join(lines))) == 3 * 10  # three validations
    assert len(PROGRESS.findall(log)) == 3 * 40
    for detail in ("System environment:", "param_scheduler", "Hooks will be", "paramwise_opt"):
        assert detail in log
        assert not any(detail in line for line in lines)
    assert any(line.startswith("log file: ") for line in lines)


@pytest.mark.parametrize("shown", ["WARNING"], indirect=True)
def test_no_level_hides_losses(shown: tuple[list[str], str]) -> None:
    lines, log = shown
    losses = [line for line in lines if LOSS.search(line)]
    results = [line for line in lines if "count/images: 40" in line]
    assert len(losses) == 12 and len(results) == 3
    assert {line for line in lines if " - INFO - " in line} == {*losses, *results}
    assert "System environment:" in log


def test_unknown_level(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="log_level='LOUD': must be DEBUG, INFO, WARNING"):
        OpenVocabRunner.from_cfg(config(tmp_path, log_level="LOUD"))
