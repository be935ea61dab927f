"""Folders of trained models: saved models can be loaded, and folders cannot choose code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from mmengine.config import Config
from safetensors import safe_open

from odise_mm.apis import OpenVocabInferencer
from odise_mm.apis.pretrained import FILES
from odise_mm.checkpoints.safe_loading import load_state_dict
from odise_mm.config.finding import load_config
from odise_mm.config.untrusted import check_model_config
from odise_mm.errors import CheckpointError, ConfigError, OdiseError, VocabularyError
from tests.support.parts import CONFIGS, config_files

IMAGE = Path(__file__).parents[2] / "demo" / "images" / "toy_scene.jpg"


@pytest.fixture(scope="module")
def trained() -> OpenVocabInferencer:
    return OpenVocabInferencer("odise_toy_label", device="cpu")


@pytest.fixture(scope="module")
def saved(trained: OpenVocabInferencer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.save_pretrained(tmp_path_factory.mktemp("saved") / "toy")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "toy"))


def test_a_saved_model_can_be_loaded(trained: OpenVocabInferencer, saved: Path) -> None:
    again = OpenVocabInferencer.from_pretrained(saved, "cpu")
    assert not again.random_weights
    state = trained.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.model.state_dict().items())
    assert again.default_vocabulary == trained.default_vocabulary
    ensemble = trained.model.ensemble.train_vocabulary
    assert again.model.ensemble.train_vocabulary == ensemble
    for options in ({}, dict(texts="yellow heart; red ball", stuff_texts="sand; sky")):
        (one,), (other,) = trained(IMAGE, **options), again(IMAGE, **options)
        assert one.segments and one.segments == other.segments
        assert np.array_equal(one.panoptic, other.panoptic)
        assert np.array_equal(one.semantic, other.semantic)


def test_a_model_can_be_saved_again(saved: Path, tmp_path: Path) -> None:
    again = OpenVocabInferencer.from_pretrained(saved, "cpu").save_pretrained(tmp_path / "b")
    for name in FILES[1:]:
        assert (again / name).read_text() == (saved / name).read_text()


def test_three_files_with_only_the_trained_parameters(
    trained: OpenVocabInferencer, saved: Path
) -> None:
    assert {path.name for path in saved.iterdir()} == set(FILES)
    assert load_state_dict(saved / "model.safetensors").keys() == trained.model.state_dict().keys()
    with safe_open(saved / "model.safetensors", framework="pt") as file:
        assert "train_vocabulary" in file.metadata()
    config = json.loads((saved / "config.json").read_text())
    assert set(config) == {"model", "test_pipeline"}
    assert "vocabulary" not in config["model"]


def test_the_models_vocabulary_is_saved(trained: OpenVocabInferencer, tmp_path: Path) -> None:
    before = trained.model.vocabulary
    trained.model.vocabulary = trained.make_vocabulary("red ball, crimson ball", "sky")
    try:
        trained.save_pretrained(tmp_path)
    finally:
        trained.model.vocabulary = before
    again = OpenVocabInferencer.from_pretrained(tmp_path, "cpu")
    assert again.default_vocabulary.synonyms == (("red ball", "crimson ball"), ("sky",))
    assert again.default_vocabulary.is_thing == (True, False)


def test_frozen_weights_can_be_replaced(folder: Path) -> None:
    def rename(config: dict[str, Any]) -> None:
        config["model"]["backbone"]["weights"] = "/not/here"

    real = json.loads((folder / "config.json").read_text())["model"]["backbone"]["weights"]
    change(folder, rename)
    with pytest.raises(CheckpointError, match="/not/here: no such file or folder"):
        OpenVocabInferencer.from_pretrained(folder, "cpu")
    assert OpenVocabInferencer.from_pretrained(folder, "cpu", diffusion_weights=real)


def test_random_models_are_not_saved(tmp_path: Path) -> None:
    options = {"test_pipeline.1.scale": (96, 64)}
    random = OpenVocabInferencer("odise_tiny", device="cpu", cfg_options=options)
    with pytest.raises(CheckpointError, match="the model has random weights"):
        random.save_pretrained(tmp_path / "random")
    assert not (tmp_path / "random").exists()


def test_a_folder_of_the_hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str], str]] = []

    def download(repository: str, allow_patterns: list[str], revision: str = "main") -> str:
        asked.append((repository, allow_patterns, revision))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert OpenVocabInferencer.from_pretrained("owner/name", "cpu").default_vocabulary
    assert OpenVocabInferencer.from_pretrained("owner/name", "cpu", revision="v2").model
    assert asked == [("owner/name", list(FILES), "main"), ("owner/name", list(FILES), "v2")]
    with pytest.raises(CheckpointError, match="is a folder on this machine.*revision='v2'"):
        OpenVocabInferencer.from_pretrained(saved, "cpu", revision="v2")


def test_a_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="owner/name: not a folder.*HF_HUB_OFFLINE is se"):
        OpenVocabInferencer.from_pretrained("owner/name")
    for wrong in ("owner", "./owner/name", "/owner/name"):
        with pytest.raises(CheckpointError, match="no such folder.*owner/name"):
            OpenVocabInferencer.from_pretrained(wrong)


def change(folder: Path, how: Callable[[dict[str, Any]], None], file: str = "config.json") -> None:
    content = json.loads((folder / file).read_text())
    how(content)
    (folder / file).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            lambda c: c["model"].update(type="os.system"),
            "'os.system' is not a part of this package",
        ),
        (lambda c: c["model"]["neck"].update(type="torch.nn.Linear"), "torch.nn.Linear"),
        (lambda c: c["model"]["neck"].update(type=["x"]), "is not a part of this package"),
        (lambda c: c["test_pipeline"].append(dict(type="mmcv.Shell")), "'mmcv.Shell'"),
        (lambda c: c["model"]["head"].update(act=dict(type="mmdet.ResNet")), "'mmdet.ResNet'"),
        (lambda c: c.update(custom_imports=dict(imports=["evil"])), "nothing else"),
        (lambda c: c.update(_base_="evil.py"), "nothing else"),
        (lambda c: c["model"].update(_scope_="torch"), "setting _scope_ is not allowed"),
        (
            lambda c: c["model"].update(text_encoder=dict(cache_file="/x")),
            "setting cache_file is not allowed",
        ),
        (
            lambda c: c["model"]["head"].update(init_cfg=dict(a=1)),
            "setting init_cfg is not allowed",
        ),
        (lambda c: c.pop("model"), "expected model and test_pipeline"),
        (lambda c: c["model"].update(wheels=4), "invalid argument.*wheels"),
    ],
)
def test_unsafe_configs_are_rejected(
    folder: Path, how: Callable[[dict[str, Any]], None], message: str
) -> None:
    change(folder, how)
    with pytest.raises(ConfigError, match=message):
        OpenVocabInferencer.from_pretrained(folder, "cpu")


def test_a_python_config_is_ignored(folder: Path, tmp_path: Path) -> None:
    (folder / "config.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert OpenVocabInferencer.from_pretrained(folder, "cpu")
    assert not (tmp_path / "ran").exists()


def test_modules_that_the_user_trusts(folder: Path) -> None:
    change(folder, lambda c: c["model"]["neck"].update(type="FakeSegmentor"))
    with pytest.raises(ConfigError, match="'FakeSegmentor' is not a part of this package"):
        OpenVocabInferencer.from_pretrained(folder, "cpu")
    with pytest.raises(ConfigError, match="invalid argument.*FakeSegmentor"):
        OpenVocabInferencer.from_pretrained(
            folder, "cpu", custom_imports=["tests.support.fake_segmentor"]
        )


@pytest.mark.parametrize("name", FILES)
def test_damaged_folders(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"{")
    with pytest.raises(OdiseError, match=name):
        OpenVocabInferencer.from_pretrained(folder, "cpu")
    (folder / name).unlink()
    with pytest.raises(
        CheckpointError, match=f"was not written by save_pretrained: missing {name}"
    ):
        OpenVocabInferencer.from_pretrained(folder, "cpu")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda c: c.pop("vocabulary"), "expected a mapping with 'vocabulary'"),
        (lambda c: c.update(vocabulary="coco"), "vocabulary: expected name, synonyms"),
        (lambda c: c["vocabulary"].update(synonyms=[[1]]), "1 is not a string"),
        (lambda c: c["vocabulary"].update(is_thing=[]), "0 entries in is_thing"),
        (lambda c: c["train_vocabulary"].pop("name"), "train_vocabulary: expected name"),
    ],
)
def test_damaged_names(folder: Path, how: Callable[[dict[str, Any]], None], message: str) -> None:
    change(folder, how, "vocabulary.json")
    with pytest.raises(VocabularyError, match=message):
        OpenVocabInferencer.from_pretrained(folder, "cpu")


@pytest.mark.parametrize("file", config_files())
def test_every_config_of_the_package_can_be_saved(file: str) -> None:
    cfg: Config = load_config(CONFIGS / file)
    content = json.loads(json.dumps(dict(model=cfg.model, test_pipeline=cfg.test_pipeline)))
    check_model_config(content, file)
