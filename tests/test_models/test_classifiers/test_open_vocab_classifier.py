"""Tests of the trained classifier: logits against loops, and the probability of void."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from odise_mm.models import MaskPrediction, OpenVocabClassifier, TextEncoder
from odise_mm.models.classifiers.base import class_logits
from odise_mm.models.clip.prompts import fill_template
from odise_mm.vocabulary import Vocabulary
from tests.support.parts import clip

VOCABULARY = Vocabulary(
    (("cat", "kitten", "puss"), ("brick wall",), ("dog", "hound")), (True, False, True)
)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture
def embeddings() -> Tensor:
    return torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))


def own_logits(classifier: OpenVocabClassifier, embeddings: Tensor, template: str) -> np.ndarray:
    weight = classifier.text_proj.weight.detach().double().numpy()
    bias = classifier.text_proj.bias.detach().double().numpy()
    scale = min(np.exp(classifier.logit_scale.item()), 100)
    logits = np.zeros((*embeddings.shape[:2], len(VOCABULARY)))
    for index, synonyms in enumerate(VOCABULARY.synonyms):
        prompts = [template.replace("{}", name) for name in synonyms]
        mapped = clip().encode_text(prompts).double().numpy() @ weight.T + bias
        for b in range(2):
            for q in range(4):
                z = embeddings[b, q].double().numpy()
                logits[b, q, index] = scale * max(cosine(z, text) for text in mapped)
    return logits


def test_class_logits_use_the_best_synonym() -> None:
    generator = torch.Generator().manual_seed(1)
    masks = torch.randn(2, 3, 8, generator=generator)
    text = torch.randn(6, 8, generator=generator)
    logits = class_logits(masks, text, VOCABULARY, 10.0).numpy()
    flat = VOCABULARY.flat[1]
    assert logits.dtype == np.float32 and logits.shape == (2, 3, 3)
    for b in range(2):
        for q in range(3):
            for k in range(3):
                own = [text[s].numpy() for s in range(6) if flat[s] == k]
                wanted = max(10 * cosine(masks[b, q].numpy(), t) for t in own)
                assert logits[b, q, k] == pytest.approx(wanted, abs=1e-5)


def test_with_null_class(embeddings: Tensor) -> None:
    classifier = OpenVocabClassifier(TextEncoder(clip()), 32, template="one {}")
    with torch.no_grad():
        class_prediction = classifier(MaskPrediction(embeddings, embeddings), [], VOCABULARY)
    wanted = own_logits(classifier, embeddings, "one {}")
    np.testing.assert_allclose(class_prediction.logits.numpy(), wanted, atol=1e-4)
    with torch.no_grad():
        null = classifier.text_proj(classifier.null_embedding)[0].double().numpy()
    scale = np.exp(classifier.logit_scale.item())
    for b in range(2):
        for q in range(4):
            void = scale * cosine(embeddings[b, q].double().numpy(), null)
            p_void = softmax(np.append(wanted[b, q], void))[-1]
            assert class_prediction.p_void[b, q].item() == pytest.approx(p_void, abs=1e-5)


def test_with_objectness(embeddings: Tensor) -> None:
    classifier = OpenVocabClassifier(TextEncoder(clip()), 32, null_class=False)
    objectness = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        class_prediction = classifier(
            MaskPrediction(embeddings, embeddings, objectness), [], VOCABULARY
        )
    np.testing.assert_allclose(
        class_prediction.logits.numpy(), own_logits(classifier, embeddings, "{}"), atol=1e-4
    )
    for b in range(2):
        for q in range(4):
            wanted = softmax(objectness[b, q].double().numpy())[1]  # "no object" is the second
            assert class_prediction.p_void[b, q].item() == pytest.approx(wanted, abs=1e-6)


def test_neither_null_class_nor_objectness_raises(embeddings: Tensor) -> None:
    classifier = OpenVocabClassifier(TextEncoder(clip()), 32, null_class=False)
    with pytest.raises(ValueError, match="null_class=True.*objectness=True"):
        classifier(MaskPrediction(embeddings, embeddings), [], VOCABULARY)


def test_initial_values() -> None:
    classifier = OpenVocabClassifier(TextEncoder(clip()), 32)
    assert classifier.scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    torch.testing.assert_close(classifier.null_embedding.data, clip().encode_text([""]))
    classifier.logit_scale.data.fill_(7)
    assert classifier.scale == 100


def test_trained_parameters() -> None:
    classifier = OpenVocabClassifier(TextEncoder(clip()), 32)
    trained = {name for name, p in classifier.named_parameters() if p.requires_grad}
    assert trained == {"text_proj.weight", "text_proj.bias", "logit_scale", "null_embedding"}
    assert set(classifier.state_dict()) == trained


def test_template() -> None:
    assert fill_template("a {}, {}.", ["cat {x}", "dog"]) == ["a cat {x}, cat {x}.", "a dog, dog."]
    with pytest.raises(ValueError, match="must contain {} for the name"):
        fill_template("a photo", ["cat"])
