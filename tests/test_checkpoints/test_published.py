"""Trained weights: all published keys are renamed, and our own files are read as written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from odise_mm.checkpoints.published import (
    PUBLISHED_NAMES,
    PUBLISHED_UNUSED,
    from_published,
    is_published,
    load_weights,
)
from odise_mm.checkpoints.safe_loading import load_state_dict, save_state_dict
from odise_mm.errors import CheckpointError
from odise_mm.models import OpenVocabSegmentor
from odise_mm.registry import MODELS
from tests.support import golden, golden_families, golden_maskclippp
from tests.support.parts import load_config, meta_model, segmentor

# Numbers of trained parameters in the published code.
TRAINED = {"label": 28_067_009, "caption": 28_066_755}


def published(size: str, variant: str) -> dict[str, torch.Tensor]:
    """Keys and shapes of a published file, without numbers."""
    shapes = dict(golden.shapes(size, f"odise_{variant}"))
    shapes.update(golden.shapes(size, f"odise_{variant}_buffers"))
    return {k: torch.empty(s, device="meta") for k, s in shapes.items()}


def config_of(variant: str, size: str) -> OpenVocabSegmentor:
    name = f"odise/odise_coco_{variant}.py"
    if size == "full":
        return meta_model(name)
    model = load_config(name).model
    tiny = load_config("toy/odise_tiny.py").model
    model.clip, model.backbone = tiny.clip, tiny.backbone
    with torch.device("meta"):
        return MODELS.build(model)


@pytest.mark.parametrize("variant", ["label", "caption"])
@pytest.mark.parametrize("size", ["tiny", "full"])
def test_every_published_key_is_renamed(size: str, variant: str) -> None:
    state = published(size, variant)
    assert is_published(state)
    ours, unused = from_published(state)
    assert set(unused) == {"criterion.empty_weight"} and all(unused.values())
    assert len(ours) == len(state) - 1  # no two keys get the same name
    wanted = config_of(variant, size).state_dict()
    assert set(ours) == set(wanted)
    for key, value in ours.items():
        assert value.shape == wanted[key].shape, key


@pytest.mark.parametrize("variant", TRAINED)
def test_number_of_trained_parameters_is_as_published(variant: str) -> None:
    model = config_of(variant, "full")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == TRAINED[variant]
    assert sum(v.numel() for v in model.state_dict().values()) == trained


def test_every_rule_is_used() -> None:
    import re

    keys = {k for v in TRAINED for k in published("full", v)}
    keys |= {key for family in golden_families.FAMILIES for key in golden_families.shapes(family)}
    keys |= set(golden_maskclippp.shapes())
    for pattern, _ in PUBLISHED_NAMES:
        assert any(re.match(pattern, key) for key in keys), pattern
    assert set(PUBLISHED_UNUSED) <= keys


def test_published_file_fills_the_model(tiny_weights: Path) -> None:
    """Every parameter has the (random) values of its published key, not only the shape."""
    state = golden.state_dict("tiny", "odise_label")
    ours, _ = from_published(state)
    config = load_config("toy/odise_tiny.py").model
    model = MODELS.build(config)
    unused = load_weights(model, tiny_weights / "odise_label.pth")
    assert set(unused) == {"criterion.empty_weight"}
    loaded = model.state_dict()
    for key, value in ours.items():
        assert torch.equal(loaded[key], value), key
    assert torch.equal(loaded["neck.blocks.3.conv2.0.weight"], state[NECK])
    assert torch.equal(loaded["head.mask_embed.4.bias"], state[MASK_EMBED])


NECK = "backbone.feature_projections.3.0.conv2.weight"
MASK_EMBED = "sem_seg_head.predictor.mask_embed.layers.2.bias"


def test_unknown_published_key() -> None:
    state = published("tiny", "label")
    state["sem_seg_head.predictor.extra.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="sem_seg_head.predictor.extra.weight"):
        from_published(state)


@pytest.mark.parametrize(("config", "file"), [("label", "caption"), ("caption", "label")])
def test_file_of_the_other_supervision(config: str, file: str, tiny_weights: Path) -> None:
    model = config_of(config, "tiny")
    path = tiny_weights / f"odise_{file}.pth"
    with pytest.raises(CheckpointError, match="does not match this config") as caught:
        load_weights(model, path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    assert "odise_coco_label.py for label-supervised ones" in message


def test_files_of_other_models(tiny_weights: Path) -> None:
    model = config_of("label", "tiny")
    for name in ("clip.pt", "sd_v1.ckpt"):
        with pytest.raises(CheckpointError, match=f"{name} does not match this config"):
            load_weights(model, tiny_weights / name)


def test_full_size_file_into_a_tiny_model(tmp_path: Path) -> None:
    ours, _ = from_published(published("full", "label"))
    wrong = {k: torch.zeros(v.shape) for k, v in ours.items() if k.startswith("captioner.")}
    model = config_of("label", "tiny")
    state = {k: torch.zeros(v.shape) for k, v in model.state_dict().items()}
    save_state_dict(tmp_path / "full.safetensors", {**state, **wrong})
    with pytest.raises(
        CheckpointError,
        match=r"8 of another shape \(first: captioner.* is \(.*768.*\), not \(.*64.*\)",
    ):
        load_weights(model, tmp_path / "full.safetensors")


@pytest.fixture(scope="module")
def model() -> OpenVocabSegmentor:
    return segmentor(seed=1)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_our_own_files_are_read_as_written(
    ending: str, model: OpenVocabSegmentor, tmp_path: Path
) -> None:
    path = tmp_path / f"model{ending}"
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save_state_dict(path, before)
    assert set(load_state_dict(path)) == set(before)
    assert not is_published(load_state_dict(path))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
    assert load_weights(model, path) == {}
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_missing_parameter_is_named(model: OpenVocabSegmentor, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    del state["captioner.time_gate"]
    save_state_dict(tmp_path / "part.pth", state)
    with pytest.raises(CheckpointError, match=r"1 missing \(first: captioner.time_gate"):
        load_weights(model, tmp_path / "part.pth")
