"""Training in bfloat16: number formats of forward pass, weights and updates."""

import torch
from mmengine.config import Config
from torch import nn

from odise_mm.config.changing import precision_of, set_precision
from odise_mm.registry import OPTIM_WRAPPERS


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
