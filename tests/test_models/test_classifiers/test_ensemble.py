"""Tests of the geometric ensemble against equation 10 in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from odise_mm.models import ClassPrediction, GeometricEnsemble
from odise_mm.vocabulary import Vocabulary

TRAINED = Vocabulary((("cat", "kitten"), ("tree",), ("person",)), (True, False, True))
# "Kitten" differs from a trained synonym only in the capital letter; "trees" is another name.
VOCABULARY = Vocabulary((("lynx", "Kitten"), ("trees",), ("person",), ("sky",)), (True,) * 4)
SEEN = np.array([True, False, True, False])


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def class_predictions(scale: float = 3.0) -> list[ClassPrediction]:
    generator = torch.Generator().manual_seed(0)
    own, clip = (scale * torch.randn(2, 5, 4, generator=generator) for _ in range(2))
    return [ClassPrediction(own, torch.rand(2, 5, generator=generator)), ClassPrediction(clip)]


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.7), (0.35, 0.65), (0.0, 1.0)])
def test_equals_the_formula(alpha: float, beta: float) -> None:
    own, clip = class_predictions()
    result = GeometricEnsemble(alpha, beta, TRAINED)([own, clip], VOCABULARY).double().numpy()
    p_own, p_clip = (softmax(o.logits.double().numpy()) for o in (own, clip))
    weight = np.where(SEEN, alpha, beta)
    p = p_own ** (1 - weight) * p_clip**weight
    p /= p.sum(-1, keepdims=True)
    void = own.p_void.double().numpy()[..., None]
    np.testing.assert_allclose(result[..., :-1], p * (1 - void), atol=1e-6)
    np.testing.assert_allclose(result[..., -1:], void, atol=1e-7)
    np.testing.assert_allclose(result.sum(-1), 1, atol=1e-5)


def test_single_prediction_is_unchanged() -> None:
    own, _ = class_predictions()
    result = GeometricEnsemble(train_vocabulary=TRAINED)([own], VOCABULARY)
    wanted = own.logits.softmax(-1) * (1 - own.p_void[..., None])
    torch.testing.assert_close(result[..., :-1], wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_underflow_stays_finite(dtype: torch.dtype) -> None:
    far = torch.tensor([[[0.0, 1000.0, -1000.0, 0.0]]]).to(dtype)
    given = [ClassPrediction(far, torch.zeros(1, 1)), ClassPrediction(far.flip(-1))]
    ensemble = GeometricEnsemble(train_vocabulary=TRAINED)
    assert ensemble.ensemble_logits(given, VOCABULARY).isfinite().all()
    result = ensemble(given, VOCABULARY)
    assert result.isfinite().all() and result.dtype == torch.float32
    # Class 1: 0.3 * 0 - 0.7 * 2000; class 2: -0.7 * 2000 + 0.3 * 0; the others: -1000 each.
    np.testing.assert_allclose(result[0, 0].numpy(), [0.5, 0, 0, 0.5, 0], atol=1e-6)


def test_train_vocabulary_by_name() -> None:
    ensemble = GeometricEnsemble(train_vocabulary="coco")
    assert len(ensemble.train_vocabulary) == 133
    assert ensemble.state_dict() == {}


@pytest.mark.parametrize(
    ("alpha", "beta", "culprit"), [(1.2, 0.7, "alpha=1.2"), (0, -1, "beta=-1")]
)
def test_weights_out_of_range_raise(alpha: float, beta: float, culprit: str) -> None:
    with pytest.raises(ValueError, match=f"{culprit}: must be a weight between 0 and 1"):
        GeometricEnsemble(alpha, beta, TRAINED)


@pytest.mark.parametrize("count", [0, 3, "no p_void"])
def test_wrong_predictions_raise(count: int | str) -> None:
    own, clip = class_predictions()
    given = {0: [], 3: [own, clip, clip], "no p_void": [clip, own]}[count]
    expected = "predictions of which the first has p_void"
    expected = "has weights for 2 predictions and got 3: set `more`" if count == 3 else expected
    with pytest.raises(ValueError, match=expected):
        GeometricEnsemble(train_vocabulary=TRAINED)(given, VOCABULARY)


def test_gradients_flow_back() -> None:
    own, clip = class_predictions()
    logits: Tensor = own.logits.requires_grad_()
    GeometricEnsemble(train_vocabulary=TRAINED)([own, clip], VOCABULARY)[..., 0].sum().backward()
    assert logits.grad.abs().sum() > 0
