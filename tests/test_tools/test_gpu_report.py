"""The report on a device, run on the CPU with the tiny model of the tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from odise_mm.analysis.device_report import compare_stages
from tests.support.parts import segmentor_config
from tools.analysis_tools import gpu_report as tool


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    folder = tmp_path_factory.mktemp("report")
    config = folder / "small.py"
    Config(dict(model=segmentor_config())).dump(config)
    page, numbers = folder / "cpu.md", folder / "cpu.json"
    options = ["--device", "cpu", "--size", "128", "--agreement-size", "128", "--repeats", "1"]
    options += ["--precisions", "fp32", "bf16", "fp16", "--tiles", "1", "2", "--batches", "1", "2"]
    outputs = ["--no-compile", "--out", str(page), "--json", str(numbers)]
    assert tool.main([str(config), *options, *outputs]) == 0
    return page.read_text(), json.loads(numbers.read_text())


def test_float32_agrees_with_itself_and_bfloat16_less(written: tuple[str, dict]) -> None:
    same, less, unsupported = written[1]["agreement"]
    for stage, value in same.items():
        if stage != "precision":
            assert value == (1 if stage.endswith("map") else 0), stage
    assert 1e-4 < less["mask logits"] < 1
    assert "fp16 is for GPUs" in unsupported["error"]


def test_rows_are_all_ways(written: tuple[str, dict]) -> None:
    page, numbers = written
    ways = [(row["precision"], row["tiles"]) for row in numbers["inference"]]
    assert ways == [(p, n) for p in ("fp32", "bf16", "fp16") for n in (1, 2)]
    for row in numbers["inference"]:
        if row["precision"] == "fp16":
            assert "error" in row
            continue
        assert sum(row["seconds"].values()) == pytest.approx(row["total_seconds"], rel=1e-6)
    ways = [(row["images"], row["checkpointing"]) for row in numbers["training"]]
    assert ways == [(1, False), (1, True), (2, False), (2, True)]
    for row in numbers["training"]:
        assert row["images_per_second"] == pytest.approx(row["images"] / row["seconds"])
    assert page.count("### ") == 4
    assert "no CUDA kernel of deformable attention" in page


def test_differences_are_relative_to_the_spread() -> None:
    reference = {"a": torch.tensor([0.0, 2.0, 4.0]), "map": torch.tensor([1, 2, 3, 4])}
    found = {"a": torch.tensor([0.0, 2.0, 5.0]), "map": torch.tensor([1, 2, 3, 9])}
    assert compare_stages(found, reference) == {"a": 0.5, "map": 0.75}


def test_a_missing_device_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit):
        tool.main(["odise_tiny", "--out", str(tmp_path / "gpu.md")])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: device 'cuda' was requested")
    assert not (tmp_path / "gpu.md").exists()
