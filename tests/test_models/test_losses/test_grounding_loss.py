"""Tests of the grounding loss against recordings of the published loss and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from odise_mm.errors import ConfigError
from odise_mm.models import GroundingLoss
from tests.support import golden


@pytest.mark.parametrize("case", ["c0", "c1", "c2"])  # one image without words, none, all images
def test_equals_the_published_loss(case: str) -> None:
    arrays = golden.load_arrays("grounding_loss")
    names = ("mask_embed", "word_embed", "logit_scale")
    inputs = {name: torch.tensor(arrays[f"{case}_{name}"], requires_grad=True) for name in names}
    valid = torch.from_numpy(arrays[f"{case}_word_valid_mask"])
    loss = GroundingLoss()(inputs["mask_embed"], inputs["word_embed"], valid, inputs["logit_scale"])
    assert loss.item() == pytest.approx(float(arrays[f"{case}_loss"]), rel=1e-6)
    loss.backward()
    for name, tensor in inputs.items():
        wanted = torch.tensor(arrays[f"{case}_grad_{name}"])
        assert (tensor.grad - wanted).norm() <= 5e-6 * wanted.norm(), name


def by_loops(
    masks: np.ndarray, words: np.ndarray, has: list[bool], scale: float, softmax: str
) -> float:
    """Compute the loss in float64, one number at a time."""
    batch, (queries, count) = len(masks), (masks.shape[1], words.shape[1])
    similarity = np.zeros((batch, batch))
    for i in range(batch):
        for j in range(batch):
            u = np.array(
                [
                    [
                        scale * (m @ w) / (np.linalg.norm(m) * np.linalg.norm(w))
                        for w in words[j].astype(np.float64)
                    ]
                    for m in masks[i].astype(np.float64)
                ]
            )
            for q in range(queries):
                for k in range(count):
                    others = u[:, k] if softmax == "masks" else u[q, :]
                    weight = np.exp(u[q, k]) / np.exp(others).sum()
                    similarity[i, j] += weight * u[q, k] / count
    to_caption = [np.log(np.exp(similarity[i]).sum()) - similarity[i, i] for i in range(batch)]
    to_image = [np.log(np.exp(similarity[:, i]).sum()) - similarity[i, i] for i in range(batch)]
    there = [i for i in range(batch) if has[i]] or range(batch)
    first = sum(to_caption[i] for i in there) / len(there)
    second = sum(to_image[i] for i in range(batch) if has[i]) / batch
    return (first + second) / 2


def draw(batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    masks = torch.randn(batch, 5, 8, generator=generator)
    return masks, torch.randn(batch, 4, 8, generator=generator)


@pytest.mark.parametrize("softmax", ["masks", "words"])
@pytest.mark.parametrize("has", [[True] * 3, [True, False, True], [False] * 3])
def test_equals_plain_loops(softmax: str, has: list[bool]) -> None:
    masks, words = draw()
    valid = torch.tensor(has)[:, None].expand(-1, 4)
    loss = GroundingLoss(loss_weight=2.0, softmax=softmax)(masks, words, valid, torch.tensor(3.0))
    assert loss.item() == pytest.approx(
        2 * by_loops(masks.numpy(), words.numpy(), has, 3.0, softmax), rel=1e-5
    )


def test_the_two_softmaxes_differ() -> None:
    masks, words = draw()
    valid = torch.ones(3, 4, dtype=torch.bool)
    losses = [GroundingLoss(softmax=s)(masks, words, valid, 3.0) for s in ("masks", "words")]
    assert abs(losses[0] - losses[1]) > 0.01


def test_float32_under_autocast() -> None:
    masks, words = draw()
    valid = torch.ones(3, 4, dtype=torch.bool)
    plain = GroundingLoss()(masks, words, valid, torch.tensor(14.0))
    with torch.autocast("cpu", torch.bfloat16):
        cast = GroundingLoss()(masks, words, valid, torch.tensor(14.0))
    assert cast.dtype == torch.float32 and torch.equal(plain, cast)


def test_unknown_softmax_raises() -> None:
    with pytest.raises(ConfigError, match="softmax='queries'.*'masks' or 'words'"):
        GroundingLoss(softmax="queries")
