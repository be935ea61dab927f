"""Published checkpoints become ours: the same parameters, none lost, nothing foreign accepted."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from odise_mm import OpenVocabInferencer
from odise_mm.analysis import published
from odise_mm.analysis.meta import build_on_meta, load_model_config
from odise_mm.checkpoints.published import from_published, load_weights
from odise_mm.checkpoints.safe_loading import load_state_dict, save_state_dict
from odise_mm.errors import CheckpointError
from tests.support import golden, golden_families
from tools.model_converters import odise_to_mm


def shapes_of(config: str, *, tiny: bool) -> dict[str, tuple[int, ...]]:
    cfg = load_model_config(config)
    if tiny:
        toy = load_model_config("odise_tiny")
        cfg.model.clip, cfg.model.backbone = toy.model.clip, toy.model.backbone
    return {key: tuple(value.shape) for key, value in build_on_meta(cfg).state_dict().items()}


@pytest.mark.parametrize("variant", ["label", "caption"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_holds_what_the_original_gives(
    variant: str, suffix: str, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = tiny_weights / f"odise_{variant}.pth"
    target = tmp_path / f"converted{suffix}"
    assert odise_to_mm.main([str(source), str(target)]) == 0
    expected, unused = from_published(load_state_dict(source))
    found = load_state_dict(target)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key
    output = capsys.readouterr().out
    assert f"{sum(v.numel() for v in expected.values()):,}" in output
    for key, reason in unused.items():
        assert key in output and reason in output


def test_model_loads_the_same_from_original_and_converted(
    tiny_weights: Path, tmp_path: Path
) -> None:
    source, target = tiny_weights / "odise_label.pth", tmp_path / "label.safetensors"
    assert odise_to_mm.main([str(source), str(target), "--config", "odise_tiny"]) == 0
    cfg = load_model_config("odise_tiny")
    from odise_mm.config.building import build_model

    model = build_model(cfg)
    states = []
    for path in (source, target):
        load_weights(model, path)
        states.append({key: value.clone() for key, value in model.state_dict().items()})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("variant", ["label", "caption"])
@pytest.mark.parametrize("size", ["tiny", "full"])
def test_every_published_key_has_its_place_and_shape(variant: str, size: str) -> None:
    state = {
        key: torch.empty(shape, device="meta")
        for key, shape in golden.shapes(size, f"odise_{variant}").items()
    }
    ours, unused = from_published(state)
    assert len(ours) + len(unused) == len(state)
    assert not odise_to_mm._absent(state)
    config = f"odise_coco_{variant}"
    assert {k: tuple(v.shape) for k, v in ours.items()} == shapes_of(config, tiny=size == "tiny")
    if size == "full":
        total = sum(value.numel() for value in ours.values())
        assert total == published.PARAMETERS[variant].trained_total


def test_notes_where_it_is_from(tiny_weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.safetensors"
    odise_to_mm.main([str(tiny_weights / "odise_label.pth"), str(target)])
    with safe_open(target, "pt") as file:
        assert file.metadata()["converted_from"] == "odise_label.pth"


def test_refuses_what_is_not_a_whole_published_checkpoint(
    tiny_weights: Path, tmp_path: Path
) -> None:
    state = load_state_dict(tiny_weights / "odise_label.pth")

    def written(name: str, content: dict) -> Path:
        save_state_dict(tmp_path / name, content)
        return tmp_path / name

    less = {key: value for key, value in state.items() if "decoder_norm" not in key}
    with pytest.raises(CheckpointError, match=r"incomplete.*decoder_norm"):
        odise_to_mm.convert(written("less.pth", less))
    more = state | {"sem_seg_head.extra.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"sem_seg_head\.extra\.weight"):
        odise_to_mm.convert(written("more.pth", more))
    with pytest.raises(CheckpointError, match="already a checkpoint of this package"):
        odise_to_mm.convert(written("ours.pth", from_published(state)[0]))
    with pytest.raises(CheckpointError, match="not a published checkpoint of ODISE"):
        odise_to_mm.convert(written("other.pth", {"conv.weight": torch.zeros(1)}))


def test_misuse_ends_in_one_line(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source, target = str(tiny_weights / "odise_label.pth"), tmp_path / "x.pth"
    for arguments, message in (
        ([str(tmp_path / "none.pth"), str(target)], "no weights file"),
        ([source, source], "would replace an input"),
        ([source, str(tmp_path / "x.txt")], "suffix"),
        ([source, str(target), "--config", "odise_coco_caption"], "does not fit"),
        ([source, str(target), "--config", "nothing_like_it"], "no config 'nothing_like_it'"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            odise_to_mm.main(arguments)
        assert exit_info.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not target.exists()


@pytest.mark.parametrize("family", golden_families.FAMILIES)
def test_checkpoints_with_a_clip(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = golden_families.write_checkpoint(tmp_path / f"{family}.pth", family)
    config = golden_families.tiny_config(family)
    config.dump(tmp_path / "tiny.py")
    target = tmp_path / "ours.safetensors"
    arguments = [str(source), str(target), "--config", str(tmp_path / "tiny.py")]
    assert odise_to_mm.main(arguments) == 0
    expected, _ = from_published(load_state_dict(source))
    found = load_state_dict(target)
    assert found.keys() == expected.keys() and "clip.model.logit_scale" in found
    with safe_open(target, "pt") as file:
        assert file.metadata()["method"] == {"fcclip": "FC-CLIP", "maftplus": "MAFT+"}.get(
            family, "OVRCOAT"
        )
    config.model.clip.weights = str(tmp_path / "missing.safetensors")
    inferencer = OpenVocabInferencer(config, target, device="cpu")
    loaded = inferencer.model.clip.model.visual.trunk.stem[0].weight
    assert torch.equal(loaded, expected["clip.model.visual.trunk.stem.0.weight"])
