"""Features of timm models, compared with timm's, with weights that timm loads itself."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, Normalize
from torchvision.transforms.functional import resize

from odise_mm.checkpoints.safe_loading import load_state_dict
from odise_mm.errors import CheckpointError, ImageError
from odise_mm.models import FeatureProjection, TimmBackbone
from odise_mm.models.backbones import timm_weights
from odise_mm.models.backbones.timm_backbone import choose_levels
from tests.support import tiny_timm
from tests.support.parts import relative_error

# name -> height and width of the images that the model supports
MODELS = {
    "test_vit": 160,
    "test_vit3": 160,  # registers, and no class token
    "test_convnext": 96,
    "test_resnet": 96,
    "eva02_tiny_patch14_224": 224,
    "tiny_swin": tiny_timm.SIZE,
    "tiny_mvit": tiny_timm.SIZE,
    "tiny_beit": tiny_timm.SIZE,
    "tiny_relpos": tiny_timm.SIZE,
    "tiny_sam": tiny_timm.SIZE,
    "tiny_hiera": tiny_timm.SIZE,
}
TOLERANCE = 1e-5


def images(*size: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(size[0]))


def normalized(name: str, batch: Tensor) -> Tensor:
    cfg = timm.get_pretrained_cfg(name)
    return Normalize(cfg.mean, cfg.std)(batch)


def shake(model: nn.Module) -> nn.Module:
    """Change all values, including those that are initialized to 0 or 1."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                value += noise.abs() * 0.2 if key.endswith("running_var") else noise * 0.1
    return model.eval()


@pytest.fixture(scope="module")
def whole() -> dict[str, nn.Module]:
    """Complete timm models, including classifiers."""
    return {name: shake(timm.create_model(name)) for name in MODELS}


@pytest.fixture(scope="module")
def files(whole: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("timm")
    for name, model in whole.items():
        save_file(model.state_dict(), folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in whole}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("indices", [None, (0, 2), (-4, -2)])
def test_features_are_those_of_timms_whole_model(
    name: str, indices: tuple[int, ...] | None, whole: dict, files: dict
) -> None:
    backbone = TimmBackbone(name, str(files[name]), indices)
    batch = images(MODELS[name], MODELS[name])
    reference = whole[name]
    with torch.no_grad():
        maps = backbone(batch)
        wanted = reference.forward_intermediates(
            normalized(name, batch),
            indices=list(backbone.out_indices),
            intermediates_only=True,
        )
    assert len(maps) == len(wanted) == len(backbone.channels) == len(indices or range(4))
    for ours, theirs, channels, stride in zip(
        maps, wanted, backbone.channels, backbone.strides, strict=True
    ):
        assert relative_error(ours, theirs) < TOLERANCE
        assert ours.shape[1] == channels and ours.shape[-1] * stride == MODELS[name]


@pytest.mark.parametrize(
    ("name", "size", "fixed"),
    [
        ("test_vit", (96, 64), None),
        ("test_vit3", (64, 208), None),
        ("eva02_tiny_patch14_224", (70, 42), None),
        ("tiny_swin", (128, 256), None),
        ("test_vit", (96, 96), 96),
        ("tiny_swin", (128, 128), 128),
        ("tiny_mvit", (96, 96), 96),
        ("tiny_beit", (96, 96), 96),
    ],
)
def test_other_sizes_equal_timm_models_built_for_them(
    name: str, size: tuple[int, int], fixed: int | None, files: dict
) -> None:
    """timm interpolates the position embeddings to the size that the model is built for."""
    backbone = TimmBackbone(name, str(files[name]), image_size=fixed)
    file = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(files[name])))
    reference = timm.create_model(name, img_size=size, **file).eval()
    batch = images(*size)
    with torch.no_grad():
        maps = backbone(batch)
        wanted = reference.forward_intermediates(
            normalized(name, batch), list(backbone.out_indices), intermediates_only=True
        )
    for ours, theirs in zip(maps, wanted, strict=True):
        assert relative_error(ours, theirs) < 1e-4


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (32, 48)])
def test_sam_takes_any_size_with_weights_of_one(
    size: tuple[int, int], whole: dict, files: dict
) -> None:
    """timm's model itself interpolates absolute and relative positions."""
    backbone = TimmBackbone("tiny_sam", str(files["tiny_sam"]))
    fixed = TimmBackbone("tiny_sam", str(files["tiny_sam"]), image_size=96)
    assert backbone.image_size is None
    batch = images(*size)
    with torch.no_grad():
        maps = backbone(batch)
        wanted = whole["tiny_sam"].forward_intermediates(
            normalized("tiny_sam", batch), intermediates_only=True
        )
        assert [m.shape for m in fixed(batch)] == [(2, 32, 6, 6)] * 4
    for ours, theirs in zip(maps, wanted, strict=True):
        assert relative_error(ours, theirs) < TOLERANCE
        assert ours.shape[-2:] == (size[0] // 16, size[1] // 16)


@pytest.mark.parametrize(
    ("name", "size", "fixed", "target"),
    [
        ("test_vit", (75, 50), None, (80, 64)),
        ("eva02_tiny_patch14_224", (33, 28), None, (42, 28)),
        ("test_convnext", (75, 50), None, (96, 64)),
        ("tiny_beit", (75, 50), None, (64, 64)),
        ("test_convnext", (75, 50), 64, (64, 64)),
    ],
)
def test_tiles_are_resized_to_what_the_model_takes(
    name: str, size: tuple, fixed: int | None, target: tuple, files: dict
) -> None:
    backbone = TimmBackbone(name, str(files[name]), image_size=fixed)
    batch = images(*size)
    with torch.no_grad():
        resized = resize(batch, list(target), InterpolationMode.BICUBIC, antialias=True)
        for ours, theirs in zip(backbone(batch), backbone(resized), strict=True):
            assert relative_error(ours, theirs) < TOLERANCE
            assert ours.shape[-2] / ours.shape[-1] == target[0] / target[1]


@pytest.mark.parametrize(
    ("strides", "chosen"),
    [
        ([16] * 12, (2, 5, 8, 11)),
        ([16] * 6, (1, 2, 4, 5)),
        ([14] * 40, (9, 19, 29, 39)),
        ([16] * 2, (0, 0, 1, 1)),
        ([4, 8, 16, 32], (0, 1, 2, 3)),
        ([2, 4, 8, 16, 32, 64], (1, 2, 3, 4)),
        ([8, 16, 16, 16], (0, 3)),
    ],
)
def test_levels_by_default(strides: list[int], chosen: tuple[int, ...]) -> None:
    assert choose_levels([{"reduction": stride} for stride in strides], None, "x") == chosen


def test_full_size_models_are_known_without_memory_or_network() -> None:
    wanted = {
        "deit3_huge_patch14_224.fb_in22k_ft_in1k": ((1280,) * 4, (14,) * 4),
        "swin_large_patch4_window12_384.ms_in22k": ((192, 384, 768, 1536), (4, 8, 16, 32)),
        "convnext_xlarge.fb_in22k": ((256, 512, 1024, 2048), (4, 8, 16, 32)),
    }
    with torch.device("meta"):
        for name, (channels, strides) in wanted.items():
            backbone = TimmBackbone(name, "pretrained")
            assert backbone.channels == channels and backbone.strides == strides
            assert all(p.is_meta for p in backbone.parameters())
            # all of the network but its last norm
            whole = timm.create_model(name, num_classes=0)
            kept = {f"network.{key}" for key, _ in whole.named_parameters()}
            kept -= {
                f"network.{norm}.{k}" for norm in ("norm", "head.norm") for k in ("weight", "bias")
            }
            assert {key for key, _ in backbone.named_parameters()} == kept


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_that_is_built_is_needed(name: str) -> None:
    backbone = TimmBackbone(name, out_indices=(1,))
    called: set[str] = set()
    layers = {
        path: layer
        for path, layer in backbone.named_modules()
        if next(layer.parameters(recurse=False), None) is not None
    }
    for path, layer in layers.items():
        layer.register_forward_hook(lambda *_, path=path: called.add(path))
    backbone(images(MODELS[name], MODELS[name], count=1))
    # BEiT and EVA read these layers' weights without calling them
    assert all(path == "network" or path.endswith("attn.qkv") for path in set(layers) - called)
    whole = timm.create_model(name, num_classes=0)
    total = sum(p.numel() for p in whole.parameters())
    assert sum(p.numel() for p in backbone.parameters()) < 0.7 * total


# Differences of the original authors' files from timm's.
def mae(state: dict) -> dict:
    kept = {k: v for k, v in state.items() if not k.startswith("head")}
    return {"model": {**kept, "mask_token": torch.zeros(1), "decoder_embed.bias": torch.zeros(2)}}


def moco_v3(state: dict) -> dict:
    base = {f"module.base_encoder.{k}": v for k, v in state.items() if "head" not in k}
    base["module.base_encoder.head.0.weight"] = torch.zeros(3)
    other = {f"module.momentum_encoder.{k}": v + 1 for k, v in state.items()}
    return {"epoch": 300, "arch": "vit", "state_dict": {**other, **base}, "optimizer": {}}


def parallel(state: dict) -> dict:
    return {f"module.{k}": v for k, v in state.items()}


def swin_original(state: dict) -> dict:
    renamed = {"layers.0.blocks.1.attn_mask": torch.zeros(1)}
    for key, value in state.items():
        key = re.sub(r"layers.(\d).downs", lambda m: f"layers.{int(m[1]) - 1}.downs", key)
        renamed[key.replace("head.fc", "head")] = value
    return {"model": renamed}


def mvit_original(state: dict) -> dict:
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"stages\.(\d)\.blocks\.0", r"blocks.\1", key)
        renamed[key.replace("shortcut_proj_attn", "proj")] = value
    return {"model_state": renamed, "epoch": 1}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("test_vit", mae),
        ("test_vit", moco_v3),
        ("test_vit", parallel),
        ("tiny_swin", swin_original),
        ("tiny_mvit", mvit_original),
    ],
)
def test_original_files(name: str, form, whole: dict, files: dict, tmp_path: Path) -> None:
    torch.save(form(whole[name].state_dict()), tmp_path / "file.pth.tar")
    backbone = TimmBackbone(name, str(tmp_path / "file.pth.tar"))
    wanted = TimmBackbone(name, str(files[name])).network.state_dict()
    for key, value in backbone.network.state_dict().items():
        assert torch.equal(value, wanted[key]), key


def test_rules_of_a_variant_are_used(tmp_path: Path) -> None:
    """Only timm's rules for DeiT-v3 rename layer scale in its files."""
    model = shake(timm.create_model("deit3_small_patch16_224"))
    state = {
        re.sub(r"ls(\d)\.gamma", r"gamma_\1", key): value
        for key, value in model.state_dict().items()
    }
    assert "blocks.0.gamma_1" in state
    torch.save({"model": state}, tmp_path / "deit.pth")
    backbone = TimmBackbone("deit3_small_patch16_224", str(tmp_path / "deit.pth"), (0,))
    batch = images(64, 64, count=1)
    model.set_input_size(64)
    with torch.no_grad():
        batch = images(64, 64, count=1)
        wanted = model.forward_intermediates(
            normalized("deit3_small_patch16_224", batch), [0], intermediates_only=True
        )
        assert relative_error(backbone(batch)[0], wanted[0]) < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.attn.qkv.bias"), "1 missing .*blocks.1.attn.qkv.bias"),
        (lambda s: s.update({"blocks.0.ls1.gamma": torch.ones(64)}), "1 unknown .*ls1.gamma"),
        (lambda s: s.update({"reg_token": torch.ones(1, 4, 64)}), "1 unknown .*reg_token"),
        (
            lambda s: s.update({"norm_pre.weight": torch.ones(64)}),
            "1 unknown .*norm_pre.weight",
        ),
        (
            lambda s: s.update({"blocks.0.norm1.bias": torch.ones(3)}),
            r"1 of another shape .*\(3,\), not \(64,\)",
        ),
        (lambda s: s.update({"pos_embed": torch.ones(7)}), "timm's rules for such files failed"),
        (lambda s: s.clear() or s.update({"x": torch.ones(1)}), "missing .*1 unknown"),
    ],
)
def test_files_of_other_models(change, message: str, files: dict, tmp_path: Path) -> None:
    state = load_state_dict(files["test_vit"])
    change(state)
    torch.save(state, tmp_path / "vit.pth")
    pattern = f"vit.pth does not contain weights of timm's test_vit: .*{message}"
    with pytest.raises(CheckpointError, match=pattern):
        TimmBackbone("test_vit", str(tmp_path / "vit.pth"))


def test_unused_blocks_may_be_missing_in_files(files: dict, tmp_path: Path) -> None:
    state = load_state_dict(files["test_vit"])
    save_file({k: v for k, v in state.items() if "blocks.5" not in k}, tmp_path / "s.safetensors")
    TimmBackbone("test_vit", str(tmp_path / "s.safetensors"), (0, 4))
    with pytest.raises(CheckpointError, match="12 missing .*blocks.5"):
        TimmBackbone("test_vit", str(tmp_path / "s.safetensors"), (0, 5))


def test_position_embeddings_that_timm_does_not_resize_raise(files: dict) -> None:
    TimmBackbone("tiny_hiera", str(files["tiny_hiera"]), image_size=tiny_timm.SIZE)
    with pytest.raises(CheckpointError, match=r"pos_embed is .*, or remove image_size=128\."):
        TimmBackbone("tiny_hiera", str(files["tiny_hiera"]), image_size=128)


def test_other_threads_use_timms_loader(files: dict) -> None:
    """The loader is only replaced in the thread that builds a network."""
    given = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(files["test_vit"])))
    with timm_weights._captured_filter() as captured, ThreadPoolExecutor(1) as pool:
        model = pool.submit(timm.create_model, "test_vit", **given).result()
    wanted = load_state_dict(files["test_vit"])
    assert captured == []
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())


def test_random_weights_are_reproducible_and_leave_the_generator_unchanged(files: dict) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = TimmBackbone("test_vit").network.state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    two = TimmBackbone("test_vit").network.state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert one["blocks.0.mlp.fc1.weight"].std() > 0.01
    torch.manual_seed(1)
    TimmBackbone("test_vit", str(files["test_vit"]))
    assert torch.equal(before, torch.get_rng_state())
    with timm_weights.WithoutDrawing():  # skips what is loaded from the file
        timm.layers.trunc_normal_tf_(nn.Linear(3, 4).weight)
    assert torch.equal(before, torch.get_rng_state())
    assert timm.models._builder.load_pretrained is timm.models.load_pretrained


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet", "tiny_swin"])
def test_unfrozen_backbone_trains(name: str, files: dict) -> None:
    backbone = TimmBackbone(name, str(files[name]), frozen=False)
    backbone.cast(torch.bfloat16)
    assert backbone.dtype == torch.float32
    assert all(part.training for part in backbone.train().modules())
    assert not any(part.training for part in backbone.eval().modules())
    backbone.train()
    keys = set(dict(backbone.named_parameters()))
    assert keys and keys <= set(backbone.state_dict())
    maps = backbone(images(64, 64))
    sum((m * images(*m.shape[-2:], count=1)[:, :1]).mean() for m in maps).backward()
    quiet = [k for k, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [key for key in quiet if not key.endswith("k_bias")]
    other = TimmBackbone(name, frozen=False)
    other.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        for a, b in zip(backbone.eval()(images(64, 64)), other.eval()(images(64, 64)), strict=True):
            assert torch.equal(a, b)


def test_norm_eval_keeps_the_statistics_of_a_trained_backbone(files: dict) -> None:
    def statistics_after_a_step(norm_eval: bool) -> list[tuple[Tensor, Tensor]]:
        backbone = TimmBackbone(
            "test_resnet", str(files["test_resnet"]), frozen=False, norm_eval=norm_eval
        )
        before = {key: value.clone() for key, value in backbone.named_buffers()}
        maps = backbone.train()(images(64, 64))
        sum(m.mean() for m in maps).backward()
        assert all(p.grad is not None for p in backbone.parameters())
        return [(before[key], value) for key, value in backbone.named_buffers()]

    assert all(torch.equal(*pair) for pair in statistics_after_a_step(norm_eval=True))
    assert not all(torch.equal(*pair) for pair in statistics_after_a_step(norm_eval=False))


def test_maps_of_a_plain_vit_are_the_residual_stream(whole: dict, files: dict) -> None:
    """The last norm is removed."""
    backbone = TimmBackbone("test_vit", str(files["test_vit"]))
    assert not any("norm." in key and "blocks" not in key for key in backbone.network.state_dict())
    seen: list[Tensor] = []
    hook = whole["test_vit"].blocks[5].register_forward_hook(lambda *a: seen.append(a[2]))
    batch = images(160, 160)
    with torch.no_grad():
        whole["test_vit"](normalized("test_vit", batch))
        maps = backbone(batch)
    hook.remove()
    assert relative_error(maps[-1].flatten(2).transpose(1, 2), seen[0][:, 1:]) < TOLERANCE


# --- names, tags and downloads


def test_tags_decide_on_the_normalization() -> None:
    with torch.device("meta"):
        plain = TimmBackbone("vit_base_patch16_224")
        dino = TimmBackbone("vit_base_patch16_224", "dino")
        file = TimmBackbone("vit_base_patch16_224.dino", "checkpoints/vit-b-300ep.pth.tar")
    assert plain.network.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    for backbone in (dino, file):
        assert backbone.network.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)
    assert plain.mean.flatten().shape == (3,)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, files: dict) -> list[tuple[str, str]]:
    """Requests to a fake hub with model.safetensors of tiny_beit and .bin of test_vit."""
    asked: list[tuple[str, str]] = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        name = repository.removeprefix("timm/").partition(".")[0]
        if (name, file) in {
            ("tiny_beit", "model.safetensors"),
            ("test_vit", "pytorch_model.bin"),
        }:
            return str(files[name])
        if name == "test_convnext":
            raise LocalEntryNotFoundError("no network\nmore")
        raise EntryNotFoundError("404")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


@pytest.mark.parametrize(
    ("model", "weights", "repository", "count"),
    [
        ("tiny_beit", "pretrained", "timm/tiny_beit.random_weights", 1),
        ("tiny_beit.random_weights", "pretrained", "timm/tiny_beit.random_weights", 1),
        ("tiny_beit", "random_weights", "timm/tiny_beit.random_weights", 1),
        ("test_vit", "r160_in1k", "timm/test_vit.r160_in1k", 2),
    ],
)
def test_tags_are_downloaded(
    model: str, weights: str, repository: str, count: int, asked: list, files: dict
) -> None:
    backbone = TimmBackbone(model, weights)
    assert asked == [(repository, f) for f in ("model.safetensors", "pytorch_model.bin")[:count]]
    wanted = TimmBackbone(model, str(files[model.partition(".")[0]])).network.state_dict()
    for key, value in backbone.network.state_dict().items():
        assert torch.equal(value, wanted[key]), key


def test_failed_download_raises(asked: list) -> None:
    message = (
        r"test_convnext.r160_in1k are not on this machine .*LocalEntryNotFoundError: no network\)."
        r" .*download model.safetensors from https://huggingface.co/timm/test_convnext.r160_in1k "
        r"on another machine and set `weights` to the file and model='test_convnext.r160_in1k'"
    )
    with pytest.raises(CheckpointError, match=message) as caught:
        TimmBackbone("test_convnext", "pretrained")
    assert "\n" not in str(caught.value)
    assert len(asked) == 1  # offline: other file names are not tried


def test_weights_with_a_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match="or download https://nowhere.invalid/b.pth on"):
        TimmBackbone("tiny_beit", "elsewhere")
    (tmp_path / "checkpoints/b.pth").write_bytes(files["tiny_beit"].read_bytes())
    backbone = TimmBackbone("tiny_beit", "elsewhere")
    wanted = load_state_dict(files["tiny_beit"])
    assert torch.equal(backbone.network.cls_token, wanted["cls_token"])


def test_meta_device_looks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("looked for weights")

    monkeypatch.setattr(timm_weights, "load_state_dict", refuse)
    monkeypatch.setattr(timm_weights.TimmWeights, "_download", refuse)
    for weights in ("nowhere/x.pth", "pretrained"):
        with torch.device("meta"):
            backbone = TimmBackbone("test_convnext", weights)
        assert all(p.is_meta for p in backbone.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(model="test_vitt"), "timm has no model 'test_vitt'; did you mean test_vit"),
        (dict(model="qwertzuiop"), r"timm has no model 'qwertzuiop'; see timm.list_models\(\)"),
        (
            dict(model="vit_base_patch16_224.dyno"),
            "no weights vit_base_patch16_224.dyno; did you mean dino.*tags of .*mae",
        ),
        (
            dict(model="test_vit", weights="r160_in1"),
            "'r160_in1' is neither a file nor one of timm's tags; did you mean r160_in1k"
            ".*tags of test_vit: ",
        ),
        (
            dict(model="vit_base_patch16_224.mae", weights="dino"),
            "model='vit_base_patch16_224.mae' and weights='dino' specify different tags",
        ),
        (
            dict(model="vit_small_patch16_36x1_224", weights="pretrained"),
            "timm has no weights of vit_small_patch16_36x1_224",
        ),
        (
            dict(out_indices=(1, 6)),
            "out_indices contains 6, but test_vit has blocks 0 to 5 with strid",
        ),
        (dict(out_indices=(-7, -1)), "out_indices contains -7, but test_vit has blocks 0 to 5"),
        (
            dict(model="test_resnet", out_indices=(5,)),
            "contains 5, but test_resnet has levels 0 to 4 with strides 2, 4, 8, 16, 32",
        ),
        (
            dict(out_indices=(3, 1)),
            r"out_indices=\(3, 1\) must contain at least one index, in ascend",
        ),
        (dict(out_indices=()), "at least one"),
        (dict(image_size=0), "image_size=0 must be at least 1 pixel"),
        (
            dict(image_size=100),
            "image_size=100 must be a multiple of the patch size of test_vit, 16 pix",
        ),
    ],
)
def test_invalid_values_raise(options: dict, message: str) -> None:
    for device in ("meta", "cpu"):
        with torch.device(device), pytest.raises(ValueError, match=message):
            TimmBackbone(**{"model": "test_vit", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(model=None), "model=None must be a name in timm.list_models"),
        (dict(weights=True), "weights=True must be 'pretrained', a tag, a file or None"),
        (dict(out_indices=3), "out_indices=3 must be a list of integers"),
        (dict(out_indices=("a",)), r"out_indices=\('a',\) must be a list of integers"),
        (dict(image_size=(64, 64)), r"image_size=\(64, 64\) must be an integer"),
    ],
)
def test_invalid_types_raise(options: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        TimmBackbone(**{"model": "test_vit", **options})


def test_unsupported_tile_sizes_raise() -> None:
    with torch.device("meta"):
        backbone = TimmBackbone("halonet26t")  # blocks of 8 x 8 on maps of all strides to 32
    message = (
        "timm's halonet26t does not support tiles of 64 x 96 pixels: .* image_size .* such as 256"
    )
    with pytest.raises(ImageError, match=message):
        backbone.to("meta")(images(64, 96).to("meta"))


def test_missing_file() -> None:
    with pytest.raises(CheckpointError, match="no weights file nowhere/vit.pth"):
        TimmBackbone("test_vit", "nowhere/vit.pth")


@pytest.mark.parametrize(("name", "patch"), [("test_vit", 16), ("test_convnext", 4)])
def test_tiles_smaller_than_a_patch(name: str, patch: int) -> None:
    backbone = TimmBackbone(name)
    message = f"tiles of 64 x {patch - 1} pixels are smaller than one patch .* {patch} pixels"
    with pytest.raises(ImageError, match=message):
        backbone(images(64, patch - 1))
    assert backbone(images(patch, patch))[0].shape[-2:] in {(1, 1), (8, 8)}


def test_neck_of_a_plain_vit_needs_levels() -> None:
    described = TimmBackbone("test_vit").describe()
    with pytest.raises(ValueError, match=r"4 maps of strides \(16, 16, 16, 16\).*levels="):
        FeatureProjection(**described)
    FeatureProjection(**described, levels=(4, 8, 16, 32))
