"""The diffusion backbone against diffusers' own complete forward passes."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from odise_mm.models.backbones.diffusion.arch_from_files import get_arch
from odise_mm.models.backbones.diffusion.backbone import DiffusionBackbone
from odise_mm.models.backbones.diffusion.condition import Condition
from odise_mm.models.backbones.diffusion.frozen_blocks import (
    FrozenConv,
    FrozenResnet,
    accurate_group_norm,
    use_frozen_blocks,
)
from odise_mm.models.backbones.diffusion.presets import ARCHITECTURES, DiffusionArch
from odise_mm.models.backbones.diffusion.taps import Taps
from tests.support import golden
from tests.support.parts import relative_error
from tests.test_models.test_backbones.conftest import Diffusion

PAPER = dict(vae_encoder=(5, 7), unet=(2, 5, 8, 11), vae_decoder=(2, 5))
ALL = dict(vae_encoder=range(8), unet=range(12), vae_decoder=range(12))
CHOICES = {
    "paper": PAPER,
    "all": ALL,
    "unet only": dict(unet=(1, 4)),
    "first block of the unet": dict(unet=(0,)),
    "unet, first block of a level": dict(unet=(2, 9)),
    "encoder only": dict(vae_encoder=(0, 3)),
    "decoder only": dict(vae_decoder=(1,)),
    "first block of the decoder": dict(vae_decoder=(0,)),
    "decoder, first block of a level": dict(unet=(6,), vae_decoder=(2, 9)),
}
TOLERANCE = 2e-4  # of float32: the VAE sums in another order than diffusers, channels last


def tiles(size: int = 64, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(size))


def random_condition(backbone: DiffusionBackbone, count: int = 2) -> Condition:
    generator = torch.Generator().manual_seed(7)
    context = torch.randn(count, 77, backbone.context_width, generator=generator)
    time = torch.randn(count, len(backbone.steps), backbone.time_width, generator=generator)
    return Condition(context, time)


def check(backbone: DiffusionBackbone, model: Diffusion, size: int = 64) -> None:
    condition = random_condition(backbone)
    images = tiles(size)
    with torch.no_grad():
        features = backbone(images, condition)
        reference = model.features(images, *condition[:1], backbone.steps, condition.time)
    taps = [reference[name][i] for name in Taps._fields for i in getattr(backbone.taps, name)]
    assert len(features) == len(taps) == len(backbone.channels) == len(backbone.strides)
    for i, (feature, tap) in enumerate(zip(features, taps, strict=True)):
        assert relative_error(feature, tap) < TOLERANCE, i
        assert backbone.channels[i] == feature.shape[1]
        assert backbone.strides[i] == min(size // feature.shape[-1], 32)


@pytest.mark.parametrize("name", CHOICES)
def test_taps_are_those_of_the_complete_model(name: str, full: Diffusion, folder: Path) -> None:
    check(DiffusionBackbone("tiny", str(folder), CHOICES[name]), full)


@pytest.mark.parametrize("steps", [(-1,), (200,), (0, 500, -1)])
def test_steps(steps: tuple[int, ...], full: Diffusion, folder: Path) -> None:
    check(DiffusionBackbone("tiny", str(folder), PAPER, steps), full)


def test_larger_tiles_and_resized_noise(full: Diffusion, folder: Path) -> None:
    backbone = DiffusionBackbone("tiny", str(folder), dict(unet=(3,)))
    check(backbone, full, size=128)
    with torch.no_grad():
        latent, _ = backbone.encode(tiles(128))
        reference = full.features(tiles(128), random_condition(backbone).context, (30,))
        assert relative_error(latent, reference["latent"][0]) < TOLERANCE
        assert relative_error(backbone.add_noise(latent, 30), reference["noisy"][0]) < TOLERANCE


def test_noise_is_the_same_for_every_tile_and_call(folder: Path) -> None:
    backbone = DiffusionBackbone("tiny", str(folder), dict(unet=(3,)))
    zeros = torch.zeros(3, 4, 64, 64)
    first = backbone.add_noise(zeros, 999)
    assert torch.equal(first, backbone.add_noise(zeros, 999))
    assert torch.equal(first[0], first[2])
    draw = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(42))
    assert torch.equal(backbone.noise, draw)
    other = DiffusionBackbone("tiny", str(folder), dict(unet=(3,)), noise_seed=1)
    assert not torch.equal(other.noise, draw)


def test_without_condition_the_prompt_is_empty(full: Diffusion, folder: Path) -> None:
    backbone = DiffusionBackbone("tiny", str(folder), dict(unet=(5,)))
    with torch.no_grad():
        feature = backbone(tiles())[0]
        reference = full.features(tiles(), backbone.empty_context.expand(2, -1, -1))["unet"][5]
    assert relative_error(feature, reference) < TOLERANCE


def test_tiles_of_a_batch_are_independent(folder: Path) -> None:
    backbone = DiffusionBackbone("tiny", str(folder), PAPER)
    condition = random_condition(backbone)
    with torch.no_grad():
        together = backbone(tiles(), condition)
        for i in range(2):
            one = Condition(condition.context[i : i + 1], condition.time[i : i + 1])
            for both, alone in zip(together, backbone(tiles()[i : i + 1], one), strict=True):
                assert relative_error(both[i : i + 1], alone) < TOLERANCE


# Stable Diffusion v2's structure: linear projections, a different number of heads per level.
V2 = dict(
    unet=dict(
        ARCHITECTURES["sd_v2"].unet,
        block_out_channels=(32, 64, 128, 128),
        cross_attention_dim=48,
        attention_head_dim=(1, 2, 4, 4),
    ),
    vae=dict(ARCHITECTURES["sd_v2"].vae, block_out_channels=(32, 32, 64, 64)),
    text=dict(
        ARCHITECTURES["sd_v2"].text,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
    ),
    pad_token=0,
)


def test_structure_of_version_2_from_a_dict(tmp_path: Path) -> None:
    model = Diffusion.random(DiffusionArch(**V2))
    backbone = DiffusionBackbone(V2, str(model.save(tmp_path)), ALL)
    assert backbone.context_width == 48
    check(backbone, model)
    tokens = torch.tensor([[49406, 49407] + [0] * 75])
    with torch.no_grad():
        reference = model.text(tokens).last_hidden_state
    torch.testing.assert_close(backbone.empty_context, reference)


@pytest.mark.parametrize("arch", ["sd_v1", "sd_v2"])
def test_full_size_presets_are_stable_diffusion(arch: str) -> None:
    with torch.device("meta"):
        backbone = DiffusionBackbone(arch, weights="not/read", steps=(0, 1))
    # METHOD: channels and strides of the paper's taps, the UNet's twice as there are two steps
    unet = (2560, 1920, 960, 640)
    assert backbone.channels == (512, 512, *(2 * c for c in unet), 512, 512)
    assert backbone.strides == (4, 8, 32, 32, 16, 8, 8, 4)
    assert backbone.context_width == {"sd_v1": 768, "sd_v2": 1024}[arch]
    assert backbone.time_width == 1280
    assert all(p.is_meta for p in backbone.parameters())


def test_channels_are_known_without_memory(folder: Path) -> None:
    for taps in CHOICES.values():
        with torch.device("meta"):
            planned = DiffusionBackbone("tiny", str(folder), taps)
        real = DiffusionBackbone("tiny", str(folder), taps)
        features = real(tiles(128, 1))
        assert planned.channels == tuple(f.shape[1] for f in features)
        assert planned.strides == tuple(min(128 // f.shape[-1], 32) for f in features)


@pytest.mark.parametrize("name", [name for name in CHOICES if name != "encoder only"])
def test_every_layer_that_is_built_is_needed(name: str, full: Diffusion, folder: Path) -> None:
    backbone = DiffusionBackbone("tiny", str(folder), CHOICES[name])
    called: set[str] = set()
    layers = {
        path: layer
        for path, layer in backbone.named_modules()
        if next(layer.parameters(recurse=False), None) is not None
    }
    for path, layer in layers.items():
        layer.register_forward_hook(lambda *_, path=path: called.add(path))
    backbone(tiles(64, 1))
    assert called == set(layers)
    total = sum(p.numel() for part in (full.unet, full.vae) for p in part.parameters())
    assert sum(p.numel() for p in backbone.parameters()) < total


def test_gradients_reach_the_condition_only(full: Diffusion, folder: Path) -> None:
    gradients, images = [], tiles()
    for use_checkpoint in (False, True):
        backbone = DiffusionBackbone("tiny", str(folder), PAPER, use_checkpoint=use_checkpoint)
        backbone.train()
        assert not any(part.training for part in backbone.modules())
        condition = random_condition(backbone)
        for part in condition[:2]:
            part.requires_grad_()
        features = backbone(images, condition)
        assert [f.requires_grad for f in features] == [False] * 2 + [True] * 4 + [False] * 2
        sum(f.square().mean() for f in features).backward()
        gradients.append([part.grad for part in condition[:2]])
        assert not any(p.requires_grad or p.grad is not None for p in backbone.parameters())
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
        assert plain.abs().max() > 0

    condition = random_condition(backbone)
    for part in condition[:2]:
        part.requires_grad_()
    reference = full.features(images, condition.context, (0,), condition.time)["unet"]
    full.unet.requires_grad_(False)
    sum(reference[i].square().mean() for i in PAPER["unet"]).backward()
    for value, part in zip(gradients[0], condition[:2], strict=True):
        assert relative_error(value, part.grad) < 1e-3


def test_half_precision_keeps_the_features(folder: Path) -> None:
    backbone = DiffusionBackbone("tiny", str(folder), PAPER)
    with torch.no_grad():
        exact = backbone(tiles())
        backbone.cast(torch.bfloat16)
        rounded = backbone(tiles())
    assert backbone.noise.dtype == torch.float32
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.bfloat16
        assert (a - b.float()).square().mean().sqrt() < 0.05 * a.std()


def test_empty_prompt_and_noise_are_the_recorded_ones(folder: Path) -> None:
    recorded = golden.weights_check("tiny")
    backbone = DiffusionBackbone("tiny", str(folder), dict(unet=(0,)))
    embedding = backbone.empty_context.numpy().reshape(recorded["uncond_inputs"].shape)
    np.testing.assert_allclose(embedding, recorded["uncond_inputs"], atol=2e-5)
    noise = backbone.noise.numpy().reshape(recorded["shared_noise"].shape)
    np.testing.assert_array_equal(noise, recorded["shared_noise"])


def test_text_encoder_is_not_kept(folder: Path) -> None:
    backbone = DiffusionBackbone("tiny", str(folder), PAPER)
    assert not any(isinstance(layer, nn.Embedding) for layer in backbone.modules())
    assert backbone.state_dict() == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(taps=dict(unet=(12,))), r"taps.unet: block 12 does not exist.*0 to 11"),
        (dict(taps=dict(vae_encoder=(8,))), r"taps.vae_encoder: block 8 does not exist.*0 to 7"),
        (dict(taps=dict(vae_decoder=(-1,))), r"taps.vae_decoder: block -1 does not exist"),
        (
            dict(taps=dict(decoder=(1,))),
            r"unknown keys in taps: decoder; the keys are vae_encoder, unet",
        ),
        (dict(taps=dict()), "at least one"),
        (dict(taps=((), (), ())), "at least one"),
        (dict(steps=()), "at least one"),
        (dict(steps=(0, 1000)), "at most 999"),
        (dict(arch="sd_v9"), r"unknown diffusion architecture 'sd_v9': use one of \['sd_v1'"),
    ],
)
def test_invalid_arguments_raise(options: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        DiffusionBackbone(**{"arch": "tiny", **options})


def test_tile_size_must_be_a_multiple_of_the_divisor(folder: Path) -> None:
    backbone = DiffusionBackbone("tiny", str(folder), PAPER)
    assert backbone.divisor == 64
    with pytest.raises(ValueError, match="tiles of 96 x 96 pixels: .* multiples of 64.*tile_size"):
        backbone(tiles(96))


def test_architectures_by_name_fields_or_object() -> None:
    tiny = get_arch("tiny")
    fields = dict(unet=tiny.unet, vae=tiny.vae, text=tiny.text)
    assert get_arch(fields) == tiny == get_arch(tiny)


def test_the_vae_alone_is_channels_last() -> None:
    taps = dict(vae_encoder=(1,), unet=(2,), vae_decoder=(2,))
    model = DiffusionBackbone(arch="tiny", taps=taps)
    layout = torch.channels_last
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        model.cast(dtype)
        with torch.no_grad():
            encoder, unet, decoder = model(tiles(count=1))
        assert unet.is_contiguous() and unet.dtype == dtype
        assert encoder.is_contiguous(memory_format=layout)
        assert decoder.is_contiguous(memory_format=layout)


def test_accurate_group_norm() -> None:
    norm = nn.GroupNorm(4, 8, eps=1e-3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    maps = 3 + torch.randn(2, 8, 130, 131).mul(torch.arange(1, 9)[:, None, None])
    last = maps.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        exact = norm.double()(maps.double())
        found = accurate_group_norm(norm.float(), last)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=3e-6)


def test_frozen_resnets_equal_those_of_diffusers() -> None:
    torch.manual_seed(0)
    plain = ResnetBlock2D(in_channels=32, out_channels=64, temb_channels=16, groups=8).eval()
    frozen = deepcopy(plain)
    use_frozen_blocks(frozen)
    assert type(frozen) is FrozenResnet
    maps, time = torch.randn(1, 32, 66, 66), torch.randn(1, 16)
    before = maps.clone(), time.clone()
    with torch.no_grad():
        expected = plain(maps, time)
        torch.testing.assert_close(frozen(maps, time), expected)
        last = maps.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(frozen(last, time), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert_close = torch.testing.assert_close
            assert_close(frozen(maps, time).float(), plain(maps, time).float(), rtol=0, atol=0.05)
    assert torch.equal(maps, before[0]) and torch.equal(time, before[1])
    small, both = maps[..., :8, :8], maps[..., :16, :16].repeat(2, 1, 1, 1)
    assert [type(conv) for conv in (frozen.conv1, frozen.conv2)] == [FrozenConv, FrozenConv]
    with torch.no_grad():
        for some in (small, both):
            torch.testing.assert_close(frozen(some, time), plain(some, time))
    maps.requires_grad_()
    frozen(maps, time).sum().backward()
    assert maps.grad is not None and maps.grad.abs().sum() > 0
