"""Steps around the network: every table of the program, with small inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from odise_mm.analysis import start_cost, writing_cost
from odise_mm.analysis.meta import build_on_meta, load_model_config
from odise_mm.analysis.text_cost import many_names
from odise_mm.apis import OpenVocabInferencer
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


def test_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    weights = start_cost.write_weights("odise_tiny", tmp_path)
    big = tmp_path / "big.safetensors"
    assert start_cost.write_zeros(big, {"a": torch.empty(4, 10**9, device="meta")}, "fp16") == 8e9
    assert big.stat().st_blocks * 512 < 10**6  # sparse
    job = dict(config="odise_tiny", size=None, threads=torch.get_num_threads())
    job["options"] = dict(precision="bf16", device="cpu", **weights)
    monkeypatch.setattr("sys.argv", ["-c", json.dumps(job)])
    start_cost.report(OpenVocabInferencer)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["stages"]) == ["imports", "model"]
    assert all(use["peak"] >= use["now"] > use["own"] > 0 for use in result["stages"].values())
    # The text tower and the trained part stay in float32.
    model = build_on_meta(load_model_config("odise_tiny"))
    everything = sum(4 * p.numel() for p in model.parameters())
    assert everything / 2 < result["weights_bytes"] < everything
    run = dict(config="odise_tiny", size=None, precision="bf16", files="fp32", commands={})
    table = start_cost.start_table({**run, **result})
    assert [row[0] for row in table.rows] == ["imports", "model"]
    assert "Peak up to the model" in table.notes[1] and len(table.notes) == 2


def test_label(capsys: pytest.CaptureFixture) -> None:
    sizes = ("--images", "6", "--height", "40", "--width", "60", "--segments", "3")
    result = measure(capsys, "label", "odise_tiny", *sizes, "--milliseconds", "20")
    assert [run["workers"] for run in result["runs"]] == [0, 1, 4]
    assert all(0 < run["waited"] < 1 for run in result["runs"])


def test_evaluation(capsys: pytest.CaptureFixture) -> None:
    sizes = ("--images", "3", "--height", "40", "--width", "60", "--segments", "6")
    result = measure(capsys, "evaluation", *sizes, "--processes", "2")
    assert len(result["cpu_seconds"]) == 5
    values = [*result["values"].values(), *result["parallel"]["values"].values()]
    for ours, theirs in values:
        assert ours == pytest.approx(theirs, rel=1e-6) and ours > 0
    assert len(values) == 6


def test_writing(capsys: pytest.CaptureFixture) -> None:
    sizes = ("--height", "40", "--width", "60", "--segments", "6", "--repeats", "1")
    names = "projects/toy_world/vocabularies/all.txt"
    result = measure(capsys, "writing", "odise_toy_label", "--vocabulary", names, *sizes)
    seconds = result["cpu_seconds"]
    assert len(seconds) == 4 and min(seconds.values()) > 0 and 1 < result["segments"] <= 6
    assert seconds[writing_cost.MODEL] == max(seconds.values())
    rows = writing_cost.writing_table(result).rows
    assert rows[0][2] == "" and all(row[2].endswith("%") for row in rows[1:])
