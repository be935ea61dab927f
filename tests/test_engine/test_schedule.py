"""The published schedule, and the parameters with weight decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from odise_mm.config.building import build_model
from odise_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS
from tests.support.parts import load_config, meta_model

LABEL, CAPTION = "odise/odise_coco_label.py", "odise/odise_coco_caption.py"


def formula(iteration: int) -> float:
    """Return 1e-4, warmed up from 0.067 over 250 iterations, divided by 10 at 8/9 and 26/27."""
    warm_up = min(1.0, 0.067 + (1 - 0.067) * iteration / 250)
    drops = (iteration >= 81945) + (iteration >= 88773)
    return 1e-4 * warm_up * 0.1**drops


def test_learning_rate() -> None:
    cfg = load_config(LABEL)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(scheduler), default_args=dict(optimizer=optimizer))
        for scheduler in cfg.param_scheduler
    ]
    wanted = {0, 1, 125, 249, 250, 251, 40000, 81944, 81945, 88772, 88773, 92187}
    for iteration in range(cfg.train_cfg.max_iters):
        if iteration in wanted:
            rate = optimizer.param_groups[0]["lr"]
            assert rate == pytest.approx(formula(iteration), rel=1e-9), iteration
            wanted.remove(iteration)
        for scheduler in schedulers:
            scheduler.step()
    assert not wanted


@pytest.mark.parametrize("file", [LABEL, CAPTION])
def test_published_settings(file: str) -> None:
    cfg = load_config(file)
    assert cfg.train_cfg.max_iters == 92188
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=0.01, norm_type=2)
    assert cfg.optim_wrapper.optimizer == dict(type="AdamW", lr=1e-4, weight_decay=0.05)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.dtype) == ("AmpOptimWrapper", "float16")
    assert cfg.auto_scale_lr.base_batch_size == 64 == 8 * cfg.train_dataloader.batch_size
    assert cfg.default_hooks.checkpoint.interval == 4500


def parameter_groups(file: str, model: nn.Module) -> list[dict[str, Any]]:
    """Return the optimizer's groups for a model of a config."""
    cfg = load_config(file).optim_wrapper
    options = dict(type="OptimWrapper", optimizer=cfg.optimizer)
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.get(cfg.constructor)(options, cfg.paramwise_cfg)
    return constructor(model).optimizer.param_groups


@pytest.mark.parametrize("file, trained", [(LABEL, 28_067_009), (CAPTION, 28_066_755)])
def test_trained_parameters_and_weight_decay(file: str, trained: int) -> None:
    model = meta_model(file)
    groups = parameter_groups(file, model)
    assert sum(p.numel() for g in groups for p in g["params"]) == trained
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    norms = (nn.GroupNorm, nn.LayerNorm)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                spared = isinstance(module, norms) or name.endswith("bias")
                assert decay[id(parameter)] == (0.0 if spared else 0.05), (type(module), name)
            else:
                assert id(parameter) not in decay


def test_weight_decay_of_fc_clip() -> None:
    """Published: 0 for all norms and embedding layers, 0.05 for everything else.

    The level encoding of the pixel decoder is a plain parameter there, not an embedding layer.
    """
    with torch.device("meta"):
        model = build_model(load_config("fcclip/fcclip_coco.py"))
    groups = parameter_groups("fcclip/fcclip_coco.py", model)
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    norms = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm))
        for part in ("weight", "bias")
    }
    embeddings = {f"head.{name}.weight" for name in ("query_feat", "query_embed", "level_embed")}
    embeddings.add("classifiers.0.null_embedding")
    trained = dict(model.named_parameters())
    trained = {name: value for name, value in trained.items() if value.requires_grad}
    assert len(decay) == len(trained) and embeddings <= trained.keys()
    for name, value in trained.items():
        expected = 0.0 if name in norms | embeddings else 0.05
        assert decay[id(value)] == expected, name
