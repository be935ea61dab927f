"""Interface of backbones, tested for all registered ones.

Add new backbones to ``CASES``; a test fails if a registered one is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from odise_mm.config.building import build_part
from odise_mm.models import FeatureProjection, FrozenCLIP
from odise_mm.models.backbones.base import Backbone
from odise_mm.registry import MODELS
from tests.support import tiny_timm  # noqa: F401 (registers models)
from tests.support.parts import TINY_CLIP, relative_error

VIT_LEVELS = (4, 8, 16, 32)


class Case(NamedTuple):
    """Small backbone to test.

    Attributes:
        cfg: config of the backbone, without weights.
        size: height and width in pixels of tiles that are not resized.
        odd: height and width of tiles that are not multiples of any stride. None: they raise.
        levels: levels of the neck. None: the strides of the backbone.
    """

    cfg: dict[str, Any]
    size: int
    odd: tuple[int, int] | None = (75, 50)
    levels: Sequence[int] | None = None


def timm(model: str, size: int = 64, plain: bool = True, **options: Any) -> Case:
    cfg = dict(type="TimmBackbone", model=model, **options)
    return Case(cfg, size, levels=VIT_LEVELS if plain else None)


def open_clip(size: int, plain: bool = True, **vision: Any) -> Case:
    model = dict(embed_dim=32, vision_cfg=vision, text_cfg=dict(width=32, heads=2, layers=1))
    cfg = dict(type="OpenCLIPBackbone", model=model)
    return Case(cfg, size, levels=VIT_LEVELS if plain else None)


def diffusion(**options: Any) -> Case:
    """Return a case of the diffusion backbone, whose tiles must be multiples of 64 pixels."""
    return Case({"type": "DiffusionBackbone", "arch": "tiny", **options}, 64, odd=None)


def dit(**options: Any) -> Case:
    """Return a case of the diffusion transformers, whose tiles must be multiples of 16 pixels."""
    return Case({"type": "DiTBackbone", **options}, 64, odd=None, levels=VIT_LEVELS)


VIT = dict(width=64, head_width=32, patch_size=14, image_size=56, layers=4)
CASES: dict[str, Case] = {
    "timm, ViT": timm("test_vit"),
    "timm, ViT with registers": timm("test_vit3", out_indices=(0, 0, 3, -1)),
    "timm, ViT of one size": timm("test_vit", 96, image_size=96),
    "timm, EVA": timm("eva02_tiny_patch14_224", 56),
    "timm, BEiT": timm("tiny_beit"),
    "timm, ConvNeXt": timm("test_convnext", plain=False),
    "timm, ResNet": timm("test_resnet", plain=False),
    "timm, Swin": timm("tiny_swin", plain=False),
    "timm, MViT-v2": timm("tiny_mvit", plain=False),
    "timm, Hiera": timm("tiny_hiera", plain=False),
    "timm, SAM": timm("tiny_sam"),
    "timm, trained": timm("test_vit", frozen=False),
    "open_clip, ViT": open_clip(56, **VIT),
    "open_clip, shared": Case(dict(type="OpenCLIPBackbone"), 56, levels=VIT_LEVELS),
    "open_clip, ConvNeXt": open_clip(96, False, timm_model_name="test_convnext", image_size=96),
    "open_clip, ResNet": open_clip(64, False, layers=(1, 1, 1, 1), width=32, image_size=64),
    "open_clip, timm's ViT": open_clip(160, timm_model_name="test_vit", image_size=160),
    "diffusion": diffusion(),
    "diffusion, steps": diffusion(steps=(0, 200)),
    "diffusion, SDXL": diffusion(
        arch="tiny_sdxl", taps=dict(vae_encoder=(5, 7), unet=(2, 5, 8), vae_decoder=(2, 5))
    ),
    # Without the decoder: a rounded latent may have a different nearest code.
    "diffusion, LDM": diffusion(arch="tiny_ldm", taps=dict(vae_encoder=(5,), unet=(2, 5, 8, 11))),
    "transformer, SD3": dit(arch="tiny_sd3", taps=(0, 1, 2, 3), steps=(0, 300)),
    "transformer, FLUX": dit(arch="tiny_flux", taps=(0, 1, 2, 4)),
    "transformer, PixArt": dit(arch="tiny_pixart", taps=(0, 1, 2, 3), modulate=False),
}
sweep = pytest.mark.parametrize("name", CASES)


class Parts(nn.Module):
    """Backbone, neck, and a CLIP that the backbone may share, as in a segmentor."""

    def __init__(self, case: Case, **changes: Any) -> None:
        super().__init__()
        self.clip = FrozenCLIP(TINY_CLIP)
        self.backbone = build_part({**case.cfg, **changes}, MODELS, clip=self.clip)
        described = self.backbone.describe()
        self.neck = FeatureProjection(
            described["in_channels"], described["in_strides"], 32, 32, levels=case.levels
        )

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        return self.neck(self.backbone(tiles), tuple(-(-s // 32) * 32 for s in tiles.shape[-2:]))


@lru_cache
def parts(name: str) -> Parts:
    """Return the parts of a case, which tests must not change."""
    torch.manual_seed(0)
    return Parts(CASES[name]).eval()


def tiles(*size: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(size[0]))


def test_every_registered_backbone_is_swept() -> None:
    ours = {
        name
        for name, part in MODELS.module_dict.items()
        if isinstance(part, type)
        and issubclass(part, Backbone)
        and part.__module__.startswith("odise_mm.")
    }
    assert {"DiffusionBackbone", "DiTBackbone", "TimmBackbone", "OpenCLIPBackbone"} <= ours
    assert {case.cfg["type"] for case in CASES.values()} == ours


@sweep
def test_declared_channels_and_strides_are_the_real_ones(name: str) -> None:
    backbone, size = parts(name).backbone, CASES[name].size
    assert isinstance(backbone, Backbone)
    with torch.no_grad():
        maps = backbone(tiles(size, size))
    assert isinstance(maps, list)
    assert [m.shape[1] for m in maps] == list(backbone.channels)
    real = [size // m.shape[-1] for m in maps]
    assert [min(stride, 32) for stride in real] == list(backbone.strides)
    assert all(m.shape[-1] == m.shape[-2] and len(m) == 2 for m in maps)
    assert all(torch.isfinite(m).all() and m.std() > 0 for m in maps)
    described = backbone.describe()
    assert described["in_channels"] == backbone.channels
    assert described["in_strides"] == backbone.strides


@sweep
def test_odd_sizes(name: str) -> None:
    model, odd = parts(name), CASES[name].odd
    if odd is None:
        with pytest.raises(ValueError, match="tiles of 65 x 66"):
            model.backbone(tiles(65, 66))
        return
    with torch.no_grad():
        maps = model.backbone(tiles(*odd))
        pyramid = model(tiles(*odd))
    fixed = getattr(model.backbone, "image_size", None)
    for m, stride in zip(maps, model.backbone.strides, strict=True):
        for edge, pixels in zip(m.shape[-2:], (fixed, fixed) if fixed else odd, strict=True):
            assert pixels <= edge * stride < pixels + 32
    assert [m.shape[-2:] for m in pyramid] == [(96 // s, 64 // s) for s in VIT_LEVELS]


@sweep
def test_two_tiles_are_as_one_and_one(name: str) -> None:
    size = CASES[name].size
    pair = tiles(size, 2 * size)
    with torch.no_grad():
        together = parts(name).backbone(pair)
        alone = [parts(name).backbone(tile[None]) for tile in pair]
    for i, both in enumerate(together):
        single = torch.cat([maps[i] for maps in alone])
        assert relative_error(both, single) < 1e-3
        assert relative_error(both[:1], both[1:]) > 1e-2, "different tiles give different maps"


@sweep
def test_gradients(name: str) -> None:
    model = deepcopy(parts(name)).train()
    size = CASES[name].size
    pyramid = model(tiles(size, size))
    sum((level * tiles(*level.shape[-2:])[:, :1]).mean() for level in pyramid).backward()
    if model.backbone.frozen:
        assert not any(p.requires_grad or p.grad is not None for p in model.backbone.parameters())
        assert not any(part.training for part in model.backbone.modules())
    else:
        assert all(p.grad is not None for p in model.backbone.parameters())
    assert all(p.grad is None for p in model.clip.parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.neck.parameters())


@sweep
def test_save_and_load(name: str) -> None:
    model = deepcopy(parts(name))
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter += torch.randn_like(parameter) * 0.1
    state = model.state_dict()
    kept = {key.partition(".")[0] for key in state}
    assert kept == ({"neck"} if model.backbone.frozen else {"neck", "backbone"})
    other = Parts(CASES[name]).eval()
    other.load_state_dict(state)
    size = CASES[name].size
    with torch.no_grad():
        for a, b in zip(model(tiles(size, size)), other(tiles(size, size)), strict=True):
            assert torch.equal(a, b)


def rough(value: Tensor, exact: Tensor) -> float:
    """Return the root mean square of the difference, relative to that of ``exact``."""
    return float((value.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt())


@sweep
def test_autocast(name: str) -> None:
    model, size = parts(name), CASES[name].size
    with torch.no_grad():
        exact = model.backbone(tiles(size, size))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model.backbone(tiles(size, size))
            pyramid = model(tiles(size, size))
    assert all(0 < rough(b, a) < 0.1 for a, b in zip(exact, rounded, strict=True))
    assert all(torch.isfinite(level).all() for level in pyramid)


@sweep
def test_weights_in_sixteen_bit(name: str) -> None:
    model = deepcopy(parts(name))
    size = CASES[name].size
    with torch.no_grad():
        exact = model.backbone(tiles(size, size))
        for part in (model.clip, model.backbone):
            part.cast(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model.backbone(tiles(size, size))
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.bfloat16 or not model.backbone.frozen
        assert rough(b, a) < 0.1


@sweep
def test_builds_and_runs_without_weights_or_memory(name: str) -> None:
    case = CASES[name]
    real = parts(name).backbone
    changes = {} if name == "open_clip, shared" else {"weights": "nowhere/weights.safetensors"}
    with torch.device("meta"):
        planned = Parts(case, **changes)
    assert planned.backbone.channels == real.channels
    assert planned.backbone.strides == real.strides
    assert all(p.is_meta for p in planned.parameters())
    counts = [sum(p.numel() for p in b.parameters()) for b in (planned.backbone, real)]
    assert counts[0] == counts[1]
    batch = tiles(case.size, 2 * case.size)
    with torch.no_grad():
        shapes = [m.shape for m in planned.to("meta").backbone(batch.to("meta"))]
        assert shapes == [m.shape for m in real(batch)]
