"""Every config builds, at full size and without memory, and a misspelt key is no secret."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config

from odise_mm.datasets.vocabulary import Vocabulary
from odise_mm.engine.config import check_config, complete_config
from odise_mm.models import OpenVocabSegmentor
from odise_mm.registry import MODELS, TRANSFORMS
from tests.parts import config_files, load_config, meta_model

FILES = config_files()


def test_there_are_configs() -> None:
    assert {"odise/odise_coco_label.py", "odise/odise_coco_caption.py"} <= set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_builds_on_the_meta_device(file: str) -> None:
    model = meta_model(file)
    assert isinstance(model, OpenVocabSegmentor)
    assert all(p.is_meta for p in model.parameters())
    assert model.vocabulary == Vocabulary.load("coco")
    assert sum(p.requires_grad for p in model.parameters()) == len(model.state_dict())


@pytest.mark.parametrize("file", FILES)
def test_test_pipeline_builds(file: str) -> None:
    for step in load_config(file).test_pipeline:
        assert TRANSFORMS.build(step) is not None


TRAINED = [file for file in FILES if "train_dataloader" in load_config(file)]
TESTED = [file for file in FILES if "test_dataloader" in load_config(file)]


def test_what_trains_and_what_tests() -> None:
    assert {"odise/odise_coco_label.py", "odise/odise_coco_caption.py"} <= set(TRAINED)
    assert set(FILES) - set(TESTED) <= {"toy/odise_tiny.py"}


@pytest.mark.parametrize("file", TRAINED)
def test_training_pipeline_builds(file: str) -> None:
    cfg = complete_config(load_config(file))
    for step in cfg.train_dataloader.dataset.pipeline:
        assert TRANSFORMS.build(step) is not None


@pytest.mark.parametrize("file", FILES)
def test_every_part_is_known(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of data, metrics, loops, hooks, optimizer and schedules; with data and a GPU at hand."""
    monkeypatch.setattr("odise_mm.engine.config.os.path.exists", lambda path: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_config(complete_config(load_config(file)))


@pytest.mark.parametrize("file", sorted({*TRAINED, *TESTED}))
def test_runner_and_samplers_are_ours(file: str) -> None:
    cfg = load_config(file)
    assert cfg.runner_type == "OpenVocabRunner"
    for stage in ("val", "test"):
        loader = cfg.get(f"{stage}_dataloader")
        assert loader is None or loader.sampler.round_up is False
    if file in TRAINED:
        assert cfg.train_dataloader.sampler.type == "SeededSampler"
        assert cfg.model.fusion.train_vocabulary == cfg.train_dataloader.dataset.vocabulary


@pytest.mark.parametrize("file", FILES)
def test_survives_being_written(file: str) -> None:
    config = load_config(file)
    again = Config.fromstring(config.pretty_text, ".py")
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "part", ["", "backbone", "captioner", "clip", "neck", "head", "fusion", "test_cfg"]
)
def test_unknown_keys_fail(part: str) -> None:
    model = load_config("toy/odise_tiny.py").model
    (model[part] if part else model)["misspelt"] = 1
    with torch.device("meta"), pytest.raises(TypeError, match="misspelt"):
        MODELS.build(model)


@pytest.mark.parametrize("index", [0, 1])
def test_unknown_keys_of_classifiers_fail(index: int) -> None:
    model = load_config("toy/odise_tiny.py").model
    model.classifiers[index].misspelt = 1
    with torch.device("meta"), pytest.raises(TypeError, match="misspelt"):
        MODELS.build(model)


@pytest.mark.parametrize("part", ["backbone", "captioner", "clip", "neck", "head", "fusion"])
def test_unknown_parts_fail(part: str) -> None:
    model = load_config("toy/odise_tiny.py").model
    model[part].type = "NoSuchPart"
    with torch.device("meta"), pytest.raises(KeyError, match="NoSuchPart.*ours are: .*Mask"):
        MODELS.build(model)
