"""All kinds of sources give the same diffusion weights; wrong ones raise an error."""

from __future__ import annotations

import copy
import shutil
import socket
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from odise_mm.checkpoints.safe_loading import load_state_dict
from odise_mm.errors import CheckpointError
from odise_mm.models.backbones.diffusion import weights as diffusion_weights
from odise_mm.models.backbones.diffusion.backbone import DiffusionBackbone
from odise_mm.models.backbones.diffusion.presets import ARCHITECTURES, DiffusionArch
from odise_mm.models.backbones.diffusion.weights import DiffusionWeights
from tests.support.parts import relative_error
from tests.test_models.test_backbones.conftest import Diffusion, text_state
from tests.test_models.test_backbones.test_diffusion import PAPER, V2, tiles

PARTS = ("unet", "vae", "text_encoder")


def result(source: Path | str, arch: str | dict = "tiny") -> dict[str, Tensor]:
    backbone = DiffusionBackbone(arch, str(source), PAPER)
    return {**dict(backbone.named_parameters()), "empty_context": backbone.empty_context}


def assert_same(weights: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    assert list(weights) == list(reference)
    for key, wanted in reference.items():
        torch.testing.assert_close(
            weights[key], wanted, rtol=0, atol=1e-5 if key == "empty_context" else 0, msg=key
        )


@pytest.fixture(scope="module")
def reference(tiny_weights: Path) -> dict[str, Tensor]:
    return result(tiny_weights / "sd_v1.ckpt")


def test_features_are_the_same(tiny_weights: Path, folder: Path) -> None:
    features = []
    for source in (tiny_weights / "sd_v1.ckpt", folder):
        backbone = DiffusionBackbone("tiny", str(source), PAPER)
        with torch.no_grad():
            features.append(backbone(tiles(64, 1)))
    for one, other in zip(*features, strict=True):
        assert relative_error(one, other) < 1e-5


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("network access")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


def test_single_safetensors_file(
    tiny_weights: Path, tmp_path: Path, reference: dict[str, Tensor], no_network: None
) -> None:
    state = load_state_dict(tiny_weights / "sd_v1.ckpt")
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "sd.safetensors")
    assert_same(result(tmp_path / "sd.safetensors"), reference)


def test_folder(folder: Path, reference: dict[str, Tensor], no_network: None) -> None:
    assert_same(result(folder), reference)


def test_folder_of_old_files(
    full: Diffusion, tmp_path: Path, reference: dict[str, Tensor], no_network: None
) -> None:
    # Before 2023: torch files, other key names in the VAE's attention, and position_ids.
    for part in PARTS:
        (tmp_path / part).mkdir()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = {}
    for key, value in full.vae.state_dict().items():
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        vae[key] = value
    assert set(vae) != set(full.vae.state_dict())
    text = {f"text_model.{key}": value for key, value in text_state(full.text).items()}
    text["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(vae, tmp_path / "vae" / "diffusion_pytorch_model.bin")
    torch.save(full.unet.state_dict(), tmp_path / "unet" / "diffusion_pytorch_model.bin")
    torch.save(text, tmp_path / "text_encoder" / "pytorch_model.bin")
    assert_same(result(tmp_path), reference)


class Prefixed(nn.Module):
    """Adds the key prefix that CLIPTextModel had before transformers 5.6."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.text_model = inner


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("in_module", [True, False])
def test_prefix_of_text_encoders(
    in_file: bool, in_module: bool, full: Diffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text_encoder").mkdir()
    prefix = "text_model." if in_file else ""
    state = {prefix + key: value.clone() for key, value in text_state(full.text).items()}
    file = tmp_path / "text_encoder" / "model.safetensors"
    save_file(state, file)
    empty = Diffusion.random(full.arch, seed=1).text
    inner = getattr(empty, "text_model", empty)
    module = Prefixed(inner) if in_module else inner
    monkeypatch.setattr(diffusion_weights, "build_text_encoder", lambda *_: module)
    source = DiffusionWeights(str(tmp_path), full.arch, ["text_encoder"])
    assert source.text_encoder() is module
    for key, value in text_state(full.text).items():
        assert torch.equal(inner.state_dict()[key], value), key
    save_file({**state, f"{prefix}more": torch.zeros(1)}, file)
    with pytest.raises(
        CheckpointError, match=f"weights of the text encoder .*do not match.*{prefix}more"
    ):
        source.text_encoder()


@pytest.mark.parametrize("safe", [True, False])
def test_folder_with_shards(
    safe: bool, full: Diffusion, tmp_path: Path, reference: dict[str, Tensor], no_network: None
) -> None:
    full.save(tmp_path, max_shard_size="10MB", safe_serialization=safe)
    assert len(list((tmp_path / "unet").glob("*-of-*"))) > 1
    assert_same(result(tmp_path), reference)


def test_half_precision_files_are_read_as_float32(
    full: Diffusion, tmp_path: Path, reference: dict[str, Tensor]
) -> None:
    for part, module in zip(PARTS, full[1:], strict=True):
        (tmp_path / part).mkdir()
        name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        state = {k: v.half() for k, v in module.state_dict().items()}
        save_file(state, tmp_path / part / f"{name}.fp16.safetensors")
    weights = result(tmp_path)
    del weights["empty_context"]
    for key, value in weights.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, reference[key].half().float()), key


@pytest.mark.parametrize(
    "how",
    [dict(max_shard_size="10MB"), dict(safe_serialization=False)],
    ids=["shards", "torch files"],
)
def test_half_precision_folders_of_diffusers(
    how: dict, full: Diffusion, tmp_path: Path, reference: dict[str, Tensor], no_network: None
) -> None:
    halves = [copy.deepcopy(module).half() for module in full[1:]]
    for part, module in zip(PARTS[:2], halves[:2], strict=True):
        module.save_pretrained(tmp_path / part, variant="fp16", **how)
    halves[2].save_pretrained(tmp_path / "text_encoder", variant="fp16")
    assert not list(tmp_path.glob("*/diffusion_pytorch_model.safetensors"))
    weights = result(tmp_path)
    del weights["empty_context"]
    for key, value in weights.items():
        assert torch.equal(value, reference[key].half().float()), key
    # Full precision is preferred if both exist.
    full.save(tmp_path)
    assert_same(result(tmp_path), reference)


def test_original_file_of_version_2(tmp_path: Path, no_network: None) -> None:
    arch = DiffusionArch(**V2)
    model = Diffusion.random(arch)
    wanted = result(model.save(tmp_path / "folder"), V2)
    # The key names of original files, the inverse of diffusers' converters.
    state = {
        **original_unet(model.unet.state_dict()),
        **original_vae(model.vae.state_dict()),
        **open_clip_text(text_state(model.text)),
    }
    torch.save({"state_dict": state}, tmp_path / "v2.ckpt")
    assert_same(result(tmp_path / "v2.ckpt", V2), wanted)


def original_unet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    import re

    inner = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    plain = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    out = {}
    for key, value in state.items():
        level, _, leaf = key.rpartition(".")
        if level in plain:
            name = f"{plain[level]}.{leaf}"
        else:
            name = key
            for ours, theirs in inner.items():
                name = re.sub(rf"(resnets\.\d+)\.{ours}\.", rf"\1.{theirs}.", name)
            name = re.sub(
                r"mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}", name
            )
            name = name.replace("mid_block.attentions.0", "middle_block.1")
            for kind, order in (("resnets", 0), ("attentions", 1)):
                name = re.sub(
                    rf"down_blocks\.(\d)\.{kind}\.(\d)",
                    lambda m, order=order: f"input_blocks.{3 * int(m[1]) + int(m[2]) + 1}.{order}",
                    name,
                )
                name = re.sub(
                    rf"up_blocks\.(\d)\.{kind}\.(\d)",
                    lambda m, order=order: f"output_blocks.{3 * int(m[1]) + int(m[2])}.{order}",
                    name,
                )
            name = re.sub(
                r"down_blocks\.(\d)\.downsamplers\.0\.conv",
                lambda m: f"input_blocks.{3 * int(m[1]) + 3}.0.op",
                name,
            )
            # in the level without attention, upsampling comes one position earlier
            name = re.sub(
                r"up_blocks\.(\d)\.upsamplers\.0\.",
                lambda m: f"output_blocks.{3 * int(m[1]) + 2}.{1 if m[1] == '0' else 2}.",
                name,
            )
        out[f"model.diffusion_model.{name}"] = value
    return out


def original_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    import re

    attention = {
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
    }
    out = {}
    for key, value in state.items():
        name = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(
            r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name
        ).replace("mid_block.attentions.0", "mid.attn_1")
        for ours, theirs in attention.items():
            name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
        if "attn_1" in name and name.endswith("weight") and ".norm." not in name:
            value = value[:, :, None, None]
        name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{3 - int(m[1])}.block.", name)
        name = re.sub(
            r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name
        )
        out[f"first_stage_model.{name}"] = value
    return out


def open_clip_text(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "cond_stage_model.model."
    out = {
        f"{prefix}token_embedding.weight": state["embeddings.token_embedding.weight"],
        f"{prefix}positional_embedding": state["embeddings.position_embedding.weight"],
        f"{prefix}ln_final.weight": state["final_layer_norm.weight"],
        f"{prefix}ln_final.bias": state["final_layer_norm.bias"],
        f"{prefix}logit_scale": torch.tensor(4.6),
        f"{prefix}text_projection": torch.randn(48, 48),
    }
    layer = 0
    while f"encoder.layers.{layer}.layer_norm1.weight" in state:
        ours, theirs = f"encoder.layers.{layer}", f"{prefix}transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            for name, other in (
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
                ("self_attn.out_proj", "attn.out_proj"),
            ):
                out[f"{theirs}.{other}.{kind}"] = state[f"{ours}.{name}.{kind}"]
            joined = [state[f"{ours}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
            out[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(joined)
        layer += 1
    return out


# ------------------------------------------------------------------------------ bad input


def refused(source: Path | str, message: str, arch: str | dict = "tiny") -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        DiffusionBackbone(arch, str(source), PAPER)
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)


def test_another_architecture(tiny_weights: Path, folder: Path) -> None:
    for source in (tiny_weights / "sd_v1.ckpt", folder):
        refused(source, "vae weights do not match the architecture.*another shape", V2)
        other_unet = dict(
            unet=dict(V2["unet"], cross_attention_dim=64),
            vae=ARCHITECTURES["tiny"].vae,
            text=ARCHITECTURES["tiny"].text,
        )
        refused(source, "unet weights do not match the architecture", other_unet)
        other_text = dict(
            unet=ARCHITECTURES["tiny"].unet,
            vae=ARCHITECTURES["tiny"].vae,
            text=dict(V2["text"], hidden_size=64),
        )
        refused(source, "weights of the text encoder .*do not match the architecture", other_text)


@pytest.mark.parametrize(
    "prefix", ["model.diffusion_model.", "first_stage_model.", "cond_stage_model."]
)
def test_original_file_without_a_part(prefix: str, tiny_weights: Path, tmp_path: Path) -> None:
    state = load_state_dict(tiny_weights / "sd_v1.ckpt")
    kept = {k: v for k, v in state.items() if not k.startswith(prefix)}
    torch.save({"state_dict": kept}, tmp_path / "part.ckpt")
    refused(tmp_path / "part.ckpt", f"no key begins with {prefix}")


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.time_embed.0.weight",
        "model.diffusion_model.input_blocks.1.0.in_layers.0.weight",
        "first_stage_model.encoder.down.0.block.0.conv1.bias",
        "first_stage_model.quant_conv.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    ],
)
def test_original_file_without_a_key(key: str, tiny_weights: Path, tmp_path: Path) -> None:
    state = load_state_dict(tiny_weights / "sd_v1.ckpt")
    del state[key]
    torch.save({"state_dict": state}, tmp_path / "gap.ckpt")
    refused(tmp_path / "gap.ckpt", "not match the architecture")


def test_unknown_keys_are_not_dropped_silently(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "more")
    file = tmp_path / "more" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(file), "lora.weight": torch.zeros(2)}, file)
    refused(tmp_path / "more", r"1 unknown \(first: lora.weight\)")


def test_keys_of_layers_that_are_not_built_are_not_read(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "less")
    file = tmp_path / "less" / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    unused = {k for k in state if k.startswith(("conv_out.", "up_blocks.3.resnets.2."))}
    save_file({k: v for k, v in state.items() if k not in unused}, file)
    assert_same(result(tmp_path / "less"), result(folder))


def test_checkpoint_of_the_segmentor(tiny_weights: Path) -> None:
    refused(tiny_weights / "odise_label.pth", "is not an original Stable Diffusion checkpoint")


@pytest.mark.parametrize("part", PARTS)
def test_folder_without_a_part(part: str, folder: Path, tmp_path: Path) -> None:
    for other in PARTS:
        if other != part:
            (tmp_path / other).symlink_to(folder / other)
    refused(tmp_path, f"is not a diffusers folder: it contains no {part}/")


def test_folder_without_weights(folder: Path, tmp_path: Path) -> None:
    for part in PARTS[1:]:
        (tmp_path / part).symlink_to(folder / part)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="unet: expected diffusion_pytorch_model.safetensors"):
        DiffusionBackbone("tiny", str(tmp_path), PAPER)


def test_folder_without_a_shard(full: Diffusion, tmp_path: Path) -> None:
    full.save(tmp_path, max_shard_size="10MB")
    lost = sorted((tmp_path / "unet").glob("*-of-*"))[0]
    lost.unlink()
    with pytest.raises(CheckpointError, match=lost.name):
        DiffusionBackbone("tiny", str(tmp_path), PAPER)


@pytest.mark.parametrize(
    "source", ["sd-v1-3.ckpt", "weights/sd/v1.ckpt", "/nowhere/sd.safetensors", "./sd"]
)
def test_missing_file(source: str, no_network: None) -> None:
    refused(source, "no such file or folder.*CompVis/stable-diffusion-v1-3")


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refused(
        "some/model", "not a local path, and the download from the hub failed.*or use a local file"
    )


def test_hub_download_asks_for_weights_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, reference: dict[str, Tensor]
) -> None:
    from fnmatch import fnmatch

    asked = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert_same(result("some/model"), reference)
    ((repository, patterns),) = asked
    assert repository == "some/model"
    wanted = [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
    ]
    unwanted = [
        "v1-3.ckpt",
        "safety_checker/model.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_flax_model.msgpack",
    ]
    for file in wanted:
        assert any(fnmatch(file, pattern) for pattern in patterns), file
    for file in unwanted:
        assert not any(fnmatch(file, pattern) for pattern in patterns), file


def test_hub_repository_of_torch_files(
    full: Diffusion, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reference: dict[str, Tensor]
) -> None:
    def download(_: str, allow_patterns: list[str]) -> str:
        if any(pattern.endswith(".bin") for pattern in allow_patterns):
            for part, module in zip(PARTS, full[1:], strict=True):
                (tmp_path / part).mkdir()
                name = "pytorch_model" if part == "text_encoder" else "diffusion_pytorch_model"
                assert f"{part}/{name}.bin" in allow_patterns
                torch.save(module.state_dict(), tmp_path / part / f"{name}.bin")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert_same(result("some/model"), reference)


def test_source_is_not_kept(folder: Path) -> None:
    """The backbone keeps no reference to the weights that were read."""
    backbone = DiffusionBackbone("tiny", str(folder), PAPER)
    assert not any(isinstance(value, DiffusionWeights) for value in vars(backbone).values())
