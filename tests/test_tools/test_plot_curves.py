"""tools/analysis_tools/plot_curves.py on runs that take no time."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from odise_mm.benchmarks.curves import read_runs
from odise_mm.cli import train
from tests.support.small_training import CONFIG
from tools.analysis_tools import plot_curves as tool


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Work directories of a run, and of the same run with an interruption after a checkpoint."""
    folder = tmp_path_factory.mktemp("curves")
    (folder / "small.py").write_text(CONFIG)
    whole, parts = folder / "whole", folder / "parts"
    start = [str(folder / "small.py"), "--work-dir"]
    assert train.main([*start, str(whole)]) == 0
    with pytest.raises(SystemExit):  # after the checkpoint of iteration 6
        train.main([*start, str(parts), "--cfg-options", "model.broken_at=9"])
    assert train.main([*start, str(parts), "--resume"]) == 0
    return whole, parts


def test_a_resumed_run_has_the_curves_of_a_whole_run(runs: tuple[Path, Path]) -> None:
    whole, parts = (run.curves for run in read_runs(runs))
    assert list(whole["loss"]) == list(parts["loss"]) == list(range(1, 13))
    assert whole["loss"] == pytest.approx(parts["loss"])
    assert whole["lr"] == parts["lr"] and whole["lr"][1] < whole["lr"][6] > whole["lr"][12]
    assert list(whole["count/images"]) == list(parts["count/images"]) == [5, 10, 12]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot_and_table(
    runs: tuple[Path, Path], tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / f"curves{suffix}"
    assert tool.main([*map(str, runs), "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith(": loss, lr\n")  # there is no PQ
    with open(tmp_path / "curves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 12
    found = {int(r["iteration"]): float(r["value"]) for r in rows if r["quantity"] == "loss"}
    assert found == read_runs(runs)[1].curves["loss"]
    if suffix == ".png":
        with Image.open(out) as image:
            assert image.width > 2 * image.height / 1.5
    else:
        text = out.read_text()
        assert text.count('<g id="axes_') == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "line 1: not JSON"), ("[1]", "line 1: not an object"), ('{"a": "b"}', "not an object")],
)
def test_damaged_files(tmp_path: Path, line: str, message: str, capsys) -> None:
    file = tmp_path / "run/2026/vis_data/scalars.json"
    file.parent.mkdir(parents=True)
    file.write_text(f"{line}\n")
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path / "run")])
    assert message in capsys.readouterr().err


def test_folders_without_curves_and_unknown_quantities(tmp_path: Path, capsys) -> None:
    file = tmp_path / "run/2026/vis_data/scalars.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(dict(iter=1, loss=2.0)) + "\n" + '{"iter": 2, "lo')  # being written
    assert read_runs([tmp_path / "run"])[0].curves == {"loss": {1: 2.0}}
    for arguments, message in (
        ([tmp_path / "run/2026"], "2026: no curves of a training run"),
        ([tmp_path / "run", "--keys", "mAP"], "no run has 'mAP'; choose from loss"),
        ([tmp_path / "run", "--out", "a.jpg"], "--out must end in .png or .svg"),
    ):
        with pytest.raises(SystemExit):
            tool.main(list(map(str, arguments)))
        assert message in capsys.readouterr().err
