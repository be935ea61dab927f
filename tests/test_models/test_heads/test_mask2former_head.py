"""Tests of the head against mmdet's Mask2Former head with the same weights, and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmdet.models.dense_heads import Mask2FormerHead
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from torch import Tensor

from odise_mm.models import OpenVocabMask2FormerHead
from odise_mm.models.heads.mask2former_head import MaskEmbedding
from odise_mm.registry import MODELS
from tests.support.parts import head_config, random_weights, relative_error

CHANNELS = [32] * 4


def build(**changes: object) -> OpenVocabMask2FormerHead:
    head = MODELS.build(dict(head_config(**changes), in_channels=CHANNELS))
    random_weights(head, seed=2)
    # Scale the weights so that masks contain both signs, which masked attention and pooling need.
    head.query_feat.weight.data *= 8
    head.mask_embed[-1].weight.data *= 4
    return head.eval()


@pytest.fixture(scope="module")
def pyramid() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(2, 32, 96 // s, 64 // s, generator=generator) for s in (2, 4, 8, 16)]


@pytest.mark.parametrize("with_empty_masks", [False, True])
def test_all_layers_equal_mmdets_head(with_empty_masks: bool, pyramid: list[Tensor]) -> None:
    ours = build(objectness=True)
    if with_empty_masks:  # such queries attend to all positions
        ours.pixel_decoder.mask_feature.bias.data.mul_(30)
    config = head_config()
    del config["type"], config["loss_cls"]
    theirs = Mask2FormerHead(
        in_channels=CHANNELS,
        num_things_classes=1,
        num_stuff_classes=0,
        loss_cls=ConfigDict(type="CrossEntropyLoss", class_weight=[1.0, 0.1]),
        **config,
    ).eval()
    missing, extra = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not missing and all(key.startswith("mask_embedding.") for key in extra)
    samples = [DetDataSample(metainfo=dict(img_shape=(1, 1), pad_shape=(1, 1)))] * 2
    with torch.no_grad():
        predictions = ours(pyramid, all_layers=True)
        classes, masks = theirs(pyramid, samples)
    assert len(predictions) == len(masks) == 4  # before the first layer and after three layers
    empty = [(m < 0).flatten(2).all(-1) for m in masks]
    assert any(e.any() for e in empty) == with_empty_masks
    for prediction, their_classes, their_masks in zip(predictions, classes, masks, strict=True):
        assert with_empty_masks or 0.1 < (their_masks > 0).float().mean() < 0.9
        assert relative_error(prediction.masks, their_masks) < 1e-5
        assert relative_error(prediction.objectness, their_classes) < 1e-5


@pytest.mark.parametrize("objectness", [False, True])
def test_last_layer_equals_all_layers(objectness: bool, pyramid: list[Tensor]) -> None:
    head = build(objectness=objectness)
    with torch.no_grad():
        every, (last,) = head(pyramid, all_layers=True), head(pyramid)
    for name, value in last._asdict().items():
        if value is None:
            given_later = {"features", "frames", "named", "pyramid"}  # by the segmentor
            assert name in given_later | (set() if objectness else {"objectness"})
        else:
            assert relative_error(value, getattr(every[-1], name)) < 1e-4, name


def test_images_of_a_batch_are_independent(pyramid: list[Tensor]) -> None:
    head = build()
    with torch.no_grad():
        (both,) = head(pyramid)
        for i in range(2):
            (alone,) = head([level[i : i + 1] for level in pyramid])
            assert relative_error(both.masks[i : i + 1], alone.masks) < 1e-4
            assert relative_error(both.embeddings[i : i + 1], alone.embeddings) < 1e-4


def test_no_class_embedding_without_objectness() -> None:
    assert not any("cls" in key for key in build().state_dict())
    assert build(objectness=True).cls_embed.out_features == 2


def test_gradients_reach_every_parameter(pyramid: list[Tensor]) -> None:
    head = build(objectness=True).train()
    loss = sum(
        part.square().mean()
        for prediction in head(pyramid, all_layers=True)
        for part in prediction
        if part is not None
    )
    loss.backward()
    assert [n for n, p in head.named_parameters() if p.grad is None] == []


def test_mask_embedding_equals_numpy() -> None:
    embed = random_weights(MaskEmbedding(16, 16, norm=True), seed=4)
    generator = torch.Generator().manual_seed(6)
    queries = torch.randn(2, 5, 16, generator=generator)
    masks = torch.randn(2, 5, 6, 7, generator=generator)
    masks[0, 2] = -1  # empty mask
    masks[1, 3] = 1
    masks[1, 4, 0, 0] = 0  # a probability of exactly 0.5 is outside the mask
    features = torch.randn(2, 16, 6, 7, generator=generator)
    with torch.no_grad():
        embeddings = embed(queries, masks, features).numpy()
    w = {k: v.numpy().astype(np.float64) for k, v in embed.state_dict().items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    for image in range(2):
        for query in range(5):
            pooled, count = np.zeros(16), 0
            for y in range(6):
                for x in range(7):
                    if 1 / (1 + np.exp(-masks[image, query, y, x].item())) > 0.5:
                        pooled += features[image, :, y, x].double().numpy()
                        count += 1
            pooled /= max(count, 1)
            hidden = linear(norm(pooled, "pool_proj.0"), "pool_proj.1")
            hidden = norm(hidden + queries[image, query].double().numpy(), "norm")
            hidden = np.maximum(linear(hidden, "mlp.0"), 0)
            hidden = np.maximum(linear(hidden, "mlp.2"), 0)
            wanted = linear(hidden, "mlp.4")
            np.testing.assert_allclose(embeddings[image, query], wanted, atol=1e-5)


def test_pooling_does_not_backpropagate_to_masks() -> None:
    embed = MaskEmbedding(16, 16, norm=True)
    masks = torch.randn(1, 2, 4, 4, requires_grad=True)
    features = torch.randn(1, 16, 4, 4, requires_grad=True)
    embed(torch.randn(1, 2, 16), masks, features).sum().backward()
    assert masks.grad is None and features.grad is not None


def test_unknown_argument_raises() -> None:
    with pytest.raises(TypeError, match="has no argument num_querys; it has: .*num_queries"):
        build(num_querys=10)


def test_masks_on_unlabeled_pixels_are_left_out_of_the_class_loss() -> None:
    """Queries: on the annotated object, on unlabeled pixels, half and half, and an empty one."""
    from odise_mm.models.heads.mask2former_head import _is_unlabeled

    target = torch.zeros(1, 8, 8)
    target[0, :, :4] = 1
    masks = torch.full((4, 4, 4), -1.0)
    masks[0, :, :2] = masks[1, :, 2:] = masks[2, :, 1:3] = 1
    assert _is_unlabeled(masks, target, 0.6).tolist() == [False, True, False, False]
    assert _is_unlabeled(masks, target, 0.5).tolist() == [False, True, True, False]
    assert _is_unlabeled(masks, target[:0], 1.0).tolist() == [True, True, True, False]
