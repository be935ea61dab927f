"""Text towers that are computed up to the end token: equality with open_clip's own forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from odise_mm.models import FrozenCLIP, TextEncoder
from odise_mm.models.clip import WordTokenizer
from odise_mm.models.clip.causal_text import end_positions
from tests.support.parts import TINY_CLIP, clip, random_weights, relative_error

WORDS = ("brick", "cat", "light", "of", "photo", "red", "traffic", "wall")
TEXTS = ["cat", "", "photo of red traffic light", "wall", "red cat", "red " * 40, "of cat", "brick"]
SIZE = dict(context_length=20, vocab_size=len(WORDS) + 3, width=64, heads=2, layers=2)
END = len(WORDS) + 2  # the end token of a WordTokenizer

CUT = {
    "CLIP": {},
    "custom text": dict(custom_text=True),
    "worldwide": dict(pool_type="eos", eos_id=END),
    "worldwide, custom text": dict(pool_type="eos", eos_id=END, custom_text=True),
    "linear projection": dict(proj_bias=True, custom_text=True),
    "no projection": dict(proj_type="none", custom_text=True),
    "custom block": dict(qk_norm=True, scale_attn_inner=True, scale_fc=True, custom_text=True),
}
WHOLE = {
    "SigLIP": dict(no_causal_mask=True, pool_type="last", proj_bias=True, custom_text=True),
    "CLIPA": dict(no_causal_mask=True, pool_type="last"),
    "MobileCLIP": dict(no_causal_mask=True, custom_text=True),
    "causal, last position": dict(pool_type="last", custom_text=True),
    "causal, first position": dict(pool_type="first"),
    "CoCa's class token": dict(embed_cls=True, custom_text=True),
}


def build(text_cfg: dict[str, Any]) -> FrozenCLIP:
    text_cfg = {**SIZE, **text_cfg}
    custom = text_cfg.pop("custom_text", False)
    config = {**TINY_CLIP, "text_cfg": text_cfg, "custom_text": custom}
    model = FrozenCLIP(config, words=WORDS)
    random_weights(model, seed=1, scale=1.5)
    return model


def positions(model: FrozenCLIP, texts: list[str]) -> tuple[Tensor, list[int]]:
    """Embed texts, and record the number of positions in every forward pass."""
    tower = getattr(model.model, "text", model.model)
    seen: list[int] = []
    hook = tower.transformer.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))
    embeddings = model.encode_text(texts)
    hook.remove()
    return embeddings, seen


@pytest.mark.parametrize("kind", [*CUT, *WHOLE])
def test_equals_open_clips_forward_pass(kind: str) -> None:
    model = build({**CUT, **WHOLE}[kind])
    embeddings, seen = positions(model, TEXTS)
    with torch.no_grad():
        wanted = model.model.encode_text(model.tokenizer(TEXTS))
    assert relative_error(embeddings, wanted) < 1e-5
    if kind in CUT:
        assert seen == [2, 3, 4, 7, 20]  # one batch for each number of tokens
    else:
        assert set(seen) == {SIZE["context_length"] + ("class" in kind)}


def test_hugging_face_tower_is_not_cut(tmp_path: Path) -> None:
    transformers.RobertaConfig(
        vocab_size=SIZE["vocab_size"],
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    ).save_pretrained(tmp_path)
    text_cfg = dict(hf_model_name=str(tmp_path), hf_model_pretrained=False)
    model = FrozenCLIP({**TINY_CLIP, "text_cfg": text_cfg})
    tokens = WordTokenizer(WORDS, 20)(TEXTS)
    assert end_positions(model.model, tokens) is None
    model.tokenizer = WordTokenizer(WORDS, 20)
    with torch.no_grad():
        wanted = model.model.encode_text(tokens)
    assert relative_error(model.encode_text(TEXTS), wanted) < 1e-5


def test_an_embedding_does_not_depend_on_the_other_texts() -> None:
    together = clip().encode_text(TEXTS)
    for text, embedding in zip(TEXTS, together, strict=True):
        assert torch.equal(clip().encode_text([text])[0], embedding)
    assert torch.equal(clip().encode_text(TEXTS, batch_size=1), together)
    assert clip().encode_text([]).shape == (0, 64)


def test_sixteen_bits() -> None:
    model = build({}).to(torch.bfloat16)
    with torch.no_grad():
        wanted = model.model.encode_text(model.tokenizer(TEXTS)).float()
    assert relative_error(model.encode_text(TEXTS), wanted) < 0.1


def test_means_over_templates_of_many_names() -> None:
    """Names are embedded some at a time, with the same result."""
    encoder = TextEncoder(build(CUT["CLIP"]))
    names = [f"{a} {b} {c} {d}" for a in WORDS for b in WORDS for c in WORDS for d in WORDS[:3]]
    means = encoder.of_names(names, ["{}", "photo of {}"])
    assert means.shape == (1536, 64)
    for i in (0, 999, 1000, 1535):
        assert torch.equal(means[i : i + 1], encoder.of_names([names[i]], ["{}", "photo of {}"]))
