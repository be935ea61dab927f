"""Tests that all loaders read weights of wrapped models and choose averaged weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from odise_mm.checkpoints.published import load_weights
from odise_mm.checkpoints.safe_loading import load_state_dict
from odise_mm.errors import CheckpointError
from odise_mm.models import FrozenCLIP, OpenCLIPBackbone, OpenVocabSegmentor, TimmBackbone
from odise_mm.models.backbones.diffusion.backbone import DiffusionBackbone
from odise_mm.models.necks.captioners.blip import BLIPCaptioner
from odise_mm.registry import MODELS
from tests.support.parts import TINY_CLIP, clip, load_config, random_weights
from tests.test_models.test_backbones.conftest import folder, full  # noqa: F401 (fixtures)
from tests.test_models.test_backbones.test_diffusion import PAPER
from tests.test_models.test_necks.test_text_captioners import FakeEncoder
from tools.model_converters.odise_to_mm import convert

State = dict[str, Tensor]


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value.clone() for key, value in state.items()}


def shifted(state: State) -> State:
    """Return other numbers under the same names, as raw weights next to averaged ones."""
    return {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}


def plain(state: State, path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": state}, path)


def as_safetensors(state: State, path: Path) -> None:
    save_file({k: v.clone() for k, v in state.items()}, path)


def averaged(state: State, path: Path) -> None:
    torch.save({"state_dict": shifted(state), "state_dict_ema": state, "epoch": 3}, path)


def averaged_torchvision(state: State, path: Path) -> None:
    ema = {"n_averaged": torch.tensor(5), **prefixed("module.", state)}
    torch.save({"model": shifted(state), "model_ema": ema, "epoch": 3}, path)


def averaged_mmengine(state: State, path: Path) -> None:
    raw = {"steps": torch.tensor(5), **prefixed("module.", shifted(state))}
    torch.save({"meta": {}, "state_dict": state, "ema_state_dict": raw}, path)


WRAPPINGS: list[tuple[str, Callable[[State, Path], None]]] = [
    ("module.", plain),
    ("_orig_mod.", as_safetensors),
    ("model.", plain),
    ("_orig_mod.module.", plain),
    ("model.module._orig_mod.", as_safetensors),
    ("", averaged),
    ("module._orig_mod.", averaged),
    ("", averaged_torchvision),
    ("model.", averaged_torchvision),
    ("", averaged_mmengine),
    ("module.", averaged_mmengine),
]


def wrapped(*cases: tuple[str, Callable[[State, Path], None]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("prefix", "save"), cases, ids=[f"{p}-{s.__name__}" for p, s in cases]
    )


wrappings = wrapped(*WRAPPINGS)
# For loaders of large files.
few_wrappings = wrapped(("module._orig_mod.", averaged), ("model.", as_safetensors))


def assert_same(module: torch.nn.Module, wanted: State) -> None:
    found = module.state_dict() or dict(module.named_parameters())  # frozen parts hide their state
    assert found and all(torch.equal(found[key], wanted[key]) for key in found)


@pytest.fixture(scope="module")
def clip_state() -> State:
    return dict(clip().model.state_dict())


@wrappings
def test_clip(prefix: str, save: Callable, clip_state: State, tmp_path: Path) -> None:
    save(prefixed(prefix, clip_state), tmp_path / "clip.pt")
    assert_same(FrozenCLIP(TINY_CLIP, str(tmp_path / "clip.pt")).model, clip_state)


@wrappings
def test_open_clip_backbone(prefix: str, save: Callable, clip_state: State, tmp_path: Path) -> None:
    save(prefixed(prefix, clip_state), tmp_path / "clip.pt")
    backbone = OpenCLIPBackbone(TINY_CLIP, str(tmp_path / "clip.pt"))
    tower = {k[7:]: v for k, v in clip_state.items() if k.startswith("visual.")}
    assert_same(backbone.own_tower, tower)


@pytest.fixture(scope="module")
def timm_states() -> dict[str, State]:
    names = ("test_vit", "test_resnet")
    return {name: dict(random_weights(timm.create_model(name), 3).state_dict()) for name in names}


@wrappings
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_timm_backbone(
    name: str, prefix: str, save: Callable, timm_states: dict[str, State], tmp_path: Path
) -> None:
    state = timm_states[name]
    save(prefixed(prefix, state), tmp_path / "last.pth.tar")
    assert_same(TimmBackbone(name, str(tmp_path / "last.pth.tar")).network, state)


@pytest.fixture(scope="module")
def model() -> OpenVocabSegmentor:
    return MODELS.build(load_config("toy/odise_tiny.py").model)


@few_wrappings
def test_our_own_weights(
    prefix: str, save: Callable, model: OpenVocabSegmentor, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(1)
    state = {k: torch.randn(v.shape, generator=generator) for k, v in model.state_dict().items()}
    save(prefixed(prefix, state), tmp_path / "iter_9.pth")
    assert load_weights(model, tmp_path / "iter_9.pth") == {}
    assert_same(model, state)


@few_wrappings
def test_published_odise(
    prefix: str, save: Callable, model: OpenVocabSegmentor, tiny_weights: Path, tmp_path: Path
) -> None:
    published = load_state_dict(tiny_weights / "odise_label.pth")
    load_weights(model, tiny_weights / "odise_label.pth")
    wanted = {k: v.clone() for k, v in model.state_dict().items()}
    save(prefixed(prefix, published), tmp_path / "odise.pth")
    load_weights(model, tmp_path / "odise.pth")
    assert_same(model, wanted)
    converted, *_ = convert(tmp_path / "odise.pth")
    assert_same(model, converted)


@few_wrappings
def test_original_diffusion_file(
    prefix: str, save: Callable, tiny_weights: Path, tmp_path: Path
) -> None:
    state = load_state_dict(tiny_weights / "sd_v1.ckpt")
    save(prefixed(prefix, state), tmp_path / "sd.ckpt")
    wanted = DiffusionBackbone("tiny", str(tiny_weights / "sd_v1.ckpt"), PAPER)
    found = DiffusionBackbone("tiny", str(tmp_path / "sd.ckpt"), PAPER)
    assert_same(found, dict(wanted.named_parameters()))
    assert torch.equal(found.empty_context, wanted.empty_context)


@few_wrappings
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_diffusers_folder(
    part: str,
    prefix: str,
    save: Callable,
    folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (file,) = (copy / part).glob("*.safetensors")
    state = load_file(file)
    file.unlink()
    save(prefixed(prefix, state), file.with_suffix(".safetensors"))
    wanted = DiffusionBackbone("tiny", str(folder), PAPER)
    found = DiffusionBackbone("tiny", str(copy), PAPER)
    assert_same(found, dict(wanted.named_parameters()))
    assert torch.equal(found.empty_context, wanted.empty_context)


@few_wrappings
def test_unet_alone(
    prefix: str,
    save: Callable,
    folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    state = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    other = {k: v * 2 for k, v in state.items()}
    save(prefixed(prefix, other), tmp_path / "unet.safetensors")
    unet = dict(weights=str(tmp_path / "unet.safetensors"))
    found = DiffusionBackbone("tiny", str(folder), PAPER, unet=unet)
    wanted = {f"unet.{k}": v for k, v in other.items()}
    pairs = [(k, v) for k, v in found.named_parameters() if k in wanted]
    assert len(pairs) > 100
    for key, value in pairs:
        assert torch.equal(value, wanted[key]), key


@few_wrappings
def test_blip(prefix: str, save: Callable, tmp_path: Path) -> None:
    captioner = BLIPCaptioner(FakeEncoder(), arch="tiny")
    random_weights(captioner.model, seed=3)
    captioner.model.save_pretrained(tmp_path)
    captioner.tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    file.unlink()
    save(prefixed(prefix, state), file)
    found = BLIPCaptioner(FakeEncoder(), arch="tiny", weights=str(tmp_path))
    assert_same(found.model, captioner.model.state_dict())


def test_embeddings_equal_open_clip(clip_state: State, tmp_path: Path) -> None:
    """Embeddings equal those of open_clip with the same checkpoint of a parallel training run."""
    plain(prefixed("module.", clip_state), tmp_path / "epoch_3.pt")
    reference = open_clip.CLIP(**TINY_CLIP).eval()
    open_clip.load_checkpoint(reference, str(tmp_path / "epoch_3.pt"))
    model = FrozenCLIP(TINY_CLIP, str(tmp_path / "epoch_3.pt"))
    images = torch.rand(1, 3, 56, 56)
    with torch.no_grad():
        wanted = reference.encode_image(model.normalize(images))
    torch.testing.assert_close(model.encode_image(images), wanted)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_errors_name_the_models_own_parameters(
    prefix: str, clip_state: State, model: OpenVocabSegmentor, tmp_path: Path
) -> None:
    less = {k: v for k, v in clip_state.items() if k != "visual.proj"}
    plain(prefixed(prefix, {**less, "extra.weight": torch.ones(1)}), tmp_path / "clip.pt")
    with pytest.raises(
        CheckpointError, match=r"1 missing \(first: visual.proj\), 1 unknown \(first: extra.weight"
    ):
        FrozenCLIP(TINY_CLIP, str(tmp_path / "clip.pt"))
    with pytest.raises(CheckpointError, match="the weights of another model") as caught:
        load_weights(model, tmp_path / "clip.pt")
    assert "odise_coco" not in str(caught.value)
