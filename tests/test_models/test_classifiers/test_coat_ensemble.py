"""Compare CLIP-conditioned objectness with its formula in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from odise_mm.config.building import build_model
from odise_mm.config.finding import load_config
from odise_mm.errors import ConfigError
from odise_mm.models import ClassPrediction, CoatEnsemble, GeometricEnsemble
from odise_mm.vocabulary import Vocabulary

CONFIGS = Path(__file__).resolve().parents[3] / "projects/coat/configs"
TRAINED = Vocabulary((("cat",), ("tree",)), (True, False))
VOCABULARY = Vocabulary((("cat",), ("lynx",), ("sky",), ("tree",)), (True, True, False, False))
IS_BASE = np.array([True, False, False, True])


@pytest.fixture
def class_predictions() -> list[ClassPrediction]:
    generator = torch.Generator().manual_seed(0)
    own, clip = (4 * torch.randn(2, 6, 4, generator=generator) for _ in range(2))
    return [ClassPrediction(own, torch.rand(2, 6, generator=generator)), ClassPrediction(clip)]


def softmax(logits: torch.Tensor) -> np.ndarray:
    e = np.exp(logits.double().numpy())
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("coat_lambda", [0.5, 1.0])
def test_equals_the_formula(coat_lambda: float, class_predictions: list[ClassPrediction]) -> None:
    own, clip = class_predictions
    p_own, p_clip = softmax(own.logits), softmax(clip.logits)
    p_void = own.p_void.double().numpy() * (1 - coat_lambda * p_clip.max(-1))
    p = np.where(IS_BASE, p_own**0.6 * p_clip**0.4, p_own**0.2 * p_clip**0.8)
    p *= (1 - p_void[..., None]) / p.sum(-1, keepdims=True)
    ensemble = CoatEnsemble(coat_lambda, alpha=0.4, beta=0.8, train_vocabulary=TRAINED)
    result = ensemble(class_predictions, VOCABULARY).numpy()
    np.testing.assert_allclose(result, np.concatenate([p, p_void[..., None]], -1), atol=1e-6)
    np.testing.assert_allclose(result.sum(-1), 1, atol=1e-6)


def test_lambda_0_is_the_geometric_ensemble(class_predictions: list[ClassPrediction]) -> None:
    plain = GeometricEnsemble(train_vocabulary=TRAINED)(class_predictions, VOCABULARY)
    assert CoatEnsemble(0.0, train_vocabulary=TRAINED)(class_predictions, VOCABULARY).equal(plain)


def test_only_objectness_changes(class_predictions: list[ClassPrediction]) -> None:
    plain = GeometricEnsemble(train_vocabulary=TRAINED)(class_predictions, VOCABULARY)
    result = CoatEnsemble(0.5, train_vocabulary=TRAINED)(class_predictions, VOCABULARY)
    assert (result[..., -1] < plain[..., -1]).all()
    assert (result[..., -1] >= plain[..., -1] / 2).all()  # CLIP's confidence is at most 1
    classes, before = result[..., :-1], plain[..., :-1]
    torch.testing.assert_close(
        classes / classes.sum(-1, keepdim=True), before / before.sum(-1, keepdim=True)
    )


def test_huge_logits_stay_finite(class_predictions: list[ClassPrediction]) -> None:
    confident = ClassPrediction((1e3 * class_predictions[1].logits).half())
    result = CoatEnsemble(1.0, train_vocabulary=TRAINED)(
        [class_predictions[0], confident], VOCABULARY
    )
    assert result.isfinite().all() and result.dtype == torch.float32


def test_missing_clip_prediction_raises(class_predictions: list[ClassPrediction]) -> None:
    with pytest.raises(ValueError, match="CoatEnsemble needs CLIP's prediction.*two classifiers"):
        CoatEnsemble(train_vocabulary=TRAINED)(class_predictions[:1], VOCABULARY)


@pytest.mark.parametrize("variant", ["label", "caption"])
def test_config_changes_only_the_ensemble(variant: str) -> None:
    config = load_config(CONFIGS / f"odise_{variant}_coat.py")
    plain = load_config(f"odise_coco_{variant}")
    with torch.device("meta"):
        ensemble = build_model(config).ensemble
    expected = plain.model.ensemble
    assert (type(ensemble), ensemble.coat_lambda) == (CoatEnsemble, 0.5)
    assert (ensemble.alpha, ensemble.beta) == (expected.alpha, expected.beta)
    del config.model["ensemble"], plain.model["ensemble"]
    assert config.model == plain.model


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_lambda_out_of_range_raises(value: float) -> None:
    config = load_config(CONFIGS / "odise_label_coat.py")
    config.model.ensemble.coat_lambda = value
    with (
        torch.device("meta"),
        pytest.raises(ConfigError, match=f"coat_lambda={value}: must be a weight between 0 and 1"),
    ):
        build_model(config)
