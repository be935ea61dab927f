"""Three ways of training the same model, and the parameters that get gradients in each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from odise_mm.analysis.parts import part_of
from odise_mm.models import OpenVocabSegmentor
from odise_mm.models.frozen import trained_names

OURS, CHECKPOINTED, BASELINE = "ours", "ours, use_checkpoint", "baseline"


@contextmanager
def trained_as(model: OpenVocabSegmentor, way: str) -> Iterator[None]:
    """Prepare a model for one of the three ways of training inside this context.

    Args:
        model: The model.
        way: ``OURS`` (frozen parts without gradients), ``CHECKPOINTED`` (the same with activation
            checkpointing in the UNet) or ``BASELINE`` (frozen weights require gradients).
    """
    backbone, clip = model.backbone, getattr(model, "clip", None)
    model.requires_grad_(False)
    _require_gradients(model)
    before = getattr(backbone, "use_checkpoint", False)
    backbone.use_checkpoint = way == CHECKPOINTED
    patched = []
    if way == BASELINE:
        backbone.requires_grad_(True)
        tracked = torch.enable_grad()
        for method in ("encode", "_decoder_taps"):
            if hasattr(backbone, method):
                setattr(backbone, method, tracked(getattr(backbone, method)))
                patched.append((backbone, method))
        if clip is not None:
            clip.visual.requires_grad_(True)
            untracked = type(clip).encode_image
            original = getattr(untracked, "__wrapped__", untracked)
            clip.encode_image = tracked(original.__get__(clip))
            patched.append((clip, "encode_image"))
    try:
        yield
    finally:
        for owner, method in patched:
            delattr(owner, method)
        backbone.use_checkpoint = before
        model.requires_grad_(False)
        _require_gradients(model)


def _require_gradients(model: OpenVocabSegmentor) -> None:
    for name in trained_names(model):
        model.get_parameter(name).requires_grad_(True)


def gradient_nodes(model: OpenVocabSegmentor, loss: torch.Tensor) -> dict[str, Counter[str]]:
    """Count the parameters that a loss has gradients for.

    Args:
        model: The model.
        loss: A loss of the model.

    Returns:
        ``nodes``, the number of ``AccumulateGrad`` nodes by part, and ``numbers``, the number of
        parameter elements by part.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    nodes: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            part = part_of(names[id(node.variable)])
            nodes[part] += 1
            numbers[part] += node.variable.numel()
        waiting.extend(child for child, _ in node.next_functions)
    return {"nodes": nodes, "numbers": numbers}
