"""Features of CLIP's image towers, compared with open_clip."""

from __future__ import annotations

import copy
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transformer import VisionTransformer
from safetensors.torch import save_file
from timm.models.beit import Beit
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, Normalize
from torchvision.transforms.functional import resize

from odise_mm.errors import CheckpointError, ImageError
from odise_mm.models import FrozenCLIP, OpenCLIPBackbone
from tests.support import tiny_timm  # noqa: F401 (registers models)
from tests.support.parts import TINY_CLIP, clip, relative_error

TEXT = dict(width=32, heads=2, layers=1)


def config(**vision: object) -> dict:
    return dict(embed_dim=32, vision_cfg=vision, text_cfg=TEXT)


# name -> config, height and width of its images
VIT = dict(width=64, head_width=32, patch_size=14, image_size=56)
TOWERS = {
    "vit": (config(**VIT, layers=4), 56),
    "quick gelu": (dict(TINY_CLIP), 56),
    "mean of tokens": (config(**VIT, layers=3, pool_type="avg", final_ln_after_pool=True), 56),
    "convnext": (config(timm_model_name="test_convnext", image_size=96), 96),
    "resnet": (config(layers=(1, 1, 1, 2), width=32, image_size=64), 64),
    "timm's vit": (
        config(timm_model_name="test_vit", timm_pool="avg", image_size=160),
        160,
    ),
    "made for one size": (
        config(timm_model_name="tiny_beit", timm_pool="avg", image_size=64),
        64,
    ),
}
TOLERANCE = 1e-5
BEIT_CHANGES = pytest.mark.skipif(
    not hasattr(Beit, "set_input_size"), reason="timm before 1.0.31 cannot resize BEiT"
)


def images(*size: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(size[0]))


def normalized(batch: Tensor) -> Tensor:
    return Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)(batch)


@pytest.fixture(scope="module")
def whole() -> dict[str, nn.Module]:
    """Complete open_clip models."""
    models = {}
    generator = torch.Generator().manual_seed(3)
    for name, (cfg, _) in TOWERS.items():
        models[name] = open_clip.CLIP(**cfg).eval()
        with torch.no_grad():
            for parameter in models[name].visual.parameters():
                parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    return models


@pytest.fixture(scope="module")
def files(whole: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clip")
    paths = {name: folder / f"{i}.safetensors" for i, name in enumerate(whole)}
    for name, path in paths.items():
        state = {k: v.clone() for k, v in whole[name].state_dict().items()}
        save_file(state, path)
    return paths


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("indices", [None, (0, 1), (-3, -2)])
def test_features_are_those_of_open_clips_whole_tower(
    name: str, indices: tuple[int, ...] | None, whole: dict, files: dict
) -> None:
    cfg, size = TOWERS[name]
    if name == "quick gelu" and indices == (-3, -2):
        indices = (-2,)  # it has two blocks
    backbone = OpenCLIPBackbone(cfg, str(files[name]), out_indices=indices)
    batch = images(size, size)
    taken = sorted(set(backbone.out_indices))
    with torch.no_grad():
        maps = backbone(batch)
        wanted = whole[name].visual.forward_intermediates(
            normalized(batch), taken, stop_early=True, intermediates_only=True
        )["image_intermediates"]
    assert len(maps) == len(indices or range(4))
    for i, ours in enumerate(maps):
        theirs = wanted[taken.index(backbone.out_indices[i])]
        assert relative_error(ours, theirs) < TOLERANCE
        assert ours.shape[1] == backbone.channels[i]
        assert ours.shape[-1] * backbone.strides[i] == size


@pytest.mark.parametrize("name", TOWERS)
def test_last_features_pooled_are_open_clips_encode_image(
    name: str, whole: dict, files: dict
) -> None:
    cfg, size = TOWERS[name]
    backbone = OpenCLIPBackbone(cfg, str(files[name]))
    batch = images(size, size, count=3)
    with torch.no_grad():
        wanted = whole[name].encode_image(normalized(batch))
        assert relative_error(backbone.embed(batch), wanted) < TOLERANCE


def test_last_map_excludes_the_class_token(whole: dict, files: dict) -> None:
    """open_clip's last norm and projection of the class token give the embedding."""
    backbone = OpenCLIPBackbone(TOWERS["vit"][0], str(files["vit"]))
    seen: list[Tensor] = []
    backbone.tower.transformer.resblocks[-1].register_forward_hook(lambda *a: seen.append(a[2]))
    batch = images(56, 56)
    with torch.no_grad():
        last = backbone(batch)[-1]
        visual = whole["vit"].visual
        wanted = whole["vit"].encode_image(normalized(batch))
        assert torch.equal(seen[0][:, 1:], last.flatten(2).transpose(1, 2))
        assert relative_error(visual.ln_post(seen[0][:, 0]) @ visual.proj, wanted) < TOLERANCE


def test_convnext_is_timms_trunk(whole: dict, files: dict) -> None:
    backbone = OpenCLIPBackbone(TOWERS["convnext"][0], str(files["convnext"]))
    batch = images(64, 128)
    trunk = whole["convnext"].visual.trunk
    with torch.no_grad():
        wanted = trunk.forward_intermediates(normalized(batch), intermediates_only=True)
        for ours, theirs in zip(backbone(batch), wanted, strict=True):
            assert relative_error(ours, theirs) < TOLERANCE


def test_other_sizes_interpolate_positions(whole: dict, files: dict) -> None:
    """The result equals open_clip's when it loads a file into a tower of another size."""
    from open_clip.model import resize_pos_embed

    cfg, _ = TOWERS["vit"]
    backbone = OpenCLIPBackbone(cfg, str(files["vit"]))
    other = open_clip.CLIP(**{**cfg, "vision_cfg": {**cfg["vision_cfg"], "image_size": (84, 84)}})
    state = whole["vit"].state_dict()
    resize_pos_embed(state, other)
    other.load_state_dict(state)
    batch = images(84, 84)
    with torch.no_grad():
        wanted = other.eval().visual.forward_intermediates(
            normalized(batch), [0, 1, 2, 3], intermediates_only=True
        )["image_intermediates"]
        for ours, theirs in zip(backbone(batch), wanted, strict=True):
            assert relative_error(ours, theirs) < 1e-4
        embedding = other.encode_image(normalized(batch))
        assert relative_error(backbone.embed(batch), embedding) < 1e-4


@pytest.mark.parametrize(
    ("name", "size", "fixed", "target"),
    [
        ("vit", (75, 50), None, (84, 56)),
        ("vit", (75, 50), 56, (56, 56)),
        ("convnext", (75, 50), None, (96, 64)),
        ("resnet", (75, 50), None, (96, 64)),
        ("made for one size", (75, 50), None, (64, 64)),
        pytest.param("made for one size", (75, 50), 96, (96, 96), marks=BEIT_CHANGES),
        ("timm's vit", (75, 50), 64, (64, 64)),
    ],
)
def test_tiles_are_resized_to_what_the_tower_takes(
    name: str, size: tuple, fixed: int | None, target: tuple, files: dict
) -> None:
    cfg, _ = TOWERS[name]
    backbone = OpenCLIPBackbone(cfg, str(files[name]), image_size=fixed)
    batch = images(*size)
    with torch.no_grad():
        resized = resize(batch, list(target), InterpolationMode.BICUBIC, antialias=True)
        for ours, theirs in zip(backbone(batch), backbone(resized), strict=True):
            assert relative_error(ours, theirs) < TOLERANCE
            assert ours.shape[-2] / ours.shape[-1] == target[0] / target[1]


def test_size_that_timm_does_not_support_raises(
    files: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Beit, "set_input_size", raising=False)  # as in timm before 1.0.31
    cfg, _ = TOWERS["made for one size"]
    with pytest.raises(ValueError, match="image_size=96, but timm .* of its Beit: remove image_"):
        OpenCLIPBackbone(cfg, str(files["made for one size"]), image_size=96)


def test_trunk_of_another_size_equals_timms(files: dict, whole: dict) -> None:
    backbone = OpenCLIPBackbone(
        TOWERS["timm's vit"][0], str(files["timm's vit"]), image_size=96, out_indices=(0, 5)
    )
    trunk = copy.deepcopy(whole["timm's vit"].visual.trunk)
    trunk.set_input_size(96)
    batch = images(96, 96)
    with torch.no_grad():
        wanted = trunk.forward_intermediates(normalized(batch), [0, 5], intermediates_only=True)
        for ours, theirs in zip(backbone(batch), wanted, strict=True):
            assert relative_error(ours, theirs) < TOLERANCE


# --- the CLIP of the segmentor


class Owner(nn.Module):
    """Has a CLIP that it shares with its backbone, like a segmentor."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = FrozenCLIP(TINY_CLIP)
        self.backbone = OpenCLIPBackbone(clip=self.clip)


def test_shared_tower_exists_once() -> None:
    owner = Owner()
    own = OpenCLIPBackbone(TINY_CLIP)  # the same random weights
    assert list(owner.backbone.parameters()) == [] and owner.backbone.frozen
    assert owner.backbone.tower is owner.clip.visual
    names = [name for name, _ in owner.named_modules() if name.endswith("transformer")]
    assert all(name.startswith("clip.") for name in names)
    assert owner.state_dict() == {}
    own.own_tower.load_state_dict(owner.clip.visual.state_dict())
    with torch.no_grad():
        for provided, alone in zip(
            owner.backbone(images(70, 42)), own(images(70, 42)), strict=True
        ):
            # Linear layers of a frozen CLIP are computed by another kernel.
            assert relative_error(provided, alone) < TOLERANCE
        wanted = owner.clip.encode_image(images(56, 56))
        assert relative_error(owner.backbone.embed(images(56, 56)), wanted) < TOLERANCE


def test_shared_tower_is_not_changed() -> None:
    owner = Owner()
    before = owner.clip.encode_image(images(56, 56))
    early = OpenCLIPBackbone(clip=owner.clip, out_indices=(0,))
    early(images(70, 70))
    assert len(owner.clip.visual.transformer.resblocks) == 2
    assert torch.equal(owner.clip.encode_image(images(56, 56)), before)


@pytest.mark.parametrize("name", ["resnet", "convnext", "timm's vit"])
def test_shared_tower_of_any_kind(name: str) -> None:
    cfg, size = TOWERS[name]
    owner = FrozenCLIP(cfg)
    backbone = OpenCLIPBackbone(clip=owner)
    with torch.no_grad():
        wanted = owner.encode_image(images(size, size))
        assert relative_error(backbone.embed(images(size, size)), wanted) < TOLERANCE
        owner.cast(torch.bfloat16)
        assert {m.dtype for m in backbone(images(size, size))} == {torch.bfloat16}
        rounded = owner.encode_image(images(size, size))
    assert rounded.dtype == torch.float32 and relative_error(rounded, wanted) < 0.1


def test_shared_tower_keeps_its_size() -> None:
    owner = FrozenCLIP(TOWERS["made for one size"][0])
    with pytest.raises(ValueError, match="image_size=96, but .* fixed size of 64 pixels.*set `mo"):
        OpenCLIPBackbone(clip=owner, image_size=96)
    assert owner.image_size == 64 and OpenCLIPBackbone(clip=owner).image_size == 64


def test_shared_tower_is_cast_and_moved_by_its_owner() -> None:
    owner = Owner()
    exact = [m.detach() for m in owner.backbone(images(56, 56))]
    owner.backbone.cast(torch.bfloat16)
    assert owner.clip.dtype == torch.float32, "its owner casts it"
    owner.clip.cast(torch.bfloat16)
    assert owner.backbone.dtype == torch.bfloat16
    assert owner.clip.model.logit_scale.dtype == torch.float32
    for a, b in zip(exact, owner.backbone(images(56, 56)), strict=True):
        assert b.dtype == torch.bfloat16
        assert (a - b.float()).square().mean().sqrt() < 0.05 * a.std()
    twin = copy.deepcopy(owner)
    assert twin.backbone.tower is twin.clip.visual is not owner.clip.visual
    moved = owner.to("meta")
    assert moved.backbone(images(56, 56).to("meta"))[0].is_meta


# --- weights


def test_only_the_tower_is_built_and_kept(files: dict) -> None:
    backbone = OpenCLIPBackbone(TOWERS["vit"][0], str(files["vit"]))
    assert isinstance(backbone.tower, VisionTransformer)
    assert not any(isinstance(layer, nn.Embedding) for layer in backbone.modules())
    assert backbone.state_dict() == {}


@pytest.mark.parametrize("name", ["vit", "convnext", "resnet"])
def test_every_layer_that_is_built_is_needed(name: str) -> None:
    cfg, size = TOWERS[name]
    backbone = OpenCLIPBackbone(cfg, out_indices=(1,))
    called: set[str] = set()
    layers = {
        path: layer
        for path, layer in backbone.named_modules()
        if next(layer.parameters(recurse=False), None) is not None
    }
    for path, layer in layers.items():
        layer.register_forward_hook(lambda *_, path=path: called.add(path))
    backbone(images(size, size))
    # modules whose parameters are read without calling them
    rest = set(layers) - called
    assert all(path == "own_tower" or path.endswith("attn.out_proj") for path in rest)


def test_full_size_towers_are_known_without_memory_or_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("download")

    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    wanted = {
        ("ViT-H-14", "laion2b_s32b_b79k"): ((1280,) * 4, (14,) * 4, (7, 15, 23, 31)),
        ("convnext_xxlarge", "laion2b_s34b_b82k_augreg_soup"): (
            (384, 768, 1536, 3072),
            (4, 8, 16, 32),
            (0, 1, 2, 3),
        ),
        ("RN50", "openai"): ((256, 512, 1024, 2048), (4, 8, 16, 32), (1, 2, 3, 4)),
    }
    for (model, tag), (channels, strides, indices) in wanted.items():
        with torch.device("meta"):
            backbone = OpenCLIPBackbone(model, tag)
            whole = open_clip.CLIP(**open_clip.get_model_config(model)).visual
        assert (backbone.channels, backbone.strides) == (channels, strides)
        assert backbone.out_indices == indices
        count = sum(p.numel() for p in whole.parameters())
        assert sum(p.numel() for p in backbone.parameters()) == count
        assert all(p.is_meta for p in backbone.parameters())


def test_tag_decides_on_activation_and_normalization(
    monkeypatch: pytest.MonkeyPatch, files: dict
) -> None:
    cfg = dict(TINY_CLIP, quick_gelu=False)
    tag = {"quick_gelu": True, "mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3), "url": "x"}
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: dict(cfg))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: tag)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: str(files["quick gelu"]))
    backbone = OpenCLIPBackbone("ViT-B-32", "openai")
    torch.testing.assert_close(backbone.mean.flatten(), torch.tensor(tag["mean"]))
    torch.testing.assert_close(backbone.std.flatten(), torch.tensor(tag["std"]))
    assert any(type(layer).__name__ == "QuickGELU" for layer in backbone.modules())


def test_timms_own_weights_are_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(timm_model_name="test_convnext", timm_model_pretrained=True, image_size=96)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("download")

    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    OpenCLIPBackbone(cfg)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual.proj"), "1 missing .*proj"),
        (lambda s: s.update({"visual.extra": torch.zeros(1)}), "1 unknown .*extra"),
        (lambda s: s.update({"visual.proj": torch.zeros(2, 2)}), "1 of another shape .*proj"),
        (
            lambda s: [s.pop(k) for k in list(s) if k.startswith("visual.")],
            "missing .*class_embedding",
        ),
    ],
)
def test_files_of_other_models(change, message: str, whole: dict, tmp_path: Path) -> None:
    state = {k: v.clone() for k, v in whole["vit"].state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "clip.pt")
    pattern = f"clip.pt does not contain weights of the image tower of CLIP .*{message}"
    with pytest.raises(CheckpointError, match=pattern):
        OpenCLIPBackbone(TOWERS["vit"][0], str(tmp_path / "clip.pt"))


def test_failed_download_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: dict) -> str:
        raise OSError("Name or service not known\nmore")

    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    message = (
        "ViT-H-14 laion2b_s32b_b79k is not on this machine .*download open_clip_model.safetensors "
        "from https://huggingface.co/laion/CLIP-ViT-H-14-laion2B-s32B-b79K on another .*`weights`"
    )
    with pytest.raises(CheckpointError, match=message) as caught:
        OpenCLIPBackbone("ViT-H-14", "laion2b_s32b_b79k")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(), "needs a `model` of open_clip, or a segmentor with a `clip`"),
        (dict(weights="openai", clip=True), "weights='openai' without a model.*remove `weights`"),
        (dict(model="ViT-H-41"), "no architecture 'ViT-H-41'; did you mean .*ViT-H-14"),
        (
            dict(model="ViT-H-14", weights="laion2b_s32b_b79"),
            "laion2b_s32b_b79' is neither a file nor .*; did you mean laion2b_s32b_b79k",
        ),
        (dict(model=dict(embed_dim=8)), "config of a CLIP lacks 'vision_cfg'"),
        (
            dict(model=TINY_CLIP, out_indices=(2,)),
            "contains 2, but .* has blocks 0 to 1 with stride",
        ),
        (dict(clip=True, out_indices=(-3,)), "contains -3, but .* has blocks 0 to 1"),
        (
            dict(model=TOWERS["convnext"][0], out_indices=(4,)),
            "has levels 0 to 3 with strides 4, 8",
        ),
        (
            dict(model=config(timm_model_name="test_convnet", image_size=96)),
            "timm has no model 'test_convnet'; did you mean test_convnext",
        ),
        (dict(model=TINY_CLIP, image_size=0), "image_size=0 must be at least 1 pixel"),
        (
            dict(model=TINY_CLIP, image_size=50),
            "image_size=50 must be a multiple of the patch size, 14 pixels",
        ),
    ],
)
def test_invalid_arguments_raise(options: dict, message: str) -> None:
    if options.get("clip"):
        options = {**options, "clip": clip()}
    with pytest.raises(ValueError, match=message):
        OpenCLIPBackbone(**options)


def test_missing_file() -> None:
    with pytest.raises(CheckpointError, match="no weights file nowhere/clip.pt"):
        OpenCLIPBackbone(TINY_CLIP, "nowhere/clip.pt")
    with torch.device("meta"):
        OpenCLIPBackbone(TINY_CLIP, "nowhere/clip.pt")


def test_tiles_smaller_than_a_patch() -> None:
    with pytest.raises(ImageError, match="tiles of 13 x 60 pixels .* one patch .* 14 pixels"):
        OpenCLIPBackbone(TINY_CLIP)(images(13, 60))


def test_no_embedding_without_the_last_block() -> None:
    backbone = OpenCLIPBackbone(TINY_CLIP, out_indices=(0,))
    with pytest.raises(
        ValueError, match=r"need the last block of the tower, which out_indices=\(0,\) does not"
    ):
        backbone.embed(images(56, 56))


def test_random_weights_are_reproducible_and_leave_the_generator_unchanged(files: dict) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = OpenCLIPBackbone(TINY_CLIP).tower.state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    two = OpenCLIPBackbone(TINY_CLIP).tower.state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    torch.manual_seed(1)
    for name in ("vit", "timm's vit"):
        OpenCLIPBackbone(TOWERS[name][0], str(files[name]))
        assert torch.equal(before, torch.get_rng_state()), name
