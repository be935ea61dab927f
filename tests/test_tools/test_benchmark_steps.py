"""Steps around the network: every table of the program, with small inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from odise_mm.analysis.text_cost import many_names
from tests.support.parts import load_config
from tests.support.small_coco import VOCABULARY, write_small_coco
from tools.analysis_tools import benchmark_steps as tool


def measure(capsys: pytest.CaptureFixture, *arguments: str) -> dict:
    assert tool.main([*arguments, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_names_are_different() -> None:
    names = many_names(["cat", "dog", "cat"], 5)
    assert names[:2] == ["cat", "dog"] and len(set(names)) == 5


def test_names(capsys: pytest.CaptureFixture) -> None:
    result = measure(capsys, "names", "odise_tiny", "--names", "70", "--whole", "40")
    assert (result["names"], result["compared"]) == (70, 40)
    assert result["difference"] < 1e-5 * result["largest"]
    assert 0 < result["cut"]["flops"] < 0.2 * result["whole"]["flops"]
    assert result["machine"]["threads"] == 1


def test_table(capsys: pytest.CaptureFixture) -> None:
    assert tool.main(["names", "odise_tiny", "--vocabulary", "voc20"]) == 0
    assert "ratio" in capsys.readouterr().out


def test_losses(capsys: pytest.CaptureFixture) -> None:
    sizes = ("--size", "64", "--targets", "5", "--layers", "2", "--images", "2", "--repeats", "1")
    result = measure(capsys, "losses", "odise_tiny", *sizes)
    assert result["difference"] == {"losses": 0, "gradients": 0}
    assert set(result["cpu_seconds"]) == {"mmdet", "ours"}


def test_input(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cfg = load_config("odise/odise_coco_label.py")
    coco = write_small_coco(tmp_path / "coco")
    VOCABULARY.save(tmp_path / "names.txt")
    cfg.train_dataloader.dataset = coco.config(
        vocabulary=str(tmp_path / "names.txt"), pipeline=cfg.train_pipeline
    )
    cfg.dump(tmp_path / "small.py")
    result = measure(capsys, "input", str(tmp_path / "small.py"), "--images", "2")
    seconds = result["cpu_seconds"]
    assert seconds["LargeScaleJitter"] > 0 and len(seconds) == 10 and result["segments"] > 1
    assert result["bytes"]["now"] < 10_000 < 1024**2 < result["bytes"]["with one mask per segment"]


def test_evaluation(capsys: pytest.CaptureFixture) -> None:
    sizes = ("--images", "3", "--height", "40", "--width", "60", "--segments", "6")
    result = measure(capsys, "evaluation", *sizes)
    assert len(result["cpu_seconds"]) == 3
    for ours, theirs in result["values"].values():
        assert ours == pytest.approx(theirs, rel=1e-6) and ours > 0
