"""Choice of the copy of the weights in a folder; files outside the folder are never read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.pipeline_loading_utils import variant_compatible_siblings
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from odise_mm.checkpoints.weight_folders import (
    ENDINGS,
    VARIANTS,
    _patterns,
    choose_weights,
    download_weights,
    find_weights,
    read_weights,
)
from odise_mm.errors import CheckpointError

STEMS = ("model", "pytorch_model")


def write(folder: Path, name: str, value: float = 1.0, keys: Iterable[str] = ("a", "b")) -> None:
    state = {key: torch.full((2,), value) for key in keys}
    save_file(state, folder / name) if name.endswith("safetensors") else torch.save(
        state, folder / name
    )


def write_index(folder: Path, name: str, weight_map: object) -> None:
    content = {"metadata": {"total_size": 16}, "weight_map": weight_map}
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["model.fp16.safetensors", "model.safetensors"], "model.safetensors"),
        (["model.fp16.safetensors", "pytorch_model.bin"], "pytorch_model.bin"),
        (["model.bf16.safetensors", "model.fp16.safetensors"], "model.fp16.safetensors"),
        (["model.non_ema.safetensors", "model.fp16.safetensors"], "model.fp16.safetensors"),
        (["model.bf16.safetensors", "pytorch_model.fp16.bin"], "pytorch_model.fp16.bin"),
        (["model.non_ema.safetensors"], "model.non_ema.safetensors"),
        (["pytorch_model.fp32.bin", "model.fp16.safetensors"], "pytorch_model.fp32.bin"),
        (["model.int3.safetensors"], "model.int3.safetensors"),
        (["model.int3.safetensors", "model.bf16.bin"], "model.bf16.bin"),
        (["pytorch_model.bin", "model.bin"], "model.bin"),
    ],
)
def test_order_of_preference(names: list[str], chosen: str, tmp_path: Path) -> None:
    for number, name in enumerate(names):
        write(tmp_path, name, float(number))
    for other in ("model-old.safetensors", "mymodel.safetensors", "config.json", "model.onnx"):
        (tmp_path / other).write_text("no weights")
    assert choose_weights(tmp_path, STEMS, "weights") == [tmp_path / chosen]
    state = read_weights(tmp_path, STEMS, "weights")
    assert state["a"].tolist() == [float(names.index(chosen))] * 2


@pytest.mark.parametrize(
    ("index", "shard"),
    [
        ("model.safetensors.index.json", "model-0000{}-of-00002.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model-0000{}-of-00002.bin"),
        ("model.safetensors.index.fp16.json", "model.fp16-0000{}-of-00002.safetensors"),
        ("model.safetensors.fp16.index.json", "model-0000{}-of-00002.fp16.safetensors"),
        ("model.fp16.safetensors.index.json", "model.fp16-0000{}-of-00002.safetensors"),
        ("pytorch_model.bin.index.bf16.json", "pytorch_model.bf16-0000{}-of-00002.bin"),
    ],
)
def test_shards(index: str, shard: str, tmp_path: Path) -> None:
    first, second = shard.format(1), shard.format(2)
    write(tmp_path, first, 1.0, ["a"])
    write(tmp_path, second, 2.0, ["b"])
    write_index(tmp_path, index, {"a": first, "b": second})
    state = read_weights(tmp_path, STEMS, "weights")
    assert {key: value[0].item() for key, value in state.items()} == {"a": 1.0, "b": 2.0}
    assert list(read_weights(tmp_path, STEMS, "weights", keep=lambda key: key == "b")) == ["b"]
    (tmp_path / second).unlink()
    with pytest.raises(CheckpointError, match=f"{second}, which is not in the folder .1 of 2"):
        read_weights(tmp_path, STEMS, "weights")
    # If shards are missing, a single file of the same precision is used, but none of a lower one.
    ending = "safetensors" if "safetensors" in index else "bin"
    variant = next((f"{word}." for word in ("fp16", "bf16") if word in index), "")
    write(tmp_path, f"model.non_ema.{ending}", 3.0)
    with pytest.raises(CheckpointError, match="which is not in the folder"):
        read_weights(tmp_path, STEMS, "weights")
    write(tmp_path, f"model.{variant}{ending}", 4.0)
    assert read_weights(tmp_path, STEMS, "weights")["b"].tolist() == [4.0, 4.0]


@pytest.mark.parametrize("variant", [None, "fp16", "bf16", "anything"])
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("size", ["10GB", "100KB"])
def test_folders_written_by_diffusers(
    variant: str | None, safe: bool, size: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, layers_per_block=1)
    vae.save_pretrained(tmp_path, variant=variant, safe_serialization=safe, max_shard_size=size)
    assert (len(list(tmp_path.glob("*-of-*"))) > 1) == (size == "100KB")
    state = read_weights(tmp_path, ("diffusion_pytorch_model",), "weights")
    wanted = AutoencoderKL.from_pretrained(tmp_path, variant=variant, use_safetensors=safe)
    wanted = wanted.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", ["10GB", "100KB"])
def test_text_encoders_written_by_transformers(
    variant: str | None, size: str, tmp_path: Path
) -> None:
    config = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, vocab_size=2000)
    text = CLIPTextModel(CLIPTextConfig(**config, num_hidden_layers=2))
    text.save_pretrained(tmp_path, variant=variant, max_shard_size=size)
    state = read_weights(tmp_path, STEMS, "weights")
    wanted = text.state_dict()
    assert {key.removeprefix("text_model.") for key in state} == {
        key.removeprefix("text_model.") for key in wanted
    }


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("../secret.safetensors", "leads outside its folder"),
        ("sub/../../secret.safetensors", "leads outside its folder"),
        ("..\\secret.safetensors", "leads outside its folder"),
        ("/etc/passwd", "leads outside its folder"),
        ("", "is not a file name"),
        (7, "is not a file name"),
        (["a"], "is not a file name"),
        (None, "is not a file name"),
    ],
)
def test_shards_outside_of_the_folder(shard: object, message: str, tmp_path: Path) -> None:
    write(tmp_path, "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    write_index(folder, "model.safetensors.index.json", {"a": shard})
    with pytest.raises(CheckpointError, match=f"index.json: weight_map: .*{message}"):
        read_weights(folder, STEMS, "weights")


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": ["a"]}', '{"weight_map": 3}']
)
def test_index_without_a_map(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(
        CheckpointError, match="is not a valid index of weights: it has no weight_map"
    ):
        read_weights(tmp_path, STEMS, "weights")


def test_index_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": ')
    with pytest.raises(CheckpointError, match="index.json: not JSON, or truncated"):
        read_weights(tmp_path, STEMS, "weights")


def test_missing_weights_list_the_files_of_the_folder(tmp_path: Path) -> None:
    names = ["config.json", "flax_model.msgpack", "model-00001-of-00002.safetensors", "a\nb"]
    for name in names:
        (tmp_path / name).write_text("")
    with pytest.raises(CheckpointError) as caught:
        read_weights(tmp_path, STEMS, "weights of it")
    message = str(caught.value)
    assert "has no weights of it: expected model.safetensors, pytorch_model.bin" in message
    assert "\n" not in message and "a\\nb" in message
    assert all(name in message for name in names[:3])
    with pytest.raises(CheckpointError, match="found nothing"):
        (tmp_path / "empty").mkdir()
        read_weights(tmp_path / "empty", STEMS, "weights")


def test_two_unknown_variants_are_an_error(tmp_path: Path) -> None:
    write(tmp_path, "model.int3.safetensors")
    write(tmp_path, "model.nf7.safetensors")
    with pytest.raises(CheckpointError, match=r"2 unknown variants \(int3, nf7\)"):
        read_weights(tmp_path, STEMS, "weights")


# ---------------------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Path, list[str]]]:
    """A function that downloads from a fake hub and returns the downloaded files, in order."""

    def fetch(names: list[str], parts: dict[str, tuple[str, ...]]) -> tuple[Path, list[str]]:
        cache, fetched = tmp_path / "cache", []
        cache.mkdir()

        def download(repository: str, allow_patterns: list[str]) -> str:
            assert repository == "some/model"
            for name in names:
                if any(fnmatch(name, pattern) for pattern in allow_patterns):
                    (cache / name).parent.mkdir(exist_ok=True)
                    (cache / name).write_text("{}")
                    fetched.append(name)
            return str(cache)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return download_weights("some/model", parts), fetched

    return fetch


UNET = {"unet": ("diffusion_pytorch_model", "pytorch_model")}
BOTH = {**UNET, "text_encoder": STEMS}
D = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("names", "parts", "wanted"),
    [
        ([f"unet/{D}.fp16.safetensors"], UNET, [f"unet/{D}.fp16.safetensors"]),
        (
            [f"unet/{D}.fp16.safetensors", f"unet/{D}.bin", f"unet/{D}.fp16.bin"],
            UNET,
            [f"unet/{D}.bin"],
        ),
        (
            [
                f"unet/{D}.safetensors.index.fp16.json",
                f"unet/{D}.fp16-00001-of-00002.safetensors",
                f"unet/{D}.fp16-00002-of-00002.safetensors",
                f"unet/{D}.non_ema.safetensors",
                "unet/model.onnx",
            ],
            UNET,
            [
                f"unet/{D}.safetensors.index.fp16.json",
                f"unet/{D}.fp16-00001-of-00002.safetensors",
                f"unet/{D}.fp16-00002-of-00002.safetensors",
            ],
        ),
        (
            [
                f"unet/{D}.safetensors",
                f"unet/{D}-00001-of-00002.fp16.safetensors",
                "text_encoder/model.fp16.safetensors",
                "text_encoder/model.bf16.safetensors",
                "vae/model.fp16.safetensors",
            ],
            BOTH,
            [f"unet/{D}.safetensors", "text_encoder/model.fp16.safetensors"],
        ),
        (
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "tf_model.h5"],
            {"": STEMS},
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
        ),
        (["model.non_ema.safetensors"], {"": STEMS}, ["model.non_ema.safetensors"]),
        (["model.msgpack"], {"": STEMS}, []),
    ],
)
def test_one_copy_is_fetched(
    names: list[str],
    parts: dict[str, tuple[str, ...]],
    wanted: list[str],
    hub: Callable[..., tuple[Path, list[str]]],
) -> None:
    _, fetched = hub(names, parts)
    assert fetched == wanted


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("spelling", ["new", "old"])
def test_patterns_match_the_files_that_diffusers_downloads(
    variant: str, ending: str, spelling: str
) -> None:
    """The reference is diffusers' choice of files, for single files and both spellings."""
    if variant and spelling == "new":
        shards = [f"unet/{D}.{variant}-0000{i}-of-00002.{ending}" for i in (1, 2)]
        names = [f"unet/{D}.{ending}.index.{variant}.json", *shards]
    elif variant:
        shards = [f"unet/{D}-0000{i}-of-00002.{variant}.{ending}" for i in (1, 2)]
        names = [f"unet/{D}.{ending}.{variant}.index.json", *shards]
    else:
        shards = [f"unet/{D}-0000{i}-of-00002.{ending}" for i in (1, 2)]
        names = [f"unet/{D}.{ending}.index.json", *shards]
    whole = [f"unet/{D}.{variant}.{ending}" if variant else f"unet/{D}.{ending}"]
    for there in (names, whole):
        theirs, _ = variant_compatible_siblings(there, variant=variant or None)
        patterns = [f"unet/{name}" for name in _patterns((D,), variant, ending)]
        ours = {name for name in there if any(fnmatch(name, p) for p in patterns)}
        assert ours == set(theirs) == set(there)
    for other in set(VARIANTS) - {variant}:
        patterns = [f"unet/{name}" for name in _patterns((D,), other, ending)]
        assert not any(fnmatch(name, p) for name in [*names, *whole] for p in patterns), other


def test_subfolders_are_not_searched(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-5").mkdir()
    write(tmp_path / "checkpoint-5", "model.safetensors")
    assert find_weights(tmp_path, STEMS) == []
    assert find_weights(tmp_path / "nowhere", STEMS) == []
