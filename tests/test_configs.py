"""Every config builds, at full size and without memory, and a misspelt key is no secret."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config

from odise_mm.datasets.vocabulary import Vocabulary
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
