"""Prompt encoding of the diffusion model, compared with transformers."""

from __future__ import annotations

import copy
import gzip
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from torch import nn
from transformers import CLIPTokenizer

from odise_mm.models.backbones.diffusion import condition as diffusion_condition
from odise_mm.models.backbones.diffusion.backbone import DiffusionBackbone
from odise_mm.models.backbones.diffusion.text import tokenize
from tests.test_models.test_backbones.conftest import Diffusion

UNET = dict(unet=(0,))
TEXTS = ["", "a photo of a cat", "  Two DOGS, 23 cats &\n a bird's nest??  ", "naïve café ☕ 猫"]
LONG = " ".join(f"word{i}" for i in range(80))


def their_tokenizer(pad: str) -> CLIPTokenizer:
    """Build transformers' tokenizer as configured on the hub, with the same merges."""
    with gzip.open(open_clip.tokenizer.default_bpe(), "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    words = [*letters, *(f"{x}</w>" for x in letters), *("".join(m.split()) for m in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=[tuple(m.split()) for m in merges],
        pad_token=pad,
        model_max_length=77,
    )


@pytest.mark.parametrize(("pad", "number"), [("<|endoftext|>", 49407), ("!", 0)])
def test_tokens_are_those_of_the_pipelines(pad: str, number: int) -> None:
    texts = [*TEXTS, LONG]
    theirs = their_tokenizer(pad)(
        texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    ours = tokenize(texts, number)
    assert torch.equal(ours, theirs.input_ids)
    assert (ours[-1, 0], ours[-1, -1]) == (49406, 49407)
    assert ours[0].tolist() == [49406, 49407] + [number] * 75


def test_tokens_of_version_2_are_those_it_was_trained_on() -> None:
    # transformers treats every "!" as padding; open_clip's tokenizer, used for training, does not
    texts = [*TEXTS, LONG, "wow!! what a cat!"]
    assert torch.equal(tokenize(texts, 0), open_clip.tokenize(texts))


def test_prompts_are_the_last_hidden_states(full: Diffusion, folder: Path) -> None:
    backbone = DiffusionBackbone("tiny", str(folder), UNET)
    encode = backbone.describe()["prompt_encoder"]
    with torch.no_grad():
        reference = full.text(tokenize(TEXTS, 49407)).last_hidden_state
    embeddings = encode(TEXTS)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings, reference)
    torch.testing.assert_close(encode([TEXTS[2], TEXTS[0], TEXTS[2]]), reference[[2, 0, 2]])
    torch.testing.assert_close(encode([""]), backbone.empty_context)
    assert encode([]).shape == (0, 77, 64)


def test_original_file(tiny_weights: Path, folder: Path) -> None:
    one, other = (
        DiffusionBackbone("tiny", str(source), UNET).encode_prompts(TEXTS)
        for source in (tiny_weights / "sd_v1.ckpt", folder)
    )
    torch.testing.assert_close(one, other)


def test_encoder_is_loaded_once_and_only_if_called(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    backbone = DiffusionBackbone("tiny", str(tmp_path / "copy"), UNET)
    shutil.move(tmp_path / "copy" / "text_encoder", tmp_path / "text_encoder")
    untouched = copy.deepcopy(backbone)
    with pytest.raises(Exception, match="text_encoder"):
        untouched.encode_prompts(["a"])
    shutil.move(tmp_path / "text_encoder", tmp_path / "copy" / "text_encoder")
    before = backbone.encode_prompts(["a"])
    shutil.rmtree(tmp_path / "copy")
    backbone.encode_prompts(["b"])
    torch.testing.assert_close(backbone.encode_prompts(["a"]), before)


def test_encoder_is_not_a_submodule(folder: Path) -> None:
    backbone = DiffusionBackbone("tiny", str(folder), UNET)
    count = sum(p.numel() for p in backbone.parameters())
    backbone.encode_prompts(["a"])
    assert sum(p.numel() for p in backbone.parameters()) == count
    assert not any(isinstance(layer, nn.Embedding) for layer in backbone.modules())
    assert backbone.state_dict() == {}


def test_random_encoder_is_the_same_every_time() -> None:
    state = torch.random.get_rng_state()
    one, other = (DiffusionBackbone("tiny", None, UNET).encode_prompts(TEXTS) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one, other)
    assert not torch.equal(one[0], one[1])


def test_cache_of_texts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion_condition, "CACHE_SIZE", 2)
    prompts = DiffusionBackbone("tiny", None, UNET)._prompts
    first = prompts(TEXTS, "cpu")
    assert len(prompts._cache) == 2
    torch.testing.assert_close(prompts(TEXTS, "cpu"), first)


def test_half_precision_leaves_prompts_exact(folder: Path) -> None:
    backbone = DiffusionBackbone("tiny", str(folder), UNET)
    exact = backbone.encode_prompts(TEXTS)
    backbone = DiffusionBackbone("tiny", str(folder), UNET)
    backbone.cast(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(backbone.encode_prompts(TEXTS), exact)


def test_meta_device(folder: Path) -> None:
    with torch.device("meta"):
        backbone = DiffusionBackbone("tiny", "not/read", UNET)
        embeddings = backbone.encode_prompts(TEXTS)
    assert embeddings.is_meta
    assert embeddings.shape == (4, 77, 64)
