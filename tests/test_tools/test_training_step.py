"""Cost of a training step: counts equal a real step, and frozen weights get no gradients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from odise_mm.analysis import training_cost
from odise_mm.analysis.meta import build_on_meta, flop_counter, running_on_meta
from odise_mm.analysis.parts import part_of
from odise_mm.analysis.training_cost import Kept, count, fused_attention, surrogate_loss
from odise_mm.analysis.training_ways import (
    BASELINE,
    CHECKPOINTED,
    OURS,
    gradient_nodes,
    trained_as,
)
from odise_mm.config.building import build_model
from odise_mm.utils import deformable_attention
from tests.support.parts import segmentor_config
from tests.support.training import make_batch, make_model
from tools.analysis_tools import training_step as tool

TRAINED = {
    "captioner",
    "feature projection",
    "pixel decoder",
    "transformer decoder",
    "mask embedding",
    "names",
}


@pytest.fixture(scope="module")
def cfg() -> Config:
    return Config(dict(model=segmentor_config()))


@pytest.fixture(scope="module")
def counts(cfg: Config) -> dict[str, dict]:
    ways = (OURS, CHECKPOINTED, BASELINE)
    return {way: count(cfg, 128, way, sixteen_bit=False) for way in ways}


@pytest.mark.parametrize("way", [OURS, BASELINE])
def test_counts_equal_a_real_step(
    way: str, cfg: Config, counts: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The matrix products with which a CPU computes gradients of small maps are not counted.
    monkeypatch.setattr(deformable_attention, "_DENSE", 0)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    model.classifiers[0].text_encoder(model.vocabulary.flat[0])  # embed the names beforehand
    with trained_as(model, way), flop_counter() as flops:
        kept = Kept(model, False, flops)
        with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
            loss = surrogate_loss(model, torch.rand(3, 128, 128))
        forward = flops.get_total_flops()
        loss.backward()
        backward = flops.get_total_flops() - forward
    counted = counts[way]
    assert counted["forward_flops"] == pytest.approx(forward, rel=0.01)
    assert counted["backward_flops"] == pytest.approx(backward, rel=0.01)
    assert counted["kept_bytes"] == pytest.approx(sum(kept.storages.values()), rel=0.05)
    for part, number in counted["gradient_numbers"].items():
        got = [p for n, p in model.named_parameters() if part_of(n) == part]
        assert number == sum(p.numel() for p in got if p.grad is not None), part


def test_parts_with_gradients(counts: dict) -> None:
    assert set(counts[OURS]["gradient_nodes"]) == TRAINED
    more = set(counts[BASELINE]["gradient_nodes"]) - TRAINED
    assert more == {"UNet", "VAE encoder", "VAE decoder", "CLIP image tower"}
    assert counts[CHECKPOINTED]["gradient_nodes"] == counts[OURS]["gradient_nodes"]


@pytest.mark.parametrize("captions", [False, True])
def test_real_losses_have_gradients_for_the_trained_parts_only(captions: bool) -> None:
    model = make_model(captions)
    words = [["dog"] * 8] * 2 if captions else None
    losses = model(**make_batch(model, words=words), mode="loss")
    found = gradient_nodes(model, sum(losses.values()))
    assert set(found["nodes"]) == TRAINED
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(found["nodes"].values()) == len(trained)
    assert sum(found["numbers"].values()) == sum(p.numel() for p in trained)


def test_no_work_for_weight_gradients_of_the_unet(cfg: Config) -> None:
    """The backward pass for the input of a layer costs as much as its forward pass."""
    model = build_on_meta(cfg)
    costs = {}
    for weights in (False, True):
        model.backbone.unet.requires_grad_(weights)
        with running_on_meta(), torch.enable_grad(), fused_attention():
            tiles = torch.empty(1, 3, 64, 64, device="meta")
            condition = model.captioner(tiles)
            condition = condition._replace(
                context=condition.context.requires_grad_(), time=condition.time.requires_grad_()
            )
            latent = torch.empty(1, 4, 8, 8, device="meta")
            with flop_counter() as flops:
                taps = model.backbone._denoiser_taps(latent, 0, 0, condition, tiles)
                forward = flops.get_total_flops()
                sum(tap.mean() for tap in taps).backward()
            costs[weights] = (flops.get_total_flops() - forward) / forward
    assert costs[False] < 1.2 < 1.8 < costs[True]


def test_the_order_of_costs(counts: dict) -> None:
    ours, checkpointed, baseline = (counts[w] for w in counts)
    assert ours["backward_flops"] < checkpointed["backward_flops"] < baseline["backward_flops"]
    kept = [w["kept_bytes"] for w in (checkpointed, ours, baseline)]
    assert kept == sorted(kept) and kept[0] + checkpointed["recomputed_bytes"] < kept[1]
    assert ours["recomputed_bytes"] == 0 < checkpointed["recomputed_bytes"]


def test_trained_as_restores_the_model() -> None:
    torch.manual_seed(0)
    model = build_model(Config(dict(model=segmentor_config())))
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    with trained_as(model, BASELINE):
        assert model.backbone.unet.conv_in.weight.requires_grad
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before
    assert "encode" not in vars(model.backbone) and "encode_image" not in vars(model.clip)


def test_program(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    cfg: Config,
    counts: dict,
) -> None:
    monkeypatch.setattr(training_cost, "load_model_config", lambda _: cfg)
    monkeypatch.setattr(training_cost, "count", lambda _, __, way, sixteen_bit: dict(counts[way]))
    out = tmp_path / "new" / "numbers.json"
    arguments = ["odise_tiny", "--size", "64", "--measure", "--repeats", "1", "--json", str(out)]
    assert tool.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "AccumulateGrad" in printed and "kept for the backward pass" in printed
    for numbers in json.loads(out.read_text())["ways"].values():
        assert min(numbers["measured"].values()) > 0
    with pytest.raises(SystemExit):
        tool.main(["odise_tiny", "--size", "100"])
    assert "must be a multiple of 64" in capsys.readouterr().err
