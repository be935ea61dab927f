"""``odise-mm info``: tables and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants

import odise_mm
from odise_mm.cli import info
from odise_mm.config.finding import known_configs, load_config
from odise_mm.utils import mmcv_ops

ROOT = Path(__file__).resolve().parents[2]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["odise_mm"] == odise_mm.__version__
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert len(found["devices"]["cuda"]) == torch.cuda.device_count()
    assert found["mmcv_operators"] in ("compiled", "pytorch")
    assert Path(found["folders"]["package"]) == Path(odise_mm.__file__).parent
    assert found["configs"]["odise_coco_label"].endswith("configs/odise/odise_coco_label.py")


def test_tables_have_the_same_content(capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main([]) == 0
    printed = capsys.readouterr().out
    found = info.gather()
    for value in (*found["versions"].values(), found["folders"]["torch_cache"]):
        assert value in printed
    for name, file in found["configs"].items():
        assert Path(file).stem in printed, name
    assert not any(line.endswith(" ") for line in printed.splitlines())


def test_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    rows = {row["name"]: row for row in info.gather()["weights"]}
    assert rows["odise_toy_label"]["there"] and rows["diffusion"]["there"]
    published = Path(rows["odise_coco_label"]["place"])
    assert published.is_relative_to(tmp_path) and not rows["odise_coco_label"]["there"]
    assert not rows["CompVis/stable-diffusion-v1-3"]["there"]
    assert f"not found ({published})" in info.as_text(info.gather())

    published.parent.mkdir(parents=True)
    published.touch()
    (tmp_path / "hub/models--CompVis--stable-diffusion-v1-3").mkdir(parents=True)
    rows = {row["name"]: row for row in info.gather()["weights"]}
    assert rows["odise_coco_label"]["there"] and rows["CompVis/stable-diffusion-v1-3"]["there"]


def test_devices_and_operators_of_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="A GPU\x1b", total_memory=8 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)

    def broken() -> str:
        raise ImportError("mmcv does not load\nat all")

    monkeypatch.setattr(mmcv_ops, "ops_backend", broken)
    text = info.as_text(info.gather())
    assert "cuda:0          A GPU\\x1b, 8.0 GiB" in text
    assert "default         cuda" in text
    assert "mmcv operators  error: mmcv does not load\n" in text


def test_config_names_are_not_squeezed_beside_long_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("a_long_name_" * 8) / "configs/mine"
    folder.mkdir(parents=True)
    for number in range(20):
        (folder / f"config_number_{number:02}.py").write_text("model = dict()\n")
    monkeypatch.chdir(folder.parents[1])
    lines = info.as_text(info.gather()).splitlines()
    rows = [line for line in lines if "config_number_" in line]
    assert len(rows) == 4 and all(len(row) <= 100 for row in rows)  # 20 names of 18 columns


def test_config_names_load_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory may have other configs, some with equal names."""
    for name in ("odise/odise_coco_label.py", "mine/own.py", "mine/odise_tiny.py"):
        path = tmp_path / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("model = dict()\n")
    monkeypatch.chdir(tmp_path)
    known = known_configs()
    assert known["own"] == tmp_path / "configs/mine/own.py"
    assert known["mine/odise_tiny"] == tmp_path / "configs/mine/odise_tiny.py"
    assert "toy/odise_tiny" in known and "odise_tiny" not in known
    assert str(tmp_path / "configs/odise/odise_coco_label.py") in known
    for name in ("own", "mine/odise_tiny", "toy/odise_tiny", "ablation/steps/t0"):
        assert Path(load_config(name).filename) == known[name]
    text = info.as_text(info.gather())
    assert f"Configs in {tmp_path}/configs (3), by name or FOLDER/NAME\n" in text
    assert f"Configs in {ROOT}/configs (" in text
    assert "\n  mine   odise_tiny, own\n" in text
    assert "  odise_coco_label               error: config 'odise_coco_label' matches " in text
