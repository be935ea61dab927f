"""k-means clusters of feature maps: flat regions are found, and results are deterministic."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from scipy.special import comb

from odise_mm.analysis import clustering, feature_maps, feature_panels
from odise_mm.models import DiffusionBackbone
from odise_mm.models.backbones.base import Backbone
from odise_mm.registry import MODELS
from tests.support import parts
from tools.analysis_tools import visualize_features as tool

HEIGHT, WIDTH = 192, 320
REGIONS = np.zeros((HEIGHT, WIDTH), int)  # borders at multiples of 16
REGIONS[:, 208:] = 1
REGIONS[96:, :160] = 2
REGIONS[128:, 240:] = 3
COLORS = np.array([(200, 40, 30), (30, 160, 60), (40, 60, 220), (240, 230, 120)], np.uint8)


@MODELS.register_module()
class FlatColorBackbone(Backbone):
    """Mean colors of patches times random weights; one map of stride 8 and one of stride 16."""

    channels, strides = (5, 90), (8, 16)

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.mixes = torch.nn.ParameterList(
            torch.nn.Parameter(torch.randn(c, 3, 1, 1, generator=generator)) for c in self.channels
        )
        self.seen: list[tuple[int, ...]] = []
        self.freeze()

    def forward(self, tiles: torch.Tensor, *_: object) -> list[torch.Tensor]:
        self.seen.append(tuple(tiles.shape))
        return [
            torch.nn.functional.conv2d(torch.nn.functional.avg_pool2d(tiles, stride), mix)
            for stride, mix in zip(self.strides, self.mixes, strict=True)
        ]


def adjusted_rand(first: np.ndarray, second: np.ndarray) -> float:
    """Return the adjusted Rand index: 1 for equal clusterings, 0 for chance (Hubert, 1985)."""
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first.ravel(), second.ravel()), 1)
    together = comb(table, 2).sum()
    rows, columns = comb(table.sum(1), 2).sum(), comb(table.sum(0), 2).sum()
    expected = rows * columns / comb(table.sum(), 2)
    return (together - expected) / ((rows + columns) / 2 - expected)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Image of four flat regions, and configs that do not resize it."""
    Image.fromarray(COLORS[REGIONS]).save(tmp_path / "flat.png")
    cfg = parts.load_config("toy/odise_tiny.py")
    cfg.test_pipeline[1].scale = (WIDTH, HEIGHT)
    cfg.model.tile_size = 128  # three tiles in a row, two of them overlapping
    cfg.dump(tmp_path / "diffusion.py")
    cfg.model.captioner = None
    cfg.model.backbone = dict(type="FlatColorBackbone")
    cfg.dump(tmp_path / "flat.py")
    for name, model in (("convnext", "convnext_atto"), ("vit", "vit_tiny_patch16_224")):
        cfg.model.backbone = dict(type="TimmBackbone", model=model)
        cfg.dump(tmp_path / f"{name}.py")
    cfg.model.backbone = dict(type="FlatColorBackbone")
    cfg.model.tile_size = None
    cfg.dump(tmp_path / "whole.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def clusters(config: str, *arguments: str) -> np.ndarray:
    """Return the clusters of one config's panel, (H, W)."""
    args = tool.parse_args(["flat.png", config, *arguments])
    image = np.asarray(Image.open("flat.png"))[..., ::-1]
    with feature_panels.progress_bar() as bar:
        return feature_panels.panel(
            config,
            Config.fromfile(config),
            None,
            image,
            bar,
            clusters=args.clusters,
            maps=args.maps,
            stride=args.stride,
            size=args.size,
            device=args.device,
            precision=args.precision,
        )[1]


@pytest.mark.parametrize("arguments", [("--stride", "8"), ("--maps", "0"), ("--maps", "0", "1")])
@pytest.mark.parametrize("config", ["flat.py", "whole.py"])
def test_flat_regions_are_the_clusters(
    config: str, arguments: tuple[str, ...], place: Path
) -> None:
    found = clusters(config, "--clusters", "4", *arguments)
    assert found.shape == (HEIGHT, WIDTH)
    assert adjusted_rand(found, REGIONS) == 1


@pytest.mark.parametrize(("config", "index"), [("convnext.py", "1"), ("vit.py", "3")])
def test_real_architectures_separate_flat_regions(config: str, index: str, place: Path) -> None:
    """Random weights suffice; chance level is 0."""
    found = clusters(config, "--clusters", "4", "--maps", index)
    assert adjusted_rand(found, REGIONS) > 0.95


def test_tiles_are_joined_as_the_segmentor_joins_them(place: Path) -> None:
    """Overlapping tiles of 128 x 128 give the same maps as the whole image."""
    image = torch.rand(3, HEIGHT, WIDTH)
    found = {}
    for config in ("flat.py", "whole.py"):
        cfg = Config.fromfile(config)
        built, random_weights = feature_maps.build_parts(cfg)
        assert random_weights
        steps = []
        found[config] = feature_maps.extract(
            built, cfg, image, [0, 1], lambda done, all_, steps=steps: steps.append((done, all_))
        )
        shapes = built.backbone.seen
    assert shapes == [(1, 3, HEIGHT, WIDTH)] and steps == [(1, 1)]
    for ours, whole in zip(found["flat.py"][0], found["whole.py"][0], strict=True):
        torch.testing.assert_close(ours, whole)
    assert found["flat.py"][1] == [8, 16]


def test_the_same_image_gives_the_same_file(place: Path, capsys: pytest.CaptureFixture) -> None:
    configs = ["flat.py", "vit.py"]
    for out in ("a.png", "deep/b.png"):
        arguments = ["flat.png", *configs, "--out", out, "--clusters", "3", "--size", "128"]
        assert tool.main(arguments) == 0
        assert f"wrote {out}: 3 clusters of 2 backbones" in capsys.readouterr().out
    assert Path("a.png").read_bytes() == Path("deep/b.png").read_bytes()
    with Image.open("a.png") as figure:
        shown = {color for _, color in figure.convert("RGB").getcolors(2**24)}
    assert {tuple(color) for color in COLORS.tolist()} <= shown  # the image itself
    tab10 = {(31, 119, 180), (255, 127, 14), (44, 160, 44)}
    assert tab10 <= shown  # three clusters


def test_regions_keep_their_color_in_all_panels() -> None:
    other = np.array([2, 0, 3, 1])[REGIONS]
    assert np.array_equal(clustering.alike(other, REGIONS), REGIONS)
    fewer = np.minimum(REGIONS, 1)
    renamed = clustering.alike(fewer, REGIONS)
    assert set(np.unique(renamed)) <= {0, 1, 2, 3} and adjusted_rand(renamed, fewer) == 1


def test_k_means_finds_separate_blobs() -> None:
    """The clusters are separate blobs around known centers."""
    random = np.random.RandomState(1)
    truth = random.randint(5, size=(30, 40))
    vectors = 10 * random.randn(5, 80)[truth] + random.randn(30, 40, 80)
    assert adjusted_rand(clustering.cluster(vectors, 5), truth) == 1


def test_choose_maps() -> None:
    assert clustering.choose_maps((4, 8, 32, 32, 16, 8, 8, 4), range(8), None) == [4]
    assert clustering.choose_maps((4, 8, 32, 32, 16, 8, 8, 4), range(8), None, 8) == [6]
    assert clustering.choose_maps((14, 14, 14, 14), range(4), None) == [3]
    assert clustering.choose_maps((4, 8), range(2), [1, 0, 1]) == [1, 0]


def test_a_trained_captioner_is_loaded(place: Path) -> None:
    cfg = Config.fromfile("diffusion.py")
    state = {k: v + 1 for k, v in feature_maps.build_parts(cfg)[0].state_dict().items()}
    assert state and all(key.startswith("captioner.") for key in state)
    torch.save(dict(state_dict={**state, "head.x": torch.ones(1)}), "trained.pth")
    built, _ = feature_maps.build_parts(cfg, "trained.pth")
    assert isinstance(built.backbone, DiffusionBackbone)
    for key, value in built.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png", "flat.py"], "nowhere.png"),
        (["flat.png", "nowhere.py"], "no config 'nowhere.py'"),
        (
            ["flat.png", "flat.py", "--maps", "2"],
            r"unknown map 2; available: 0 \(5 channels, stride 8",
        ),
        (["flat.png", "flat.py", "--clusters", "9"], "4 different vectors for 9 clusters"),
        (["flat.png", "flat.py", "--weights", "nowhere.pth"], "nowhere.pth"),
        (["flat.png", "diffusion.py", "--weights", "other.pth"], "config's captioner: .*missing"),
        (["flat.png", "broken.py"], "NoSuchBackbone"),
        (["flat.png", "flat.py", "--precision", "fp16"], "fp16 is for GPUs"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str], message: str, place: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.save(dict(state_dict={"head.x": torch.ones(1)}), "other.pth")
    Path("broken.py").write_text(
        Path("flat.py").read_text().replace("FlatColorBackbone", "NoSuchBackbone")
    )
    with pytest.raises(SystemExit) as end:
        tool.main([*arguments, "--device", "cpu"])
    assert end.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and re.search(message, lines[0]), lines


@pytest.mark.parametrize("arguments", [["--weights", "a", "b"], ["--out", "x.jpg"]])
def test_wrong_arguments(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        tool.parse_args(["flat.png", "flat.py", *arguments])
    assert end.value.code == 2
