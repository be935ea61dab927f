"""Comparison of a checkpoint's training vocabulary with that of the config, and its warnings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from odise_mm.checkpoints import published as weights
from odise_mm.checkpoints import training_names
from odise_mm.checkpoints.published import load_weights
from odise_mm.checkpoints.safe_loading import load_meta, save_state_dict
from odise_mm.checkpoints.training_names import (
    PUBLISHED,
    PublishedNames,
    compare_names,
    note_of,
    noted,
    take_names,
    unsure_classes,
)
from odise_mm.models import GeometricEnsemble
from odise_mm.vocabulary import Vocabulary
from tests.support.parts import segmentor

SMALL = Vocabulary((("cat", "Kitten"), ("road", "street")), (True, False), "small")


class Model(nn.Module):
    """A model with the attributes that the comparison uses."""

    def __init__(self, trained: Vocabulary | str, current: Vocabulary | str) -> None:
        super().__init__()
        self.ensemble = GeometricEnsemble(train_vocabulary=trained)
        self.vocabulary = current if isinstance(current, Vocabulary) else Vocabulary.load(current)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(training_names, "print_log", lambda text, **_: messages.append(text))
    return messages


def test_base_classes_only_with_our_synonyms() -> None:
    typed = Vocabulary.parse("carpet; mud, Mud; dirt, soil; road; rug, mat; zeppelin; Automobile")
    assert unsure_classes(typed) == ["carpet", "mud", "Automobile"]
    # Checked against OpenSeg's file.
    for name, wanted in {
        "coco": ["light", "net", "playing field"],
        "ade20k": ["earth", "light"],
        "pascal_context59": ["ground", "light"],
        "cityscapes": [],
        "voc20": [],
        "mapillary": [],
    }.items():
        assert unsure_classes(Vocabulary.load(name)) == wanted


def test_the_list_contains_only_our_synonyms() -> None:
    ours = {text.casefold() for group in Vocabulary.load("coco").synonyms for text in group}
    assert training_names._not_in_openseg() < ours and len(training_names._not_in_openseg()) == 137
    assert set(training_names._EXAMPLES) <= training_names._not_in_openseg()


@pytest.mark.parametrize(
    ("meta", "published"),
    [({}, PUBLISHED["ODISE"]), ({"converted_from": "odise_label.pth"}, None)],
)
def test_published_weights_with_our_names(
    meta: dict[str, Any], published: PublishedNames | None, warnings: list[str]
) -> None:
    compare_names(Model("coco", "ade20k"), "odise\x1b.pth", meta, published)
    (text,) = warnings
    for part in (
        "odise\\x1b.pth",
        "openseg:coco_panoptic",
        "137",
        "carpet, mud",
        "'ade20k': earth, light",
        "coco_panoptic_with_prompt_eng.txt",
        "--cfg-options model.ensemble.train_vocabulary=PATH",
    ):
        assert part in text
    compare_names(Model(SMALL, "ade20k"), "odise.pth", meta, published)  # the user's own file
    assert len(warnings) == 1


def test_our_weights_with_other_names(warnings: list[str]) -> None:
    other = Vocabulary((("cat",), ("lake", "road")), (True, False), "lakes")
    model = Model(SMALL, Vocabulary.parse("street; dog; lake; cat"))
    compare_names(model, "ours.pth", {"train_vocabulary": note_of(other)})
    (text,) = warnings
    assert "'lakes' (2 classes)" in text and "'small' (2 classes)" in text
    assert "street, lake" in text and "cat" not in text and "dog" not in text


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"train_vocabulary": None},
        {"train_vocabulary": "no JSON"},
        {"train_vocabulary": dict(synonyms=5)},
        {"train_vocabulary": dict(synonyms=[["a", 3]])},
        {"train_vocabulary": dict(name="x", synonyms=[["road", "STREET "], ["kitten", "cat"]])},
        {"dataset_meta": None},
        {"dataset_meta": dict(vocabulary=dict(synonyms=[["object"]]))},  # captions
    ],
)
def test_no_names_or_the_same_ones_in_another_order(
    meta: dict[str, Any], warnings: list[str]
) -> None:
    compare_names(Model(SMALL, "coco"), "ours.pth", meta)
    assert warnings == []


def test_names_of_older_checkpoints(warnings: list[str]) -> None:
    meta = {"dataset_meta": dict(vocabulary=dict(synonyms=[["cat"], ["sky"]], is_thing=[True] * 2))}
    compare_names(Model(SMALL, SMALL), "old.pth", meta)
    assert len(warnings) == 1 and ": road)" in warnings[0]


def test_a_model_without_training_names(warnings: list[str]) -> None:
    compare_names(nn.Linear(1, 1), "ours.pth", {"train_vocabulary": note_of(SMALL)})
    assert warnings == []


def test_without_names_in_the_config_those_of_the_checkpoint_are_used(
    tmp_path: Path, warnings: list[str]
) -> None:
    model = segmentor(ensemble=dict(type="GeometricEnsemble"), vocabulary="voc20")
    assert model.ensemble.train_vocabulary == Vocabulary.load("voc20"), "by default, the model's"
    save_state_dict(tmp_path / "unnamed.pth", model.state_dict())
    load_weights(model, tmp_path / "unnamed.pth")
    assert model.ensemble.train_vocabulary == Vocabulary.load("voc20")
    note = json.dumps(note_of(SMALL))
    save_state_dict(tmp_path / "ours.pth", model.state_dict(), {"train_vocabulary": note})
    load_weights(model, tmp_path / "ours.pth")
    assert model.ensemble.train_vocabulary.synonyms == SMALL.synonyms and warnings == []
    compare_names(model, "odise.pth", {}, PUBLISHED["ODISE"])
    assert model.ensemble.train_vocabulary == Vocabulary.load("coco")
    assert "published ODISE checkpoint" in warnings[0]
    assert not take_names(Model(SMALL, "coco"), Vocabulary.load("voc20"))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_files_contain_their_names(ending: str, tmp_path: Path, warnings: list[str]) -> None:
    model = segmentor(ensemble=dict(type="GeometricEnsemble", train_vocabulary="coco"))
    path = tmp_path / f"ours.{ending}"
    note = json.dumps(note_of(SMALL))
    save_state_dict(path, model.state_dict(), {"train_vocabulary": note})
    assert noted(load_meta(path)).synonyms == SMALL.synonyms
    load_weights(model, path)
    assert len(warnings) == 1 and "'small'" in warnings[0]
    save_state_dict(path, model.state_dict())
    assert load_meta(path) == {}
    load_weights(model, path)
    assert len(warnings) == 1


def test_published_checkpoints_are_recognized_by_their_keys(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = segmentor()
    own = {f"sem_seg_head.{key}": value for key, value in model.state_dict().items()}
    monkeypatch.setattr(weights, "known_names", lambda _: own.__contains__)
    monkeypatch.setattr(
        weights,
        "from_published",
        lambda state: ({k.removeprefix("sem_seg_head."): v for k, v in state.items()}, {}),
    )
    torch.save({"model": own}, tmp_path / "odise.pth")
    load_weights(model, tmp_path / "odise.pth")
    assert len(warnings) == 1 and "'coco': light, net, playing field" in warnings[0]
