"""Training in bfloat16: number formats of forward pass, weights and updates. Muon with AdamW."""

import copy
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from odise_mm.config.changing import precision_of, set_precision
from odise_mm.engine import MuonAdamW
from odise_mm.errors import ConfigError
from odise_mm.registry import OPTIM_WRAPPERS

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch < 2.9 has no Muon")


def test_bfloat16_wraps_only_the_forward_pass_in_autocast() -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 8)
    start = model.weight.detach().clone()
    inputs = torch.randn(4, 16)
    cfg = Config(dict(optim_wrapper=dict(type="AmpOptimWrapper", dtype="float16")))
    set_precision(cfg, "bf16")
    assert precision_of(cfg) == "automatic mixed, bfloat16"
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    wrapper = OPTIM_WRAPPERS.build(cfg.optim_wrapper.to_dict() | dict(optimizer=optimizer))

    with wrapper.optim_context(model):
        outputs = model(inputs)
    assert outputs.dtype is torch.bfloat16
    assert model(inputs).dtype is torch.float32  # autocast has ended
    wrapper.update_params(outputs.float().square().sum())

    # Weights and update stay in float32; the gradient is that of rounded inputs and outputs.
    gradient = (2 * outputs.float()).T @ inputs.bfloat16().float()
    assert model.weight.dtype is torch.float32
    torch.testing.assert_close(start - model.weight, gradient.detach(), rtol=1e-2, atol=1e-2)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 32)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.wide = nn.Linear(32, 48)
        self.narrow = nn.Linear(48, 3)
        self.frozen = nn.Linear(32, 32).requires_grad_(False)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        tokens = self.embedding(words)
        tokens = self.norm(tokens + self.attention(tokens, tokens, tokens)[0])
        return self.narrow(self.wide(tokens).relu())


MATRICES = {"attention.in_proj_weight", "attention.out_proj.weight", "wide.weight"}
MUON = dict(type="MuonAdamW", lr=1e-3, muon_lr=2e-2, weight_decay=0.1)


def wrapper_of(model: nn.Module) -> Any:
    with DefaultScope.overwrite_default_scope("odise_mm"):
        cfg = dict(
            type="OptimWrapper",
            constructor="TrainedParametersConstructor",
            optimizer=MUON,
            paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys=dict(wide=dict(lr_mult=0.5))),
        )
        return build_optim_wrapper(model, cfg)


def train(model: nn.Module, optimizers: list[Any], steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        words = torch.randint(40, (4, 6), generator=torch.Generator().manual_seed(step))
        model(words).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


@needs_muon
def test_muon_trains_matrices_of_linear_layers_and_adamw_the_rest() -> None:
    torch.manual_seed(0)
    model = Layers()
    twin = copy.deepcopy(model)
    wrapper = wrapper_of(model)
    assert isinstance(wrapper.optimizer, MuonAdamW)
    train(model, [wrapper.optimizer], 3)

    matrices, others = [], []
    for name, weight in twin.named_parameters():
        if weight.requires_grad:
            half = 0.5 if name.startswith("wide") else 1.0
            group = dict(params=[weight], lr=half * (2e-2 if name in MATRICES else 1e-3))
            # the same shrinkage per step, and none for the norm
            group["weight_decay"] = 0.0 if name.startswith("norm") else 0.1
            if name in MATRICES:
                group["weight_decay"] *= 1e-3 / 2e-2
            (matrices if name in MATRICES else others).append(group)
    assert len(matrices) == len(MATRICES)
    train(twin, [torch.optim.Muon(matrices), torch.optim.AdamW(others)], 3)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, twin.get_parameter(name), rtol=0, atol=0)


@needs_muon
def test_muon_with_adamw_continues_from_its_state_under_a_schedule() -> None:
    torch.manual_seed(0)
    model = Layers()
    optimizer = wrapper_of(model).optimizer
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(model, [optimizer], 2)
    schedule.step()
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    train(model, [optimizer], 2, first=2)

    other = Layers()
    other.load_state_dict(weights)
    resumed = wrapper_of(other).optimizer
    resumed.load_state_dict(state)
    assert [g["lr"] for g in resumed.param_groups] == [g["lr"] for g in optimizer.param_groups]
    train(other, [resumed], 2, first=2)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, other.get_parameter(name), rtol=0, atol=0)


@needs_muon
def test_copies_and_later_groups_are_trained() -> None:
    torch.manual_seed(0)
    model = Layers()
    optimizer = wrapper_of(model).optimizer
    train(model, [optimizer], 1)
    pair, optimizer_of_pair = copy.deepcopy((model, optimizer))
    train(model, [optimizer], 2, first=1)
    train(pair, [optimizer_of_pair], 2, first=1)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, pair.get_parameter(name), rtol=0, atol=0)

    before = model.frozen.weight.detach().clone()
    optimizer.add_param_group(dict(params=[model.frozen.weight.requires_grad_()], linear=True))
    model.frozen.weight.grad = torch.ones_like(before)
    optimizer.step()
    shrunk = before * (1 - 1e-3 * 0.1)
    torch.testing.assert_close(model.frozen.weight, shrunk - 1e-3)  # AdamW's first step


@needs_muon
def test_muon_with_adamw_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for groups in (Layers().parameters(), [dict(params=[torch.zeros(3, 50)], linear=True)]):
        with pytest.raises(ConfigError, match="constructor='TrainedParametersConstructor'"):
            MuonAdamW(groups)
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r"needs torch 2\.9 or newer, .*; use AdamW"):
        wrapper_of(Layers())
