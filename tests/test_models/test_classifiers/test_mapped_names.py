"""Tests that projected class names are cached until the projection changes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from odise_mm.models import MaskPrediction, OpenVocabClassifier, TextEncoder
from odise_mm.vocabulary import Vocabulary
from tests.support.parts import clip, random_image, segmentor

VOCABULARY = Vocabulary((("cat", "kitten"), ("sky",), ("dog",)), (True, False, True))


@pytest.fixture
def classifier() -> OpenVocabClassifier:
    torch.manual_seed(0)
    return OpenVocabClassifier(TextEncoder(clip()), 32).eval()


def mapped(classifier: OpenVocabClassifier) -> Tensor:
    with torch.no_grad():
        return classifier.class_embeddings(VOCABULARY)


def computed(classifier: OpenVocabClassifier) -> Tensor:
    with torch.no_grad():
        names = classifier.text_encoder(VOCABULARY.flat[0])
        return classifier.text_proj(names.to(classifier.text_proj.weight))


def step(layer: nn.Linear) -> None:
    layer(torch.ones(1, 64)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


def load(layer: nn.Linear) -> None:
    layer.load_state_dict({key: value + 1 for key, value in layer.state_dict().items()})


def swap(layer: nn.Linear) -> None:
    """Change weights in place, like averaged weights, without torch's version counter."""
    layer.bias.data.copy_(layer.bias.data * 2)


def replace(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(torch.randn(32, 64))


def test_cached_for_many_images(classifier: OpenVocabClassifier) -> None:
    first = mapped(classifier)
    assert torch.equal(first, computed(classifier))
    assert mapped(classifier) is first
    classifier.forget_vocabularies()
    assert mapped(classifier) is not first


@pytest.mark.parametrize("change", [step, load, swap, replace])
def test_changed_weights_are_detected(
    change: Callable[[nn.Linear], None], classifier: OpenVocabClassifier
) -> None:
    before = mapped(classifier).clone()
    change(classifier.text_proj)
    after = mapped(classifier)
    assert torch.equal(after, computed(classifier)) and not torch.equal(after, before)
    assert mapped(classifier) is after


def test_changed_dtype_is_detected(classifier: OpenVocabClassifier) -> None:
    before = mapped(classifier)
    classifier.text_proj.double()
    after = mapped(classifier)
    assert after.dtype == torch.float64 and before.dtype == torch.float32
    torch.testing.assert_close(after.float(), before)


def test_cache_is_not_used_in_training(classifier: OpenVocabClassifier) -> None:
    kept = mapped(classifier)
    tracked = classifier.class_embeddings(VOCABULARY)
    assert tracked is not kept and tracked.requires_grad and torch.equal(tracked, kept)
    classifier.train()
    assert mapped(classifier) is not kept
    (logits,) = classifier.supervised_logits([torch.ones(1, 2, 32)], VOCABULARY)
    logits.sum().backward()
    assert classifier.text_proj.weight.grad.abs().sum() > 0
    assert mapped(classifier.eval()) is kept  # the weights are the same


def test_full_precision_under_autocast(classifier: OpenVocabClassifier) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mapped(classifier), computed_in_full_precision(classifier))


def computed_in_full_precision(classifier: OpenVocabClassifier) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return computed(classifier)


def test_changed_embeddings_are_projected_again(classifier: OpenVocabClassifier) -> None:
    before = mapped(classifier)
    classifier.text_encoder.forget()
    assert mapped(classifier) is not before


def test_copies_have_their_own_cache(classifier: OpenVocabClassifier) -> None:
    before = mapped(classifier)
    other = copy.deepcopy(classifier)
    other.text_proj.weight.data.mul_(2)
    assert torch.equal(mapped(other), computed(other))
    assert mapped(classifier) is before


def test_predictions_with_and_without_cache_are_equal(classifier: OpenVocabClassifier) -> None:
    embeddings = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    prediction = MaskPrediction(embeddings, embeddings)
    with torch.no_grad():
        first = classifier(prediction, [], VOCABULARY)
        second = classifier(prediction, [], VOCABULARY)
    tracked = classifier(prediction, [], VOCABULARY)
    for name in ("logits", "p_void"):
        one, two, three = (getattr(found, name) for found in (first, second, tracked))
        assert torch.equal(one, two) and torch.equal(one, three)


def test_second_image_projects_no_names() -> None:
    model = segmentor()
    rows, calls = [], []
    model.classifiers[0].text_proj.register_forward_pre_hook(
        lambda _, inputs: rows.append(len(inputs[0]))
    )
    model.classifiers[0].text_encoder.register_forward_hook(lambda *_: calls.append(1))
    image = random_image(64, 64)[None] / 255
    with torch.no_grad():
        first = model(image, vocabulary=VOCABULARY)
        assert rows == [4, 1] and len(calls) == 2  # names and void; one call for each template
        second = model(image, vocabulary=VOCABULARY)
    assert rows[2:] == [1] and len(calls) == 2
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)
