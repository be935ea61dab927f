"""Mean and spread over the results of several trainings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tools.analysis_tools.summarize_runs import main


def write(file: Path, checkpoint: str, config: str = "a.py", **metrics: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = dict(
        config=dict(file=f"configs/{config}", options={}),
        checkpoint=dict(file="iter_1.pth", sha256=checkpoint),
        sets=dict(toy=dict(metrics={key.replace("__", "/"): v for key, v in metrics.items()})),
    )
    file.write_text(json.dumps(content))


def test_means_and_sample_deviations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(0).uniform(20, 80, 3)
    for seed, value in enumerate(values.tolist()):
        numbers = dict(panoptic__PQ=value, panoptic__novel__PQ=value / 2)
        write(tmp_path / f"seed_{seed}/result.json", str(seed), **numbers)
    write(tmp_path / "other/result.json", "0", "b.py", panoptic__PQ=7.0)
    (tmp_path / "other/dataset.json").write_text("[]")  # something else
    assert main([str(tmp_path), "--format", "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert cells[0][1:] == ["runs", "PQ", "PQ novel"]
    rows = {row[0]: row[1:] for row in cells[2:]}
    mean, spread = values.mean(), values.std(ddof=1)
    wanted = [f"{mean:.1f} ± {spread:.1f}", f"{mean / 2:.1f} ± {spread / 2:.1f}"]
    assert rows == {"a, toy": ["3", *wanted], "b, toy": ["1", "7.0", "-"]}


def test_a_checkpoint_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        write(tmp_path / f"{name}.json", "same", panoptic__PQ=1.0)
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "two.json: another file has a with the same checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), ("{", "not JSON"), ("{}", "no result of")]
)
def test_what_is_no_result_is_named(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit):
        main([str(file)])
    assert message in capsys.readouterr().err
