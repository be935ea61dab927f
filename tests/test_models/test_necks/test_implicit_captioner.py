"""Tests of the implicit captioner: its equation in numpy, initialization and parameters."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor

from odise_mm.models import EmptyCaptioner, ImplicitCaptioner
from tests.support.parts import clip, random_weights

EMPTY = torch.randn(1, 77, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_initial_condition_is_the_empty_prompt(images: Tensor) -> None:
    condition = ImplicitCaptioner(clip(), EMPTY, time_width=32, num_steps=2)(images)
    assert torch.equal(condition.context, EMPTY.expand(3, -1, -1))
    assert torch.equal(condition.time, torch.zeros(3, 2, 32))


def test_initial_position_embedding_is_small() -> None:
    captioner = ImplicitCaptioner(clip(), EMPTY, time_width=512)
    for table in (captioner.context.positional_embedding, captioner.time.positional_embedding):
        assert 0.015 < table.std() < 0.025


def test_equals_the_formula(images: Tensor) -> None:
    captioner = random_weights(
        ImplicitCaptioner(deepcopy(clip()), EMPTY, time_width=32, num_steps=2)
    )
    captioner.context_gate.data.mul_(10)
    with torch.no_grad():
        condition = captioner(images)
        v = captioner.clip.encode_image(images).numpy().astype(np.float64)
    w = {k: p.detach().numpy().astype(np.float64) for k, p in captioner.named_parameters()}

    def mapped(part: str) -> np.ndarray:
        linear = v @ w[f"{part}.linear.weight"].T + w[f"{part}.linear.bias"]
        return linear[:, None, :] + w[f"{part}.positional_embedding"]

    context = EMPTY.numpy() + np.tanh(w["context_gate"]) * mapped("context")
    time = np.tanh(w["time_gate"]) * mapped("time")
    np.testing.assert_allclose(condition.context.numpy(), context, atol=1e-5)
    np.testing.assert_allclose(condition.time.numpy(), time, atol=1e-5)


def test_only_the_captioners_own_parameters_are_trained(images: Tensor) -> None:
    captioner = random_weights(ImplicitCaptioner(deepcopy(clip()), EMPTY, time_width=32)).train()
    condition = captioner(images)
    (condition.context.sum() + condition.time.sum()).backward()
    trained = {name for name, p in captioner.named_parameters() if p.requires_grad}
    assert trained == set(captioner.state_dict())
    assert trained == {
        "context_gate",
        "time_gate",
        *(
            f"{part}.{name}"
            for part in ("context", "time")
            for name in ("linear.weight", "linear.bias", "positional_embedding")
        ),
    }
    for name, parameter in captioner.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name


def test_empty_captioner(images: Tensor) -> None:
    captioner = EmptyCaptioner(EMPTY)
    condition = captioner(images)
    assert torch.equal(condition.context, EMPTY.expand(3, -1, -1))
    assert condition.time is None
    assert captioner.state_dict() == {}
    assert list(captioner.parameters()) == []
