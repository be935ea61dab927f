"""Tests of the example plugin: features, invalid input, and the package's tools."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from mmengine.config import Config

from odise_mm.apis import OpenVocabInferencer
from odise_mm.cli import test as test_tool
from odise_mm.config.building import build_model
from odise_mm.config.finding import load_config
from odise_mm.errors import CheckpointError, ConfigError
from projects.example_backbone.torchvision_backbone import TorchvisionBackbone
from tests.support.small_coco import VOCABULARY, write_small_coco

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "projects/example_backbone/configs"
LAYERS = ["layer1", "layer2", "layer3", "layer4"]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder for downloaded weights, and disable the network."""

    def no_network(url: str, *_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_features_equal_torchvisions(empty_cache: Path) -> None:
    """Use weights in torchvision's cache; compare maps and normalization with torchvision."""
    known = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    torch.manual_seed(3)
    reference = torchvision.models.resnet18().eval()
    torch.save(reference.state_dict(), empty_cache / Path(known.url).name)
    wanted: dict[str, torch.Tensor] = {}
    for name in LAYERS:
        layer = reference.get_submodule(name)
        layer.register_forward_hook(lambda _, __, out, name=name: wanted.update({name: out}))

    backbone = TorchvisionBackbone("resnet18", LAYERS, "IMAGENET1K_V1")
    tiles = torch.rand(2, 3, 96, 160)
    maps = backbone(tiles)
    reference(
        torchvision.transforms.functional.normalize(
            tiles, known.transforms().mean, known.transforms().std
        )
    )
    for found, expected in zip(maps, wanted.values(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("model", "layers", "strides"),
    [
        ("resnet18", LAYERS, (4, 8, 16, 32)),
        ("convnext_tiny", [f"features.{i}" for i in (1, 3, 5, 7)], (4, 8, 16, 32)),
        ("mobilenet_v3_small", ["features.0", "features.8"], (2, 16)),
    ],
)
def test_backbone_contract(model: str, layers: list[str], strides: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    backbone, again = (TorchvisionBackbone(model, layers) for _ in range(2))
    with torch.device("meta"):
        shapes = TorchvisionBackbone(model, layers)
    assert backbone.strides == shapes.strides == strides
    assert backbone.channels == shapes.channels
    assert backbone.describe() == dict(in_channels=backbone.channels, in_strides=strides)

    tiles = torch.rand(2, 3, 64, 96, requires_grad=True)
    maps = backbone.train()(tiles)  # frozen: stays in eval mode
    for channels, stride, m, other in zip(
        backbone.channels, strides, maps, again(tiles[1:]), strict=True
    ):
        assert m.shape == (2, channels, 64 // stride, 96 // stride)
        torch.testing.assert_close(
            m[1:], other
        )  # same random weights; images in a batch are independent
    maps[-1].sum().backward()
    assert tiles.grad.abs().sum() > 0
    assert all(p.grad is None for p in backbone.parameters()) and not backbone.state_dict()


def test_odd_sizes_and_16_bit() -> None:
    backbone = TorchvisionBackbone("resnet18", LAYERS)
    tiles = torch.rand(1, 3, 77, 45)
    exact = backbone(tiles)
    assert [m.shape[-2:] for m in exact] == [(20, 12), (10, 6), (5, 3), (3, 2)]
    backbone.cast(torch.bfloat16)
    for found, wanted in zip(backbone(tiles), exact, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - wanted).abs().mean() < 0.02 * wanted.abs().mean() + 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model="resnet19"), "no classifier 'resnet19'; did you mean .*resnet18"),
        (dict(weights="IMAGENET_V1"), "no weights of resnet18 called 'IMAGENET_V1'; did you mean"),
        (dict(layers=["layer1", "layer9"]), "layer9"),
        (dict(layers=["layer4", "fc"]), "resnet18: not all outputs of layer4, fc are"),
        (
            dict(model="swin_t", layers=["features.1"]),
            r"features.1 are \(B, C, H, W\) feature maps",
        ),
        (dict(layers=["layer1", "layer2"]), "needs feature maps for strides"),
    ],
)
def test_bad_input_raises(changes: dict, message: str) -> None:
    config = load_config(CONFIGS / "resnet18_toy.py")
    config.model.backbone.update(changes)
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        build_model(config)


def test_missing_network_raises(empty_cache: Path) -> None:
    with pytest.raises(
        CheckpointError, match="resnet18-.*pth: download failed.*no network.*by other means"
    ):
        TorchvisionBackbone("resnet18", LAYERS, "IMAGENET1K_V1")


def test_full_size_config_builds_on_meta_without_weights(empty_cache: Path) -> None:
    with torch.device("meta"):
        model = build_model(load_config(CONFIGS / "resnet50_coco.py"))
    assert isinstance(model.backbone, TorchvisionBackbone)
    assert model.backbone.channels == (256, 512, 1024, 2048)
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"neck", "head", "classifiers"}


def test_tools_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train in a subprocess, which finds the plugin from any folder; then test and segment."""
    shown = dict(zip(VOCABULARY.source_names, VOCABULARY.names, strict=True))
    data = write_small_coco(tmp_path / "data/real_coco", "val")
    content = data.read()
    for category in content["categories"]:
        category["name"] = shown[category["name"]]
    data.write(content)
    lines = [
        f"{'thing' if thing else 'stuff'}: {', '.join(names)}"
        for names, thing in zip(VOCABULARY.synonyms, VOCABULARY.is_thing, strict=True)
    ]
    (tmp_path / "names.txt").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)

    config = str(CONFIGS / "resnet18_toy.py")
    small = ["--cfg-options", "model.ensemble.train_vocabulary=names.txt"]
    small += ["test_dataloader.dataset.vocabulary=names.txt", "test_pipeline.1.scale=(128,64)"]
    short = [f"{s}_dataloader.dataset.vocabulary=names.txt" for s in ("train", "val")]
    short += ["train_pipeline.2.scale=(128,64)", "model.head.train_cfg.num_points=64"]
    short += ["train_cfg.max_iters=2", "train_cfg.val_interval=9"]
    command = [sys.executable, str(ROOT / "tools/train.py"), config, "--work-dir", "work"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([*command, *small, *short], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    saved = torch.load("work/iter_2.pth", weights_only=False, map_location="cpu")["state_dict"]
    assert saved and not [key for key in saved if key.startswith("backbone")]

    assert test_tool.main([config, "work/iter_2.pth", "--limit", "1", *small]) == 0
    assert "PQ" in capsys.readouterr().out
    inferencer = OpenVocabInferencer(Config.fromfile(config), "work/iter_2.pth")
    (result,) = inferencer(ROOT / "demo/images/pagoda.jpg", texts="pagoda; person")
    assert result.panoptic.shape == (427, 640)
