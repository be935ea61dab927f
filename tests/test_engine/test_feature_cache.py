"""The features of frozen parts are computed once, and training with them is the same."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

from odise_mm.engine import FeatureCacheHook
from odise_mm.errors import ConfigError
from odise_mm.models.segmentors.feature_cache import FeatureCache
from tests.support.parts import segmentor
from tests.support.training import make_batch, make_model


class Counting:
    """Two maps per tile, one of them in bfloat16; remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def __call__(self, tiles: Tensor, captions: Sequence[str | None] | None) -> list[Tensor]:
        self.asked.append((len(tiles), captions))
        return [nn.functional.avg_pool2d(tiles, 4) / 3, (tiles[:, :1] * 7).bfloat16()]


@pytest.fixture
def messages() -> Iterator[list[str]]:
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def test_known_tiles_are_not_computed_again() -> None:
    cache, compute = FeatureCache(), Counting()
    tiles = torch.rand(5, 3, 8, 8)
    first = cache(tiles[:3], None, compute)
    mixed = cache(tiles[[4, 2, 0, 3]], None, compute)
    assert compute.asked == [(3, None), (2, None)]
    wanted = compute(tiles, None)
    assert [m.dtype for m in mixed] == [torch.float32, torch.bfloat16]
    for level, full in enumerate(wanted):
        rounded = full.half().to(full.dtype)
        assert torch.equal(first[level], rounded[:3])
        assert torch.equal(mixed[level], rounded[[4, 2, 0, 3]])
    cache(tiles[:1].flip(-1), None, compute)
    cache(tiles[:1, :, :4, :4], None, compute)
    assert len(cache) == 7  # a flipped and a smaller tile are others


def test_captions_belong_to_the_key() -> None:
    cache, compute = FeatureCache(), Counting()
    tile = torch.rand(1, 3, 8, 8)
    for caption in ("a dog", "a cat", None, "a dog"):
        cache(tile, [caption], compute)
    assert compute.asked == [(1, ["a dog"]), (1, ["a cat"]), (1, [None])]


def test_a_full_cache_goes_on_without_keeping(messages: list[str]) -> None:
    compute = Counting()
    size = 2 * (3 * 2 * 2 + 8 * 8)  # bytes of a tile's maps
    cache = FeatureCache(max_gb=2 * size / 1e9)
    tiles = torch.rand(4, 3, 8, 8)
    for _ in range(2):
        found = cache(tiles, None, compute)
    assert compute.asked == [(4, None), (2, None)]
    assert torch.equal(found[0], compute(tiles, None)[0].half().float())
    assert len(messages) == 1 and "max_gb" in messages[0] and "2 tiles" in messages[0]


def test_a_full_disk_goes_on_without_keeping(
    messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    cache, compute = FeatureCache(), Counting()
    tiles = torch.rand(2, 3, 8, 8)
    found = cache(tiles, None, compute)
    assert torch.equal(found[1], compute(tiles, None)[1])
    assert not len(cache) and len(messages) == 1 and "No space left" in messages[0]


def runner_of(model: nn.Module, tmp_path: Any, iteration: int = 0) -> SimpleNamespace:
    logger = SimpleNamespace(info=lambda message: None)
    return SimpleNamespace(model=model, work_dir=str(tmp_path), iter=iteration, logger=logger)


def test_the_captioner_is_trained_until_features_are_kept(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(captions=False)
    hook = FeatureCacheHook(begin=1)
    runner = runner_of(model, tmp_path)
    hook.before_train(runner)
    batch = make_batch(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    calls: list[int] = []
    model.backbone.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    head, gate = model.head.query_feat.weight, model.captioner.context_gate
    for runner.iter in range(4):
        before = head.detach().clone(), gate.detach().clone()
        hook.before_train_iter(runner, 0)
        losses = model.loss(**batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        assert not torch.equal(before[0], head)
        assert torch.equal(before[1], gate) == (runner.iter >= 1)
    # the eight tiles of two images: once with gradients, and once more to be kept
    assert sum(calls) == 16
    assert len(model.feature_cache) == 8

    torch.manual_seed(0)  # of the points at which masks are compared
    kept = model.loss(**batch)
    hook.after_train(runner)
    assert model.feature_cache is None
    compute = model._raw_features

    def rounded(*inputs: Any) -> list[Tensor]:
        """Round as the cache does; computed as there, because gradients change the last bits."""
        with torch.no_grad():
            return [each.half().to(each.dtype).contiguous() for each in compute(*inputs)]

    monkeypatch.setattr(model, "_raw_features", rounded)
    torch.manual_seed(0)
    computed = model.loss(**batch)
    assert kept.keys() == computed.keys()
    assert all(torch.equal(kept[name], computed[name]) for name in kept)
    assert sum(calls) == 24  # computed, not read


def test_evaluation_does_not_read_kept_features(tmp_path: Any) -> None:
    model = make_model(captions=False)
    model.keep_features(FeatureCache())
    batch = make_batch(model)
    model.eval()
    model.extract_pyramids(list(batch["inputs"]))
    assert len(model.feature_cache) == 0


def test_models_whose_features_change_are_refused(tmp_path: Any) -> None:
    hook = FeatureCacheHook()
    with pytest.raises(ConfigError, match="OpenVocabSegmentor, not Linear"):
        hook.before_train(runner_of(nn.Linear(1, 1), tmp_path))
    model = segmentor()
    next(model.backbone.parameters()).requires_grad_(True)
    with pytest.raises(ConfigError, match=r"backbone is trained \(backbone\."):
        hook.before_train_iter(runner_of(model, tmp_path), 0)
    with pytest.raises(ConfigError, match="begin"):
        FeatureCacheHook(begin=-1)
    with pytest.raises(ConfigError, match="max_gb"):
        FeatureCacheHook(max_gb=-1)
