"""Mean and standard deviation over the results of several training runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tools.analysis_tools.summarize_runs import main


def write(
    file: Path,
    checkpoint: str,
    config: str = "a.py",
    precision: str = "fp32",
    limit: int | None = None,
    **metrics: float,
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    named = {key.replace("__", "/"): value for key, value in metrics.items()}
    content = dict(
        config=dict(file=f"/somewhere/configs/{config}", options={}),
        checkpoint=dict(file="iter_1.pth", sha256=checkpoint),
        random_weights=False,
        precision=precision,
        sets=dict(toy=dict(metrics=named, images=limit or 500, limit=limit)),
    )
    file.write_text(json.dumps(content))


def test_means_and_sample_deviations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(0).uniform(20, 80, 3)
    for seed, value in enumerate(values.tolist()):
        numbers = dict(panoptic__PQ=value, panoptic__novel__PQ=value / 2)
        write(tmp_path / f"seed_{seed}/result.json", str(seed), **numbers)
    write(tmp_path / "other/result.json", "0", "b.py", panoptic__PQ=7.0)
    (tmp_path / "other/dataset.json").write_text("[]")  # not a results file, and mmengine's log:
    (tmp_path / "other/scalars.json").write_text('{"loss": 2.0}\n{"loss": 1.0}\n')
    assert main([str(tmp_path), "--format", "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert cells[0][1:] == ["runs", "PQ", "PQ novel"]
    rows = {row[0]: row[1:] for row in cells[2:]}
    mean, spread = values.mean(), values.std(ddof=1)
    wanted = [f"{mean:.1f} ± {spread:.1f}", f"{mean / 2:.1f} ± {spread / 2:.1f}"]
    assert rows == {"a, toy": ["3", *wanted], "b, toy": ["1", "7.0", "-"]}


def test_results_are_grouped_by_everything_but_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "1.json", "1", "steps/t0.py", panoptic__PQ=1.0)
    write(tmp_path / "2.json", "2", "toy/steps/t0.py", panoptic__PQ=2.0)
    write(tmp_path / "3.json", "3", "steps/t0.py", limit=50, panoptic__PQ=3.0)
    write(tmp_path / "4.json", "4", "steps/t0.py", precision="bf16", panoptic__PQ=4.0)
    write(tmp_path / "5.json", "5", "steps/t0.py", panoptic__PQ=5.0)
    assert main([str(tmp_path), "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {name: numbers["PQ"]["values"] for name, numbers in data.items()} == {
        "steps/t0, toy": [1.0, 5.0],
        "toy/steps/t0, toy": [2.0],
        "steps/t0, toy, first 50": [3.0],
        "steps/t0, bf16, toy": [4.0],
    }
    assert data["steps/t0, toy"]["PQ"]["mean"] == 3.0
    assert data["steps/t0, toy"]["PQ"]["std"] == pytest.approx(np.std([1, 5], ddof=1))


def test_two_results_of_one_checkpoint_raise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        write(tmp_path / f"{name}.json", "same", panoptic__PQ=1.0)
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert (
        "two.json: another file has a result of a, toy with the same checkpoint"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file or folder"),
        ("{", "is damaged"),
        ("[" * 100_000, "nested too deeply"),
        ("{}", "was not written by"),
        ('{"sets": [], "config": 3, "random_weights": 0}', "is damaged (fields have other types"),
        (
            '{"sets": {"a": {"metrics": {"PQ": "50"}}}, "config": {"file": "a.py"},'
            ' "random_weights": false}',
            "is damaged (fields have other types",
        ),
    ],
)
def test_invalid_result_files_raise(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit):
        main([str(file)])
    assert message in capsys.readouterr().err
