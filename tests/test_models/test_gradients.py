"""Tests of gradients that reach the trained parameters through the frozen UNet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from odise_mm.checkpoints.published import from_published
from odise_mm.models import OpenVocabSegmentor
from odise_mm.models.frozen import FrozenModule
from tests.support import golden
from tests.test_models.test_published_equality import build

CHECKPOINTING = pytest.mark.parametrize("use_checkpoint", [False, True])


@pytest.fixture(scope="module")
def model(tiny_weights: Path) -> OpenVocabSegmentor:
    return build(tiny_weights, "tiny", "label").train()


@pytest.fixture(scope="module")
def tile() -> Tensor:
    image = golden.load_case("tiny_label_512x512").image
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    return golden.load_arrays("captioner_gradients")


def references(recorded: dict[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    """Return the recorded gradients by the names of our parameters."""
    found = {
        key.removeprefix(prefix): torch.from_numpy(value)
        for key, value in recorded.items()
        if key.startswith(prefix)
    }
    return from_published(found)[0]


def draw(seed: int, like: Tensor) -> Tensor:
    values = np.random.RandomState(seed).standard_normal(tuple(like.shape))
    return torch.from_numpy(values.astype(np.float32))


def assert_gradients(
    model: OpenVocabSegmentor, wanted: dict[str, Tensor], tolerance: float
) -> None:
    parameters = dict(model.named_parameters())
    for name, reference in wanted.items():
        step = golden.PROJECTION_ROWS if name.startswith("neck.") else 1
        error = (parameters[name].grad[::step] - reference).norm() / reference.norm()
        assert error <= tolerance, (name, float(error))


@CHECKPOINTING
def test_gradients_through_the_unet_equal_the_published_ones(
    use_checkpoint: bool, model: OpenVocabSegmentor, tile: Tensor, recorded: dict
) -> None:
    model.zero_grad()
    model.backbone.use_checkpoint = use_checkpoint
    taps = model.backbone(tile, model.captioner(tile))
    parts = [(tap * draw(200 + i, tap)).mean() for i, tap in enumerate(taps)]
    for i, part in enumerate(parts):
        assert abs(part.item() - recorded[f"Lfeat_{i}_f64"]) < 1e-6
    sum(parts).backward()
    wanted = references(recorded, "feat_grad_f64/")
    assert len(wanted) == sum(p.requires_grad for p in model.captioner.parameters())
    assert_gradients(model, wanted, 5e-5)


def test_gradients_through_the_pyramid_equal_the_published_ones(
    model: OpenVocabSegmentor, tile: Tensor, recorded: dict
) -> None:
    """Rounding may switch ReLU gates, so the tolerance is larger."""
    model.zero_grad()
    model.backbone.use_checkpoint = False
    (pyramid,) = model.extract_pyramids([tile[0]])
    loss = sum((level * draw(100 + k, level[None])[0]).mean() for k, level in enumerate(pyramid))
    assert abs(loss.item() - recorded["L_f64"]) < 1e-6
    loss.backward()
    wanted = references(recorded, "grad_f64/")
    assert {name.split(".")[0] for name in wanted} == {"captioner", "neck"} and len(wanted) == 28
    assert_gradients(model, wanted, 1e-2)


def test_only_the_unet_runs_with_gradients(model: OpenVocabSegmentor, tile: Tensor) -> None:
    """VAE and CLIP run without gradients; frozen weights get none and stay in eval mode."""
    tile, seen = tile[..., :128, :128], {}
    parts = {
        "clip": model.clip.visual,
        "encoder": model.backbone.vae.encoder.down_blocks[0].resnets[0],
        "decoder": model.backbone.vae.decoder.up_blocks[0].resnets[0],
        "unet": model.backbone.unet.mid_block,
    }
    hooks = [
        part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        for name, part in parts.items()
    ]
    taps = model.backbone(tile, model.captioner(tile))
    for hook in hooks:
        hook.remove()
    assert {name: out.requires_grad for name, out in seen.items()} == {
        "clip": False,
        "encoder": False,
        "decoder": False,
        "unet": True,
    }
    assert [tap.requires_grad for tap in taps] == [False] * 2 + [True] * 4 + [False] * 2
    model.zero_grad()
    sum(tap.square().mean() for tap in taps).backward()
    frozen = [part for part in model.modules() if isinstance(part, FrozenModule)]
    assert model.head.training and not any(m.training for part in frozen for m in part.modules())
    assert all(p.grad is None for part in frozen for p in part.parameters())
    with_gradient = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {"captioner"}
