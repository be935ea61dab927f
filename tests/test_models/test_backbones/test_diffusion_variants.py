"""SDXL, class-conditional LDM, other UNets and learned steps, compared with diffusers."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from odise_mm.errors import CheckpointError, ConfigError
from odise_mm.models.backbones.diffusion.arch_from_files import get_arch, read_arch
from odise_mm.models.backbones.diffusion.backbone import DiffusionBackbone
from odise_mm.models.backbones.diffusion.condition import Condition
from odise_mm.models.backbones.diffusion.presets import ARCHITECTURES, DiffusionArch
from odise_mm.models.backbones.diffusion.taps import Taps
from odise_mm.models.backbones.diffusion.text import tokenize
from odise_mm.models.clip.frozen_clip import FrozenCLIP
from odise_mm.models.necks.captioners.implicit import EmptyCaptioner, ImplicitCaptioner
from tests.support.parts import relative_error
from tests.test_models.test_backbones.conftest import Diffusion, text_state
from tests.test_models.test_backbones.test_diffusion import check, tiles
from tests.test_models.test_backbones.test_diffusion_weights import (
    open_clip_text,
    original_unet,
    original_vae,
)

SDXL, LDM = ARCHITECTURES["tiny_sdxl"], ARCHITECTURES["tiny_ldm"]
ALL = {
    "tiny_sdxl": dict(vae_encoder=range(8), unet=range(9), vae_decoder=range(12)),
    "tiny_ldm": dict(vae_encoder=range(6), unet=range(12), vae_decoder=range(9)),
}
FEW = {
    "tiny_sdxl": dict(vae_encoder=(5, 7), unet=(2, 5, 8), vae_decoder=(2, 5)),
    "tiny_ldm": dict(vae_encoder=(5,), unet=(2, 5, 8, 11), vae_decoder=(2,)),
}
UNET = dict(unet=(0,))
TEXTS = ["a photo of a cat", "", "two dogs"]
TINY_CLIP = dict(
    embed_dim=32,
    vision_cfg=dict(image_size=28, layers=1, width=32, head_width=16, patch_size=14),
    text_cfg=dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=1),
)


class Whole:
    """Complete diffusion model without pruning, with random weights."""

    def __init__(self, arch: DiffusionArch, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.arch = arch
        self.unet = UNet2DConditionModel(**arch.unet).eval()
        self.vae = getattr(diffusers, arch.first_stage)(**arch.vae).eval()
        if arch.first_stage == "VQModel":  # so that codes differ as much as latents
            self.vae.quantize.embedding.weight.data.normal_()
        self.text = arch.text and CLIPTextModel(CLIPTextConfig(**arch.text)).eval()
        self.text_2 = (
            arch.text_2 and CLIPTextModelWithProjection(CLIPTextConfig(**arch.text_2)).eval()
        )
        self.classes = arch.classes and torch.randn(arch.classes, arch.unet["cross_attention_dim"])

    def save(self, folder: Path) -> Path:
        parts = dict(
            unet=self.unet, vae=self.vae, text_encoder=self.text, text_encoder_2=self.text_2
        )
        for name, part in parts.items():
            if part:
                part.save_pretrained(folder / name)
        return folder

    def original(self) -> dict[str, Tensor]:
        """Return a state dict with CompVis' key names, the inverse of diffusers' converters."""
        state = {**ldm_unet(self.unet), **ldm_vae(self.vae)}
        if self.arch.classes:
            state["cond_stage_model.embedding.weight"] = self.classes
        return state

    def features(
        self, images: Tensor, context: Tensor, added: dict | None, step: int = 0
    ) -> dict[str, list[Tensor]]:
        """Record the inputs of all residual blocks with hooks while diffusers runs the model."""
        blocks = {
            "vae_encoder": [r for b in self.vae.encoder.down_blocks for r in b.resnets],
            "unet": [r for b in self.unet.up_blocks for r in b.resnets],
            "vae_decoder": [r for b in self.vae.decoder.up_blocks for r in b.resnets],
        }
        seen: dict[str, list[Tensor]] = {name: [] for name in blocks}
        for name, part in blocks.items():
            for block in part:
                block.register_forward_pre_hook(
                    lambda _, inputs, name=name: seen[name].append(inputs[0])
                )
        with torch.no_grad():
            encoded = self.vae.encode(images * 2 - 1)
            code = encoded.latents if "latents" in encoded else encoded.latent_dist.mode()
            self.vae.decode(code)
            latent = code * self.arch.scaling_factor
            size = self.arch.latent_size
            noise = torch.randn(
                1, latent.shape[1], size, size, generator=torch.Generator().manual_seed(42)
            )
            noise = nn.functional.interpolate(noise, latent.shape[-2:], mode="bicubic")
            scheduler = DDPMScheduler(1000, *self.arch.betas, "scaled_linear")
            at = torch.tensor([max(step, 0)])
            noisy = latent if step < 0 else scheduler.add_noise(latent, noise, at)
            self.unet(noisy, at, encoder_hidden_states=context, added_cond_kwargs=added)
        return seen


def ldm_unet(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Return original key names for any order of levels; upsampling follows attention, if any."""
    state = unet.state_dict()
    out = original_unet({k: v for k, v in state.items() if "upsamplers" not in k})
    added = {"linear_1": "label_emb.0.0", "linear_2": "label_emb.0.2"}
    for key, value in state.items():
        if "upsamplers" in key:
            level, leaf = int(key.split(".")[1]), key.rpartition(".")[2]
            place = 1 + hasattr(unet.up_blocks[level], "attentions")
            name = f"output_blocks.{3 * level + 2}.{place}.conv.{leaf}"
            out[f"model.diffusion_model.{name}"] = value
        elif key.startswith("add_embedding."):
            _, layer, leaf = key.split(".")
            del out[f"model.diffusion_model.{key}"]
            out[f"model.diffusion_model.{added[layer]}.{leaf}"] = value
    return out


def ldm_vae(vae: nn.Module) -> dict[str, Tensor]:
    """Return original key names for any number of levels (:func:`original_vae` assumes four)."""
    last = len(vae.config.block_out_channels) - 1
    return {
        re.sub(r"decoder\.up\.(\d)", lambda m: f"decoder.up.{int(m[1]) - 3 + last}", key): value
        for key, value in original_vae(vae.state_dict()).items()
    }


@pytest.fixture(scope="module")
def sdxl() -> Whole:
    return Whole(SDXL)


@pytest.fixture(scope="module")
def sdxl_folder(sdxl: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sdxl.save(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def ldm() -> Whole:
    return Whole(LDM)


@pytest.fixture(scope="module")
def ldm_file(ldm: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ldm") / "model.ckpt"
    torch.save({"state_dict": ldm.original()}, file)
    return file


def compare(features: Sequence[Tensor], backbone: DiffusionBackbone, seen: dict, size: int) -> None:
    taps = [seen[name][i] for name in Taps._fields for i in getattr(backbone.taps, name)]
    assert len(features) == len(taps) == len(backbone.channels) == len(backbone.strides)
    for i, (feature, tap) in enumerate(zip(features, taps, strict=True)):
        # diffusers' noise levels are float32: 1 - abar of the first step has 4 digits
        assert relative_error(feature, tap) < 3e-4, i
        assert backbone.channels[i] == feature.shape[1]
        assert backbone.strides[i] == min(size // feature.shape[-2], 32)


# -------------------------------------------------------------------------------------- SDXL


@pytest.mark.parametrize(("taps", "step"), [("all", 0), ("few", 300), ("few", -1)])
def test_sdxl(taps: str, step: int, sdxl: Whole, sdxl_folder: Path) -> None:
    backbone = DiffusionBackbone(
        "tiny_sdxl", str(sdxl_folder), (ALL if taps == "all" else FEW)["tiny_sdxl"], (step,)
    )
    assert backbone.divisor == 32
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    context = torch.randn(2, 78, 112, generator=torch.Generator().manual_seed(2))
    added = dict(
        text_embeds=context[:, 77, :48],
        time_ids=torch.tensor([[64.0, 96, 0, 0, 64, 96]] * 2),
    )
    with torch.no_grad():
        features = backbone(images, Condition(context))
    compare(features, backbone, sdxl.features(images, context[:, :77], added, step), 64)


def test_prompts_of_sdxl_go_through_both_encoders(sdxl: Whole, sdxl_folder: Path) -> None:
    backbone = DiffusionBackbone("tiny_sdxl", str(sdxl_folder), UNET)
    with torch.no_grad():
        one = sdxl.text(tokenize(TEXTS, 49407), output_hidden_states=True)
        two = sdxl.text_2(tokenize(TEXTS, 0), output_hidden_states=True)
    prompts = backbone.encode_prompts(TEXTS)
    assert prompts.shape == (3, 78, 112)
    for i in (0, 2):
        torch.testing.assert_close(prompts[i, :77, :64], one.hidden_states[-2][i])
        torch.testing.assert_close(prompts[i, :77, 64:], two.hidden_states[-2][i])
        torch.testing.assert_close(prompts[i, 77, :48], two.text_embeds[i])
        assert not prompts[i, 77, 48:].any()
    assert torch.equal(prompts[1:2], backbone.empty_context)
    assert not backbone.empty_context.any()


def test_empty_prompt_of_sdxl_needs_no_text_encoder(sdxl_folder: Path, tmp_path: Path) -> None:
    for part in ("unet", "vae"):
        (tmp_path / part).symlink_to(sdxl_folder / part)
    backbone = DiffusionBackbone("tiny_sdxl", str(tmp_path), UNET)
    assert not backbone.encode_prompts(["", ""]).any()
    with pytest.raises(CheckpointError, match="it contains no text_encoder/"):
        backbone.encode_prompts(["a cat"])


def test_sdxl_whose_empty_prompt_is_a_text(sdxl: Whole, sdxl_folder: Path) -> None:
    fields = {**vars(SDXL), "zero_empty_prompt": False}
    backbone = DiffusionBackbone(fields, str(sdxl_folder), UNET)
    with torch.no_grad():
        wanted = sdxl.text_2(tokenize([""], 0)).text_embeds
    torch.testing.assert_close(backbone.empty_context[:, 77, :48], wanted)
    torch.testing.assert_close(backbone.encode_prompts([""]), backbone.empty_context)


def test_original_file_of_sdxl(sdxl: Whole, sdxl_folder: Path, tmp_path: Path) -> None:
    state = sdxl.original()
    for key, value in text_state(sdxl.text).items():
        state[f"conditioner.embedders.0.transformer.text_model.{key}"] = value
    second = text_state(sdxl.text_2)
    projection = second.pop("text_projection.weight")
    for key, value in open_clip_text(second).items():
        state[key.replace("cond_stage_model.", "conditioner.embedders.1.")] = value
    state["conditioner.embedders.1.model.text_projection"] = projection.T
    save_file({k: v.contiguous().clone() for k, v in state.items()}, tmp_path / "xl.safetensors")
    backbones = [
        DiffusionBackbone("tiny_sdxl", str(source), FEW["tiny_sdxl"])
        for source in (tmp_path / "xl.safetensors", sdxl_folder)
    ]
    one, other = (dict(backbone.named_parameters()) for backbone in backbones)
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)
    one, other = (backbone.encode_prompts(TEXTS) for backbone in backbones)
    torch.testing.assert_close(one, other)


# --------------------------------------------------------------------------------------- LDM


@pytest.mark.parametrize(("taps", "step"), [("all", 0), ("few", 300), ("few", -1)])
def test_class_conditional_ldm(taps: str, step: int, ldm: Whole, ldm_file: Path) -> None:
    backbone = DiffusionBackbone(
        "tiny_ldm", str(ldm_file), (ALL if taps == "all" else FEW)["tiny_ldm"], (step,)
    )
    torch.testing.assert_close(backbone.empty_context, ldm.classes[10].reshape(1, 1, 48))
    images = tiles(64)
    context = torch.randn(2, 1, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        features = backbone(images, Condition(context))
    compare(features, backbone, ldm.features(images, context, None, step), 64)


def test_only_the_decoder_gets_quantized_latents(ldm: Whole, ldm_file: Path) -> None:
    backbone = DiffusionBackbone("tiny_ldm", str(ldm_file), dict(vae_decoder=(0,)), (-1,))
    images = tiles(64, 1)
    with torch.no_grad():
        latent, _ = backbone.encode(images)
        torch.testing.assert_close(latent, ldm.vae.encode(images * 2 - 1).latents)
        before = backbone(images)[0]
        # the decoder quantizes: the latent and its nearest codes give the same feature
        codes = ldm.vae.quantize(latent)[0]
        assert (codes - latent).abs().mean() > 0.1
        assert relative_error(before, backbone._decoder_taps(codes)[0]) < 1e-5


@pytest.mark.parametrize("arch", ["tiny_sdxl", "tiny_ldm"])
def test_half_precision(arch: str) -> None:
    backbone = DiffusionBackbone(arch, None, FEW[arch])
    with torch.no_grad():
        exact = backbone(tiles(64))
        backbone.cast(torch.bfloat16)
        rounded = backbone(tiles(64))
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.bfloat16
        # random weights; in LDM, a rounded latent may have a different nearest code
        assert (a - b.float()).square().mean().sqrt() < 0.25 * a.std()


def test_implicit_captioner_on_classes(ldm_file: Path) -> None:
    backbone = DiffusionBackbone("tiny_ldm", str(ldm_file), dict(unet=(2, 5)))
    provided = backbone.describe()
    options = {k: provided[k] for k in ("empty_context", "time_width", "num_steps")}
    captioner = ImplicitCaptioner(FrozenCLIP(TINY_CLIP), **options)
    condition = captioner(tiles(64))
    assert condition.context.shape == (2, 1, 48)
    for one, other in zip(backbone(tiles(64), condition), backbone(tiles(64)), strict=True):
        torch.testing.assert_close(one, other)  # the gates are closed at first
    sum(f.square().mean() for f in backbone(tiles(64), condition)).backward()
    assert captioner.context_gate.grad.abs().max() > 0
    assert captioner.time_gate.grad.abs().max() > 0


def test_class_conditional_model_cannot_encode_prompts(ldm_file: Path) -> None:
    backbone = DiffusionBackbone("tiny_ldm", str(ldm_file), UNET)
    with torch.device("meta"):
        planned = DiffusionBackbone("tiny_ldm", None, UNET)
    for model in (backbone, planned):
        with pytest.raises(
            ConfigError, match="conditioned on classes and has no text encoder.*ImplicitCaptioner"
        ):
            model.describe()["prompt_encoder"](["a cat"])


def test_ldm_from_invalid_sources_raises(ldm: Whole, ldm_file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"only be read from an original file, such as model\.ckpt"
    ):
        DiffusionBackbone("tiny_ldm", str(ldm.save(tmp_path)), UNET)
    fewer = {**vars(LDM), "classes": 10}
    with pytest.raises(CheckpointError, match="class embeddings do not match.*another shape"):
        DiffusionBackbone(fewer, str(ldm_file), UNET)
    with pytest.raises(CheckpointError, match="weights do not match the architecture"):
        DiffusionBackbone("tiny", str(ldm_file), UNET)
    message = (
        r"/nowhere/model.ckpt: no such file.*Download it from https://ommer-lab.*place it there"
    )
    with pytest.raises(CheckpointError, match=message):
        DiffusionBackbone(
            {**vars(LDM), "origin": "https://ommer-lab.com/x"}, "/nowhere/model.ckpt", UNET
        )


# ------------------------------------------------------------------------- full-size presets


@pytest.mark.parametrize(
    ("arch", "unet", "first_stage", "shape"),
    [
        # as published: diffusers' model cards, the papers' tables (400 M and 55 M for LDM)
        ("sd_v1", 859_520_964, 83_653_863, (1, 77, 768)),
        ("sd_v2", 865_910_724, 83_653_863, (1, 77, 1024)),
        ("sdxl", 2_567_463_684, 83_653_863, (1, 78, 2048)),
        ("ldm_cin256", 400_920_579, 55_322_782, (1, 1, 512)),
    ],
)
def test_full_size(arch: str, unet: int, first_stage: int, shape: tuple[int, ...]) -> None:
    preset = ARCHITECTURES[arch]
    with torch.device("meta"):
        parts = (
            UNet2DConditionModel(**preset.unet),
            getattr(diffusers, preset.first_stage)(**preset.vae),
        )
        backbone = DiffusionBackbone(arch, "not/read", dict(unet=(2, 5, 8), vae_decoder=(2,)))
        features = backbone(torch.empty(1, 3, 512, 512))
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts == [unet, first_stage]
    assert backbone.empty_context.shape == shape
    assert backbone.channels == tuple(f.shape[1] for f in features)
    assert backbone.strides == tuple(min(512 // f.shape[-1], 32) for f in features)


# ------------------------------------------------------------------------------ another UNet


def another(seed: int = 5) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(**ARCHITECTURES["tiny"].unet).eval()


@pytest.mark.parametrize("kind", ["diffusers file", "original file", "folder", "hub file"])
def test_unet_from_elsewhere(
    kind: str, full: Diffusion, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = another()
    asked = []
    if kind == "folder":
        unet.save_pretrained(tmp_path / "unet")
        source = str(tmp_path)
    else:
        state = unet.state_dict() if kind != "original file" else ldm_unet(unet)
        save_file({k: v.clone() for k, v in state.items()}, tmp_path / "clean.safetensors")
        source = str(tmp_path / "clean.safetensors")
    if kind == "hub file":
        monkeypatch.setattr(
            huggingface_hub,
            "hf_hub_download",
            lambda repository, file: asked.append((repository, file)) or source,
        )
        backbone_source = "hf://CompVis/cleandift/cleandift_sd21_unet.safetensors"
    else:
        backbone_source = source
    main = tmp_path / "main"
    main.mkdir()
    for part in ("vae", "text_encoder"):  # the folder's own UNet is not required
        (main / part).symlink_to(folder / part)
    backbone = DiffusionBackbone(
        "tiny", str(main), dict(unet=(2, 8)), steps=(-1,), unet=dict(weights=backbone_source)
    )
    if kind == "hub file":
        assert asked == [("CompVis/cleandift", "cleandift_sd21_unet.safetensors")]
    check(backbone, full._replace(unet=unet))


def test_unet_of_another_architecture(folder: Path, tmp_path: Path, sdxl: Whole) -> None:
    sdxl.unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(CheckpointError, match="the unet weights do not match") as error:
        DiffusionBackbone("tiny", str(folder), UNET, unet=dict(weights=str(tmp_path)))
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("weights", "unet", "message"),
    [
        (None, dict(weights="a/b"), "set `weights` as well"),
        (None, dict(arch="a"), "unknown keys in unet: arch; the only key is: weights"),
    ],
)
def test_unet_argument(weights: str | None, unet: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionBackbone("tiny", weights, UNET, unet=unet)
    DiffusionBackbone("tiny", None, UNET, unet=dict(weights=None))  # as tools drop weights


# --------------------------------------------------------- architectures from config files


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def complete(whole: Whole, folder: Path, pads: Sequence[Any] = ("<|endoftext|>", "!")) -> Path:
    """Save a folder as on the hub, including the files that describe the architecture."""
    whole.save(folder)
    DDPMScheduler(1000, *whole.arch.betas, "scaled_linear").save_pretrained(folder / "scheduler")
    config = json.loads((folder / "vae" / "config.json").read_text())
    write(folder / "vae" / "config.json", {**config, "scaling_factor": whole.arch.scaling_factor})
    for part, pad in zip(("tokenizer", "tokenizer_2"), pads, strict=False):
        write(folder / part / "special_tokens_map.json", dict(pad_token=pad))
    write(folder / "model_index.json", dict(force_zeros_for_empty_prompt=True))
    return folder


def test_architecture_is_read_from_the_files(sdxl: Whole, tmp_path: Path) -> None:
    source = str(complete(sdxl, tmp_path))
    arch = get_arch(source)
    for name in set(vars(SDXL)) - {"unet", "vae", "text", "text_2"}:
        assert getattr(arch, name) == getattr(SDXL, name), name
    backbones = [
        DiffusionBackbone(chosen, source, FEW["tiny_sdxl"]) for chosen in (source, "tiny_sdxl")
    ]
    with torch.no_grad():
        for one, other in zip(*(b(tiles(64)) for b in backbones), strict=True):
            assert torch.equal(one, other)
    one, other = (b.encode_prompts(TEXTS) for b in backbones)
    torch.testing.assert_close(one, other)


def test_pad_token_is_read(tmp_path: Path) -> None:
    whole = Whole(ARCHITECTURES["tiny"])
    source = complete(whole, tmp_path, [dict(content="!", special=True)])
    assert read_arch(str(source)).pad_token == 0
    write(source / "tokenizer" / "special_tokens_map.json", {})
    with pytest.raises(ConfigError, match="tokenizer/special_tokens_map.json must set pad_token"):
        read_arch(str(source))
    write(source / "tokenizer" / "tokenizer_config.json", dict(pad_token="<|endoftext|>"))
    assert read_arch(str(source)).pad_token == 49407
    assert read_arch(str(source)).betas == (0.00085, 0.012)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("unet/config.json", None, "unet/config.json does not exist: .*or use one of the presets"),
        ("vae/config.json", None, "vae/config.json does not exist"),
        ("scheduler/scheduler_config.json", None, "scheduler_config.json does not exist"),
        ("text_encoder/config.json", None, "text_encoder/config.json does not exist"),
        ("unet/config.json", dict(_class_name="UNet3D"), "describes a UNet3D; supported: UNet2D"),
        ("vae/config.json", dict(_class_name="AsymmetricKL"), "describes a AsymmetricKL"),
        ("scheduler/scheduler_config.json", dict(beta_schedule="squaredcos"), "noise schedules"),
        ("scheduler/scheduler_config.json", dict(num_train_timesteps=10), "noise schedules"),
        ("text_encoder/config.json", dict(model_type="t5"), "describes a t5 of 49408 tokens"),
        ("text_encoder/config.json", dict(vocab_size=5), "of 5 tokens"),
    ],
)
def test_unsupported_config_files_raise(
    file: str, change: dict | None, message: str, folder: Path, tmp_path: Path
) -> None:
    DDPMScheduler(1000, 0.001, 0.02, "linear").save_pretrained(tmp_path / "scheduler")
    write(tmp_path / "tokenizer" / "tokenizer_config.json", dict(pad_token="!"))
    for part in ("unet", "vae", "text_encoder"):
        (tmp_path / part).mkdir()
        shutil.copy(folder / part / "config.json", tmp_path / part)
    arch = get_arch(str(tmp_path))
    assert (arch.beta_schedule, arch.pad_token) == ("linear", 0)
    if change is None:
        (tmp_path / file).unlink()
    else:
        write(tmp_path / file, json.loads((tmp_path / file).read_text()) | change)
    with pytest.raises(ConfigError, match=message) as error:
        get_arch(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_broken_config_file(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="unet/config.json: not JSON, or truncated"):
        get_arch(str(tmp_path))


def test_hub_is_asked_for_config_files_only(
    sdxl: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(sdxl, tmp_path)
    asked = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with torch.device("meta"):
        DiffusionBackbone("some/model", "some/model", UNET)
    ((repository, patterns),) = asked
    assert repository == "some/model"
    assert all(pattern.endswith(".json") for pattern in patterns)


def test_architecture_on_a_hub_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as error:
        get_arch("some/model")
    for part in ("unet/config.json", "https://huggingface.co/some/model", "by hand"):
        assert part in str(error.value)
    with pytest.raises(CheckpointError) as error:
        DiffusionBackbone("tiny", "hf://some/model/file.ckpt", UNET)
    for part in ("hf://some/model/file.ckpt", "download file.ckpt", "https://huggingface.co/some/"):
        assert part in str(error.value)
    with pytest.raises(CheckpointError, match="expected hf://owner/name/file"):
        DiffusionBackbone("tiny", "hf://some/model", UNET)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(unet=dict(class_embed_type="timestep")), "class_embed_type='timestep'; supported"),
        (dict(unet=dict(in_channels=9)), "9 input channels for a latent with 4"),
        (dict(unet=dict(cross_attention_dim=32)), "cross_attention_dim=32 for conditions 64 wide"),
        (dict(unet=dict(mid_block_type="UNetMidBlock2D")), "a UNetMidBlock2D; supported"),
        (
            dict(unet=dict(addition_embed_type="text", encoder_hid_dim=32)),
            "addition_embed_type='text'",
        ),
        (dict(vae=dict(shift_factor=0.1)), "a first stage that shifts its latents"),
        (
            dict(vae=dict(up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3)),
            "a AttnUpDecoderBlock2D; supported",
        ),
        (dict(condition="image"), "condition='image' must be one of"),
        (dict(first_stage="AutoencoderDC"), "first_stage='AutoencoderDC' must be one of"),
        (dict(beta_schedule="cosine"), "beta_schedule='cosine' must be scaled_linear or linear"),
        (dict(condition="class"), "must set classes"),
        (dict(condition="text_and_size"), "must set text_2"),
        (dict(condition="text_and_size", text_2=SDXL.text_2), "addition_embed_type=None"),
        (dict(text={}), "condition='text': the architecture must set text"),
    ],
)
def test_unsupported_architectures_raise(fields: dict, message: str) -> None:
    tiny = vars(ARCHITECTURES["tiny"])
    changed = {
        name: {**tiny[name], **value} if isinstance(value, dict) and value else value
        for name, value in fields.items()
    }
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        DiffusionBackbone({**tiny, **changed}, None, UNET)


def test_taps_that_do_not_exist_are_listed() -> None:
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"block 11 .*blocks 0 to 8") as error,
    ):
        DiffusionBackbone("sdxl", None)
    assert "(8, 640, 8)" in str(error.value)  # the last block's channels and stride


# ----------------------------------------------------------------------------- a learned step


@pytest.mark.parametrize("step", [0, 1, 500, 999])
def test_integer_learned_steps_equal_fixed_steps(step: int, folder: Path) -> None:
    fixed, free = (
        DiffusionBackbone("tiny", str(folder), dict(unet=(2, 8)), steps)
        for steps in ((step,), (7,))
    )
    context = fixed.empty_context.expand(1, -1, -1)
    with torch.no_grad():
        wanted = fixed(tiles(64, 1))
        features = free(tiles(64, 1), Condition(context, step=torch.tensor(float(step))))
    for one, other in zip(features, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("at", [3.4, 250.3])
def test_gradient_of_the_step(at: float, folder: Path) -> None:
    backbone = DiffusionBackbone("tiny", str(folder), dict(unet=(2, 5))).double()
    context = backbone.empty_context.expand(1, -1, -1)
    images = tiles(64, 1).double()
    weights = torch.Generator().manual_seed(3)
    weights = [
        torch.randn(c, 1, 1, dtype=torch.float64, generator=weights) for c in backbone.channels
    ]

    def value(step: Tensor) -> Tensor:
        maps = backbone(images, Condition(context, step=step))
        return sum((w * m).mean() for w, m in zip(weights, maps, strict=True))

    step = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(step), step)
    # diffusers' sinusoids are always float32, so the difference must not be too small
    width = 0.02
    with torch.no_grad():
        numeric = (value(step + width) - value(step - width)) / (2 * width)
    assert abs(gradient) > 1e-8
    assert gradient.item() == pytest.approx(numeric.item(), rel=5e-3)


def test_noise_between_two_steps() -> None:
    backbone = DiffusionBackbone("tiny", None, UNET)
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    low, high = (backbone.add_noise(latent, step) for step in (41, 42))
    between = backbone.add_noise(latent, torch.tensor(41.25))
    torch.testing.assert_close(between, 0.75 * low + 0.25 * high)
    half = backbone.add_noise(latent.bfloat16(), torch.tensor(41.25))
    assert half.dtype == torch.bfloat16
    assert relative_error(half.float(), between) < 0.02


def implicit(**options: Any) -> ImplicitCaptioner:
    return ImplicitCaptioner(FrozenCLIP(TINY_CLIP), torch.zeros(1, 77, 64), 128, **options)


def test_captioner_learns_the_step(folder: Path) -> None:
    backbone = DiffusionBackbone("tiny", str(folder), dict(unet=(2,)), use_checkpoint=True)
    captioner = implicit(learned_step=100.0)
    assert captioner.step.item() == pytest.approx(100.0, rel=1e-5)
    assert captioner(tiles(64)).step.ndim == 0
    assert "step_logit" in captioner.state_dict()
    backbone(tiles(64), captioner(tiles(64)))[0].square().mean().backward()
    assert captioner.step_logit.grad.abs() > 0
    optimizer = torch.optim.SGD([captioner.step_logit], lr=1.0)
    for _ in range(3):  # the step decreases at any scale of the gradient
        optimizer.zero_grad()
        captioner.step.backward()
        optimizer.step()
    assert 0 <= captioner.step < 100
    with torch.no_grad():
        for raw, end in ((-math.inf, 0.0), (math.inf, 999.0)):
            captioner.step_logit.fill_(raw)
            assert captioner.step == end
            assert all(f.isfinite().all() for f in backbone(tiles(64), captioner(tiles(64))))


def test_without_a_learned_step_nothing_is_added() -> None:
    captioner = implicit()
    assert captioner.step is None
    assert not any("step" in key for key in captioner.state_dict())
    assert captioner(tiles(64)).step is None
    assert EmptyCaptioner(torch.zeros(1, 77, 64))(tiles(64)).step is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(learned_step=0.0), r"must be inside \(0, 999\)"),
        (dict(learned_step=1200), r"learned_step=1200 must be inside"),
        (dict(learned_step=5.0, num_steps=2), r"has 2 steps; set steps=\(0,\)"),
    ],
)
def test_invalid_learned_steps_raise(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        implicit(**options)


def test_learned_step_with_several_steps_raises() -> None:
    backbone = DiffusionBackbone("tiny", None, UNET, steps=(0, 100))
    condition = Condition(backbone.empty_context, step=torch.tensor(3.0))
    with pytest.raises(ValueError, match=r"replaces a single step.*steps=\(0, 100\)"):
        backbone(tiles(64, 1), condition)
    with pytest.raises(ValueError, match=r"steps=\(0\.5,\) must be a list of at least one"):
        DiffusionBackbone("tiny", None, UNET, steps=(0.5,))
