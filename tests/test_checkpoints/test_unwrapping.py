"""Choice of names and of sets of weights, compared with the loaders of timm and open_clip."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from odise_mm.checkpoints import safe_loading as checkpoint
from odise_mm.checkpoints.safe_loading import load_state_dict
from odise_mm.checkpoints.unwrapping import unwrap
from odise_mm.errors import CheckpointError

NAMES = ("stem.weight", "blocks.0.bias", "head.scale")
PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "_orig_mod.module._orig_mod.",
    "model.module.",
    "model._orig_mod.",
    "module.model.",
    "module.module.",
    "model._orig_mod.module.",
)


def numbers(value: float, names: tuple[str, ...] = NAMES) -> dict[str, Tensor]:
    return {name: torch.full((2,), value + i) for i, name in enumerate(names)}


def prefixed(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


def read(content: dict, names: tuple[str, ...] = NAMES) -> dict[str, Tensor]:
    best, _ = unwrap(content, lambda value: isinstance(value, Tensor), names.__contains__)
    return best.values


def assert_same(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


# ------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("level", [None, "state_dict", "model", "module"])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_prefixes(prefix: str, level: str | None, ending: str, tmp_path: Path) -> None:
    state = prefixed(prefix, numbers(1))
    path = tmp_path / f"w.{ending}"
    if ending == "pth":
        torch.save({level: state, "epoch": 3} if level else state, path)
    else:
        save_file(state, path)
    assert_same(load_state_dict(path, fits=NAMES.__contains__), numbers(1))
    kept = load_state_dict(path, keep=lambda k: k == "head.scale", fits=NAMES.__contains__)
    assert_same(kept, {"head.scale": numbers(1)["head.scale"]})
    # Without knowledge of the model, names are unchanged.
    assert_same(load_state_dict(path), state)


@pytest.mark.parametrize("child", ["module", "model", "_orig_mod"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod."])
def test_submodule_with_the_name_of_a_prefix(child: str, prefix: str) -> None:
    names = (f"{child}.weight", f"{child}.{child}.bias", "head.weight")
    assert_same(read(prefixed(prefix, numbers(1, names)), names), numbers(1, names))
    names = names[:2]  # all names of the model begin with it
    assert_same(read(prefixed(prefix, numbers(1, names)), names), numbers(1, names))


def test_wrapped_submodules() -> None:
    state = {
        "stem._orig_mod.weight": torch.ones(1),
        "blocks.0.module.bias": torch.ones(2),
        "module.head.module._orig_mod.scale": torch.ones(3),
    }
    assert {k: len(v) for k, v in read(state).items()} == dict(zip(NAMES, (1, 2, 3), strict=True))


def test_names_without_the_prefix_are_kept() -> None:
    """They are reported as unknown when the weights are loaded."""
    state = {**prefixed("module.", numbers(1)), "loss.weight": torch.ones(1)}
    assert set(read(state)) == {*NAMES, "loss.weight"}


def test_prefixes_are_kept_if_names_would_collide() -> None:
    state = {**numbers(1), **prefixed("module.", numbers(5))}
    assert set(read(state)) == set(state)


def test_unknown_names() -> None:
    """If no name fits the model, only torch's prefixes are removed; ``model.`` is kept."""
    theirs = ("layers.w", "layers.b")
    assert set(read(prefixed("module._orig_mod.", numbers(1, theirs)))) == set(theirs)
    assert set(read(prefixed("model.", numbers(1, theirs)))) == {f"model.{name}" for name in theirs}


def test_counters_of_averaging_wrappers_are_removed() -> None:
    model = nn.Linear(2, 3)
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    state = averaged.state_dict()
    assert "n_averaged" in state
    assert_same(read(state, tuple(model.state_dict())), dict(model.state_dict()))
    # a weight of the model with the name of a counter
    names = (*NAMES, "steps")
    assert_same(read(prefixed("module.", numbers(1, names)), names), numbers(1, names))


def test_compiled_and_parallel_modules_of_torch() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    names = tuple(net.state_dict())
    compiled = torch.compile(nn.DataParallel(net), backend="eager")
    assert all(key.startswith("_orig_mod.module.") for key in compiled.state_dict())
    assert_same(read(compiled.state_dict(), names), dict(net.state_dict()))
    inside = nn.Sequential(torch.compile(net[0], backend="eager"), net[1])
    assert any("._orig_mod." in key for key in inside.state_dict())
    assert_same(read(inside.state_dict(), names), dict(net.state_dict()))


# ------------------------------------------------------------------------------------------- sets


@pytest.mark.parametrize("prefix", ["", *PREFIXES])
@pytest.mark.parametrize(
    ("raw", "averaged"),
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("state_dict", "ema_state_dict"),
        ("model", "ema"),
    ],
)
def test_averaged_weights_are_preferred(raw: str, averaged: str, prefix: str) -> None:
    content = {averaged: prefixed(prefix, numbers(7)), raw: prefixed(prefix, numbers(1))}
    assert_same(read(content), numbers(7))
    assert_same(read(dict(reversed(content.items()))), numbers(7))
    assert_same(read({**content, averaged: None}), numbers(1))
    assert_same(read({averaged: content[averaged]}), numbers(7))


def test_averaged_weights_of_a_flat_file() -> None:
    content = {**prefixed("model.", numbers(1)), **prefixed("model_ema.", numbers(7))}
    assert_same(read(content), numbers(7))
    assert_same(read({"state_dict": prefixed("module.", content)}), numbers(7))


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(checkpoint, "print_log", lambda text, **_: lines.append(text))
    return lines


def test_averaged_weights_that_do_not_fit(tmp_path: Path, logged: list[str]) -> None:
    content = {"state_dict": numbers(1), "state_dict_ema": numbers(7, NAMES[:2])}
    torch.save(content, tmp_path / "w.pth")
    assert_same(load_state_dict(tmp_path / "w.pth", fits=NAMES.__contains__), numbers(1))
    assert "using the raw weights (state_dict), because the averaged weights" in logged[0]


def test_the_chosen_set_is_logged(tmp_path: Path, logged: list[str]) -> None:
    torch.save({"model": numbers(1), "model_ema": {"module": numbers(7)}}, tmp_path / "w.pth")
    assert_same(load_state_dict(tmp_path / "w.pth", fits=NAMES.__contains__), numbers(7))
    assert "using the averaged weights (model_ema.module)" in logged[0]


def test_the_set_that_fits_the_model() -> None:
    """In a file with two models, the names decide, not the order."""
    other = numbers(9, ("w.a", "w.b", "w.c", "w.d"))
    assert_same(read({"state_dict": other, "model": numbers(1)}), numbers(1))
    assert_same(read({"model_ema": other, "model": numbers(1)}), numbers(1))


def test_layout_of_mmengines_ema_hook() -> None:
    """``state_dict`` has the averaged weights, ``ema_state_dict`` those of the last step."""
    raw, averaged = nn.Linear(2, 2), None
    averaged = ExponentialMovingAverage(raw, momentum=0.5)
    averaged.update_parameters(raw)  # copies at the first step
    with torch.no_grad():
        raw.weight += 1
    averaged.update_parameters(raw)
    wanted = {k: v.clone() for k, v in averaged.module.state_dict().items()}
    assert not torch.equal(wanted["weight"], raw.weight)
    hook = EMAHook()
    hook.ema_model = averaged
    checkpoint = {"state_dict": dict(raw.state_dict()), "meta": {}}
    hook.before_save_checkpoint(None, checkpoint)
    assert {"steps", "module.weight", "module.bias"} == set(checkpoint["ema_state_dict"])
    assert_same(read(checkpoint, ("weight", "bias")), wanted)


# ------------------------------------------------------------------------------------ independent


TRAINING = dict(
    epoch=3,
    arch="test_vit",
    args=argparse.Namespace(lr=0.1, opt="adamw"),
    optimizer={"state": {}, "param_groups": [{"lr": 0.1}]},
    metric=71.5,
)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize(
    "sets",
    [
        ("state_dict",),
        ("state_dict", "state_dict_ema"),
        ("state_dict_ema", "state_dict"),
        ("model", "model_ema"),
        ("model",),
        ("state_dict_ema",),
        (),
    ],
)
def test_as_timm_reads_it(sets: tuple[str, ...], prefix: str, tmp_path: Path) -> None:
    model = timm.create_model("test_vit")
    names = tuple(model.state_dict())
    states = [prefixed(prefix, numbers(i, names)) for i, _ in enumerate(sets or ("only",))]
    content = {**TRAINING, **dict(zip(sets, states, strict=True))} if sets else states[0]
    torch.save(content, tmp_path / "last.pth.tar")
    wanted = timm.models.load_state_dict(str(tmp_path / "last.pth.tar"))
    assert set(wanted) == set(names)
    assert_same(load_state_dict(tmp_path / "last.pth.tar", fits=names.__contains__), wanted)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 1, "state_dict": s}])
def test_as_open_clip_reads_it(prefix: str, wrap: Callable, tmp_path: Path) -> None:
    config = dict(
        embed_dim=8,
        vision_cfg=dict(image_size=28, layers=1, width=16, head_width=8, patch_size=14),
        text_cfg=dict(context_length=8, vocab_size=32, width=16, heads=2, layers=1),
    )
    model = open_clip.CLIP(**config)
    names = tuple(model.state_dict())
    torch.save(wrap(prefixed(prefix, model.state_dict())), tmp_path / "epoch_1.pt")
    target = open_clip.CLIP(**config)
    open_clip.load_checkpoint(target, str(tmp_path / "epoch_1.pt"))
    state = load_state_dict(tmp_path / "epoch_1.pt", fits=names.__contains__)
    assert_same(state, dict(target.state_dict()))


# ----------------------------------------------------------------------------------------- hostile


def test_dictionaries_that_contain_themselves(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    torch.save(content, tmp_path / "loop.pth")
    with pytest.raises(CheckpointError, match="contains no tensors, only: 'epoch', 'model'"):
        load_state_dict(tmp_path / "loop.pth")
    ring: dict[str, Any] = {"state_dict": {"module": {}, **numbers(1)}}
    ring["state_dict"]["module"]["model"] = ring
    torch.save(ring, tmp_path / "ring.pth")
    assert_same(load_state_dict(tmp_path / "ring.pth", fits=NAMES.__contains__), numbers(1))


def test_many_prefixes_are_handled_quickly() -> None:
    names = [f"{'module.' * (i % 40)}{'model.' * (i % 7)}x{i}" for i in range(2000)]
    state = dict.fromkeys(names, torch.ones(1))
    assert len(read(state)) == len(names)


def test_optimizer_state_is_not_taken_for_weights() -> None:
    state = {"optimizer": {"state": numbers(3)}, "loader": DataLoader, "state_dict": numbers(1)}
    assert_same(read(state), numbers(1))
