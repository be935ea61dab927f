"""TextEncoder: equality with open_clip, and caching."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor

from odise_mm.models import FrozenCLIP, TextEncoder
from odise_mm.models.clip import text_encoder
from odise_mm.vocabulary import Vocabulary
from tests.support.parts import TINY_CLIP, clip, relative_error

VOCABULARY = Vocabulary((("cat", "kitten"), ("sky",)), (True, False))


class Counting:
    """Records the texts that a CLIP embeds."""

    def __init__(self, model: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[list[str]] = []
        plain = model.encode_text

        def encode_text(texts: Sequence[str], *args: int) -> Tensor:
            self.calls.append(list(texts))
            return plain(texts, *args)

        monkeypatch.setattr(model, "encode_text", encode_text)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(clip(), monkeypatch)


def reference(texts: Sequence[str]) -> Tensor:
    with torch.no_grad():
        return clip().model.encode_text(open_clip.SimpleTokenizer()(list(texts)))


def test_equals_open_clip() -> None:
    texts = ["cat", "", "a photo of a traffic light.", "東京タワー"]
    embeddings = TextEncoder(clip())(texts)
    assert embeddings.dtype == torch.float32
    assert relative_error(embeddings, reference(texts)) < 1e-5


def test_a_name_is_embedded_once(counting: Counting) -> None:
    encoder = TextEncoder(clip())
    first = encoder(["cat", "dog", "cat"])
    assert counting.calls == [["cat", "dog"]]
    assert torch.equal(first[0], first[2])
    again = encoder(["dog", "bird", "cat"])
    assert counting.calls[1:] == [["bird"]]
    assert torch.equal(again[[2, 0]], first[:2])
    encoder(["bird", "dog"])
    assert len(counting.calls) == 2


def test_cache_is_bounded_and_forgets_the_oldest_use(counting: Counting) -> None:
    encoder = TextEncoder(clip(), cache_size=3)
    encoder(["a", "b", "c"])
    encoder(["a"])  # b is now the least recently used one
    encoder(["d"])
    encoder(["a", "c", "d"])
    assert counting.calls == [["a", "b", "c"], ["d"]]
    encoder(["b"])
    assert counting.calls[-1] == ["b"]
    # one call may have more names than fit into the cache
    many = encoder(list("efghij"))
    assert relative_error(many, reference("efghij")) < 1e-5
    assert len(encoder._cache) == 3


def test_disk_cache_serves_other_instances(counting: Counting, tmp_path: Path) -> None:
    file = tmp_path / "cache" / "text.sqlite"
    first = TextEncoder(clip(), cache_file=str(file))(["cat", "dog"])
    other = TextEncoder(clip(), cache_file=str(file))
    assert torch.equal(other(["dog", "cat", "bird"])[:2], first[[1, 0]])
    assert counting.calls == [["cat", "dog"], ["bird"]]


def test_disk_cache_is_keyed_by_the_weights(tmp_path: Path) -> None:
    file = str(tmp_path / "text.sqlite")
    ours = TextEncoder(clip(), cache_file=file)(["cat"])
    other = FrozenCLIP(TINY_CLIP)
    theirs = TextEncoder(other, cache_file=file)(["cat"])
    torch.testing.assert_close(theirs, other.encode_text(["cat"]))
    assert relative_error(theirs, ours) > 0.1
    assert torch.equal(TextEncoder(clip(), cache_file=file)(["cat"]), ours)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(text_encoder, "print_log", lambda text, **_: messages.append(text))
    return messages


def test_long_text_is_truncated_with_a_warning(warnings: list[str]) -> None:
    encoder = TextEncoder(clip())
    text = " ".join(f"word{i}" for i in range(500))
    cut = encoder([text, "cat"])
    assert len(warnings) == 1
    assert "word0 word1" in warnings[0] and "first 75" in warnings[0]
    assert relative_error(cut, reference([text, "cat"])) < 1e-5
    # text after the limit has no influence
    torch.testing.assert_close(encoder([text + " and more"])[0], cut[0])


def test_text_within_the_limit_gives_no_warning(warnings: list[str]) -> None:
    TextEncoder(clip())(["a photo of " + "a very " * 20 + "large traffic light on a street"])
    assert warnings == []


def test_five_thousand_names(monkeypatch: pytest.MonkeyPatch) -> None:
    short = dict(context_length=12, vocab_size=49408, width=16, heads=1, layers=1)
    model = FrozenCLIP({**TINY_CLIP, "text_cfg": short})
    counting = Counting(model, monkeypatch)
    encoder = TextEncoder(model)
    names = [f"thing {i}" for i in range(5000)]
    embeddings = encoder(names)
    assert embeddings.shape == (5000, 64)
    for i in (0, 255, 256, 2500, 4999):  # at the boundaries of batches
        torch.testing.assert_close(embeddings[i : i + 1], model.encode_text([names[i]]))
    calls = len(counting.calls)
    encoder(names)
    assert len(counting.calls) == calls


def test_matrices_of_vocabularies_are_cached(counting: Counting) -> None:
    encoder = TextEncoder(clip())
    first = encoder.of_vocabulary(VOCABULARY, "a {}.")
    assert counting.calls == [["a cat.", "a kitten.", "a sky."]]
    assert torch.equal(first, encoder(["a cat.", "a kitten.", "a sky."]))
    alike = Vocabulary(VOCABULARY.synonyms, (False, False), "another label")
    for again in (VOCABULARY, alike):
        assert encoder.of_vocabulary(again, "a {}.") is first
    other = encoder.of_vocabulary(VOCABULARY, "{}")
    assert not torch.equal(other, first) and encoder.of_vocabulary(VOCABULARY, "{}") is other
    encoder.forget_vocabularies()
    anew = encoder.of_vocabulary(VOCABULARY, "a {}.")
    assert anew is not first and torch.equal(anew, first)
    assert len(counting.calls) == 2  # the names are cached


def test_vocabularies_are_bounded() -> None:
    encoder = TextEncoder(clip(), cache_size=4)
    first = encoder.of_vocabulary(VOCABULARY, "{}")
    assert encoder.of_vocabulary(VOCABULARY, "{}") is first
    encoder.of_vocabulary(VOCABULARY, "a {}")  # three rows more
    assert encoder.of_vocabulary(VOCABULARY, "{}") is not first
    none = TextEncoder(clip(), cache_size=0)
    assert none.of_vocabulary(VOCABULARY, "{}") is not none.of_vocabulary(VOCABULARY, "{}")


def test_loading_weights_clears_the_caches() -> None:
    model = FrozenCLIP(TINY_CLIP)
    encoder = TextEncoder(model)
    parent = torch.nn.ModuleDict(dict(encoder=encoder, head=torch.nn.Linear(2, 2)))
    first, name = encoder.of_vocabulary(VOCABULARY, "{}"), encoder(["dog"])
    parent.load_state_dict(parent.state_dict())  # without weights of CLIP
    assert encoder.of_vocabulary(VOCABULARY, "{}") is first
    weights = {f"model.{key}": value for key, value in clip().model.state_dict().items()}
    model.load_state_dict(weights)
    wanted = TextEncoder(clip())
    found = encoder.of_vocabulary(VOCABULARY, "{}")
    assert torch.equal(found, wanted.of_vocabulary(VOCABULARY, "{}"))
    assert not torch.equal(found, first)
    assert not torch.equal(encoder(["dog"]), name)
    nested = {f"encoder.clip.{key}": value * 1.5 for key, value in weights.items()}
    parent.load_state_dict(nested, strict=False)
    assert not torch.equal(encoder.of_vocabulary(VOCABULARY, "{}"), found)


def test_casting_clears_the_caches() -> None:
    encoder = TextEncoder(FrozenCLIP(TINY_CLIP))
    first = encoder.of_vocabulary(VOCABULARY, "{}")
    encoder.to(torch.bfloat16)
    assert not torch.equal(encoder.of_vocabulary(VOCABULARY, "{}"), first)


def test_matrices_from_inference_mode_support_autograd() -> None:
    encoder = TextEncoder(clip())
    with torch.inference_mode():
        matrix = encoder.of_vocabulary(VOCABULARY, "{}")
    layer = torch.nn.Linear(64, 2)
    layer(encoder.of_vocabulary(VOCABULARY, "{}")).sum().backward()
    assert encoder.of_vocabulary(VOCABULARY, "{}") is matrix and layer.weight.grad is not None


def test_copies_do_not_share_matrices() -> None:
    encoder = TextEncoder(FrozenCLIP(TINY_CLIP))
    first = encoder.of_vocabulary(VOCABULARY, "{}")
    other = copy.deepcopy(encoder)
    assert len(other._matrices) == 0
    assert torch.equal(other.of_vocabulary(VOCABULARY, "{}"), first)


def test_caches_are_not_in_the_state_dict() -> None:
    encoder = TextEncoder(clip())
    encoder(["cat"])
    assert encoder.state_dict() == {}


def test_builds_its_own_clip_from_a_config() -> None:
    encoder = TextEncoder(dict(type="FrozenCLIP", model=TINY_CLIP))
    assert encoder(["cat"]).shape == (1, encoder.embed_dim) == (1, 64)
