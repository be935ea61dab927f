"""Word-level tokenizer, in CLIP and in a diffusion model."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from odise_mm.errors import ConfigError, VocabularyError
from odise_mm.models import DiffusionBackbone, FrozenCLIP, OpenCLIPBackbone
from odise_mm.models.backbones.diffusion.arch_from_files import get_arch
from odise_mm.models.backbones.diffusion.presets import ARCHITECTURES, DiffusionArch
from odise_mm.models.clip.text_encoder import TextEncoder
from odise_mm.models.clip.word_tokenizer import WordTokenizer
from tests.support.parts import TINY_CLIP

WORDS = ("a", "red", "polka-dot", "star", "o'clock", "été")
TEXT = dict(context_length=8, width=32, heads=2, layers=1)
CONFIG = {**TINY_CLIP, "text_cfg": TEXT}


def test_tokens() -> None:
    tokenizer = WordTokenizer(WORDS, 7)
    assert tokenizer.vocab_size == 9
    rows = tokenizer(["A red, Polka-Dot STAR.", "", "red o'clock\n(ÉTÉ)!", "a a a a a red red"])
    assert rows.tolist() == [
        [7, 1, 2, 3, 4, 8, 0],
        [7, 8, 0, 0, 0, 0, 0],
        [7, 2, 5, 6, 8, 0, 0],
        [7, 1, 1, 1, 1, 1, 8],  # truncated, with end token
    ]
    assert rows.dtype == torch.int64
    assert torch.equal(tokenizer("a star"), tokenizer(["a star"]))
    assert tokenizer.encode("star a") == [4, 1]


def test_file_holds_the_words(tmp_path: Path) -> None:
    WordTokenizer(WORDS, 7).save(tmp_path / "words.txt")
    assert (tmp_path / "words.txt").read_text(encoding="utf-8").split() == list(WORDS)
    assert WordTokenizer(tmp_path / "words.txt", 7).words == WORDS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a red stra", "'a red stra': 'stra' is not one of the 6 words .*did you mean star"),
        ("zebra", r"the words are: a, red, polka-dot, star, o'clock, été\)"),
        ("2 red", "'2' is not one of"),
        ("polka star", "'polka' is not one of"),
    ],
)
def test_unknown_words_are_errors(text: str, message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        WordTokenizer(WORDS, 7)([text])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "the list of words is empty"),
        (("a", "b", "a"), "contains a more than once"),
        (("a", "Red"), "'Red' is not one word in lower case"),
        (("brick wall",), "'brick wall' is not one word"),
        ("/nowhere/words.txt", "/nowhere/words.txt: no such list of words"),
    ],
)
def test_unusable_lists(words: str | tuple[str, ...], message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        WordTokenizer(words, 7)


# --- CLIP ---------------------------------------------------------------------------------------


def test_clip_reads_words() -> None:
    clip = FrozenCLIP(CONFIG, words=WORDS)
    assert clip.model.token_embedding.weight.shape == (9, 32)
    texts = ["a red star", "star"]
    with torch.no_grad():
        wanted = clip.model.encode_text(WordTokenizer(WORDS, 8)(texts))
    # small batches are padded, which changes the rounding
    torch.testing.assert_close(clip.encode_text(texts), wanted)
    # the end token is found: padding after it has no influence
    tokens = clip.tokenizer(texts)
    tokens[1, 3:] = 2
    with torch.no_grad():
        torch.testing.assert_close(clip.model.encode_text(tokens)[1], wanted[1])
    assert TextEncoder(clip)(["a star " * 9]).shape == (1, 64)  # truncated, with a warning
    assert "vocab_size" not in TEXT  # the config of the caller is unchanged


def test_other_words_are_another_clip() -> None:
    prints = {FrozenCLIP(CONFIG, words=w).fingerprint() for w in (WORDS, WORDS, WORDS[::-1])}
    assert len(prints) == 2


def test_clip_in_a_folder(tmp_path: Path) -> None:
    made = FrozenCLIP(CONFIG, words=WORDS)
    config = {**CONFIG, "text_cfg": {**TEXT, "vocab_size": 9}}
    content = dict(model_cfg=config, preprocess_cfg=dict(mean=[0.5] * 3, std=[0.25] * 3))
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    made.tokenizer.save(tmp_path / "words.txt")
    state = {key: value + 0.01 for key, value in made.model.state_dict().items()}
    save_file(state, tmp_path / "open_clip_model.safetensors")

    source = str(tmp_path)
    clip = FrozenCLIP(source, source)
    for key, value in clip.model.state_dict().items():
        assert torch.equal(value, state[key]), key
    # as open_clip itself reads the folder
    theirs = open_clip.create_model(f"local-dir:{source}").eval()
    images = torch.rand(2, 3, 56, 56)
    with torch.no_grad():
        wanted = theirs.encode_image((images - 0.5) / 0.25)
        torch.testing.assert_close(clip.encode_image(images), wanted)
        wanted = theirs.encode_text(clip.tokenizer(["a red star"]))
    torch.testing.assert_close(clip.encode_text(["a red star"]), wanted)
    assert clip.fingerprint() == FrozenCLIP(config, source, WORDS).fingerprint()

    provided = OpenCLIPBackbone(clip=clip)(images)
    for one, other in zip(OpenCLIPBackbone(source, source)(images), provided, strict=True):
        torch.testing.assert_close(one, other)
    with torch.device("meta"):
        assert FrozenCLIP(source, source).device.type == "meta"


def test_clip_with_invalid_words_or_folders_raises(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="vocab_size=49408 does not match the words: it must be 9, 6 words"
    ):
        FrozenCLIP(TINY_CLIP, words=WORDS)
    with pytest.raises(ConfigError, match="open_clip_config.json is missing"):
        FrozenCLIP(str(tmp_path))
    with pytest.raises(ValueError, match="no architecture 'no/folder'.*no folder no/folder with"):
        FrozenCLIP("no/folder")
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(
        ConfigError, match="open_clip_config.json is not a config file of open_clip"
    ):
        FrozenCLIP(str(tmp_path))


# --- diffusion ----------------------------------------------------------------------------------

TINY = ARCHITECTURES["tiny"]
SMALL_TEXT = dict(TINY.text, vocab_size=9, max_position_embeddings=8, eos_token_id=8)


def test_diffusion_model_reads_words(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = CLIPTextModel(CLIPTextConfig(**SMALL_TEXT)).eval()
    text.save_pretrained(tmp_path / "text_encoder")
    UNet2DConditionModel(**TINY.unet).save_pretrained(tmp_path / "unet")
    AutoencoderKL(**TINY.vae).save_pretrained(tmp_path / "vae")
    DDPMScheduler(1000, *TINY.betas, "scaled_linear").save_pretrained(tmp_path / "scheduler")
    (tmp_path / "tokenizer").mkdir()
    words = tmp_path / "tokenizer" / "words.txt"
    WordTokenizer(WORDS, 8).save(words)

    source = str(tmp_path)
    arch = get_arch(source)
    assert arch.words == WORDS and arch.text == {**arch.text, **SMALL_TEXT}
    backbone = DiffusionBackbone(source, source)
    with torch.no_grad():
        tokens = torch.tensor([[7, 8] + [0] * 6, [7, 1, 2, 4, 8, 0, 0, 0]])
        wanted = text(tokens).last_hidden_state
        torch.testing.assert_close(backbone.empty_context, wanted[:1])
        torch.testing.assert_close(backbone.encode_prompts(["", "a red star"]), wanted)
        assert all(f.isfinite().all() for f in backbone(torch.rand(1, 3, 64, 64)))
    fields = {name: getattr(arch, name) for name in vars(TINY)}
    other = DiffusionBackbone({**fields, "words": str(words)}, source)
    assert torch.equal(other.empty_context, backbone.empty_context)

    words.write_text("a\nred\n")
    with pytest.raises(ConfigError, match="9 tokens .*for the words in tokenizer/words.txt"):
        get_arch(source)


def test_diffusion_model_with_invalid_words_raises() -> None:
    with pytest.raises(ValueError, match="vocab_size=None must be 9: 6 words"):
        DiffusionBackbone(DiffusionArch(TINY.unet, TINY.vae, TINY.text, words=WORDS))
    sdxl = {**vars(ARCHITECTURES["tiny_sdxl"]), "words": WORDS}
    with pytest.raises(ValueError, match="does not support words: it needs byte pair encoding"):
        DiffusionBackbone(sdxl, taps=dict(unet=(2,)))
