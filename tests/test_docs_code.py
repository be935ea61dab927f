"""docs/extending.md: its files are written, its commands run, and its parts do what they say."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from scipy.fft import dctn

import odise_mm.apis.inferencer
import odise_mm.benchmarks.planning  # before load_config is replaced: it would keep that one
import odise_mm.config.finding
import odise_mm.datasets  # noqa: F401  (so that its datasets are not among those of the page)
from odise_mm.config.building import build_model
from odise_mm.config.changing import change_config
from odise_mm.errors import ConfigError
from odise_mm.models import MaskPrediction
from odise_mm.registry import DATASETS, MODELS
from tests.test_docs import BLOCK, ROOT, blocks

PAGE = ROOT / "docs" / "extending.md"
FILES = {
    match["mark"].removeprefix("file: "): match["code"]
    for match in BLOCK.finditer(PAGE.read_text(encoding="utf-8"))
    if match["mark"]
}
COMMANDS = [
    shlex.split(line)
    for _, code in blocks(PAGE, "shell")
    for line in code.replace("\\\n", " ").splitlines()
]
MODULES = [name for name, code in FILES.items() if "register_module" in code]
CONFIGS = [name for name, code in FILES.items() if "_base_" in code]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that looks like the repository, with the page's files and a dataset in it."""
    for name in ("configs", "demo", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, code in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    streets = tmp_path / "data/streets"
    for folder in ("images", "labels"):
        (streets / folder).mkdir()
    for index in range(2):
        labels = np.repeat(np.array([2, 0, 1, 255], np.uint8), [10, 5, 8, 1])[:, None]
        Image.fromarray(np.tile(labels, (1, 40))).save(streets / f"labels/{index}.png")
        Image.fromarray(np.tile(labels[..., None] * 80, (1, 40, 3))).save(
            streets / f"images/{index}.jpg"
        )
    pairs = [f"images/{i}.jpg labels/{1 - i}.png" for i in range(2)]
    (streets / "pairs.txt").write_text("\n".join(pairs))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    load = odise_mm.config.finding.load_config

    def load_small(config: str | Config) -> Config:
        changed = load(config)
        change_config(changed, {"test_pipeline.1.scale": (128, 64)})
        if changed.model.tile_size is not None:
            changed.model.tile_size = 64
        return changed

    monkeypatch.setattr(odise_mm.config.finding, "load_config", load_small)
    monkeypatch.setattr(odise_mm.apis.inferencer, "load_config", load_small)
    monkeypatch.setattr(odise_mm.benchmarks.planning, "load_config", load_small)
    before = set(MODELS.module_dict), set(DATASETS.module_dict)
    yield tmp_path
    for registry, known in zip((MODELS, DATASETS), before, strict=True):
        for name in set(registry.module_dict) - known:
            registry.module_dict.pop(name)
    for name in MODULES:
        sys.modules.pop(name.removesuffix(".py"), None)


def load(name: str) -> Config:
    return odise_mm.config.finding.load_config(name)


def test_the_page_has_files_and_commands_for_everything() -> None:
    assert len(MODULES) == 4 and len(CONFIGS) == 5 and len(COMMANDS) == 5
    code = "".join(FILES.values())
    for name in MODULES:
        assert f'imports=["{name.removesuffix(".py")}"]' in code
    everything = PAGE.read_text(encoding="utf-8")
    assert len(FILES) + len(blocks(PAGE, "shell")) == everything.count("\n```") // 2


def test_a_section_is_a_page_at_most() -> None:
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]
    assert [s.split()[2] for s in sections] == ["backbone", "captioner", "classifier", "dataset"]
    assert all(len(section.splitlines()) <= 85 for section in sections)


def test_parts_are_short() -> None:
    for name in MODULES:
        (part,) = [n for n in ast.parse(FILES[name]).body if isinstance(n, ast.ClassDef)]
        assert part.end_lineno - part.lineno <= 25, name


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_build_without_memory(name: str, workplace: Path) -> None:
    with torch.device("meta"):
        model = build_model(load(name))
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[-1])
def test_commands_run(
    words: list[str], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python, script, *arguments = words
    assert python == "python"
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(arguments) == 0
    printed = capsys.readouterr().out
    if script == "tools/test.py":
        name = Path(arguments[0]).stem
        assert re.search(rf"{name} .* 2 ", printed), printed  # both images
        assert ("automobile" in printed or "road" in printed) == ("--per-class" in arguments)
    else:
        assert os.path.getsize("out/panoptic.json") > 0 and "pagoda.jpg" in printed


def test_the_backbone_computes_cosine_transforms(workplace: Path) -> None:
    from dct_backbone import DCTBackbone

    backbone = DCTBackbone(3)
    tiles = torch.rand(2, 3, 64, 96)
    maps = backbone(tiles)
    assert len(maps) == len(backbone.channels) == len(backbone.strides)
    for size, channels, found in zip(backbone.strides, backbone.channels, maps, strict=True):
        blocks = tiles.reshape(2, 3, 64 // size, size, 96 // size, size).numpy()
        wanted = dctn(blocks, axes=(3, 5), norm="ortho")[:, :, :, :3, :, :3]
        wanted = torch.from_numpy(wanted).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
        assert found.shape[1] == channels
        torch.testing.assert_close(found, wanted)
    assert not backbone.state_dict()


def test_the_backbone_refuses_what_its_blocks_do_not_have(workplace: Path) -> None:
    config = load("dct.py")
    config.model.backbone.frequencies = 5
    with torch.device("meta"), pytest.raises(ConfigError, match="frequencies=5: must be 1 to 4"):
        build_model(config)


def test_the_captioner_sees_daylight(workplace: Path) -> None:
    from daylight import DaylightCaptioner

    read: list[str] = []

    def encoder(texts: list[str]) -> torch.Tensor:
        read.extend(texts)
        return torch.tensor([[[float("by day" in text)]] for text in texts])

    captioner = DaylightCaptioner(prompt_encoder=encoder)
    tiles = torch.stack([torch.full((3, 8, 8), value) for value in (0.9, 0.1, 0.7)])
    assert captioner(tiles).context.flatten().tolist() == [1, 0, 1]
    assert set(read) == {"a photo taken by day", "a photo taken at night"}


def test_the_classifier_asks_clip_about_the_image(workplace: Path) -> None:
    model = build_model(load("scene.py")).eval()
    classifier = model.classifiers[1]
    assert classifier.clip is model.clip
    images = [torch.rand(3, 60, 80), torch.rand(3, 70, 64)]
    prediction = MaskPrediction(torch.zeros(2, 5, 16, 20), torch.zeros(2, 5, 8))
    class_prediction = classifier(prediction, images, model.vocabulary)
    assert class_prediction.p_void is None and class_prediction.logits.shape == (
        2,
        5,
        len(model.vocabulary),
    )
    for image, row in zip(images, class_prediction.logits, strict=True):
        embedding = model.clip.encode_image(image[None])[0]
        names = model.vocabulary.synonyms[3]
        text = classifier.text_encoder([f"a photo of a {name}." for name in names])
        best = torch.cosine_similarity(embedding[None], text).max() * model.clip.logit_scale
        torch.testing.assert_close(row[:, 3], best.expand(5), atol=1e-3, rtol=1e-4)


def test_the_listed_dataset_pairs_files(workplace: Path) -> None:
    config = load("listed.py")
    data = DATASETS.build({**config.test_dataloader.dataset, "pipeline": []})
    assert [(Path(d["img_path"]).name, Path(d["sem_seg_path"]).name) for d in data] == [
        ("0.jpg", "1.png"),
        ("1.jpg", "0.png"),
    ]
    assert data.vocabulary.names == ("car", "road", "sky")
