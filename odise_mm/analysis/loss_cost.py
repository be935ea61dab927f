"""Cost of matching and mask losses, beside mmdet's way of computing them."""

from __future__ import annotations

import statistics
import time
from typing import Any
from unittest.mock import patch

import torch
from mmdet.models.dense_heads import Mask2FormerHead
from mmengine.structures import InstanceData
from torch import Tensor

from odise_mm.analysis.meta import load_model_config
from odise_mm.benchmarks.tables import Table
from odise_mm.config.building import build_part
from odise_mm.models.heads.mask2former_head import MaskPrediction, OpenVocabMask2FormerHead
from odise_mm.registry import MODELS

STRIDES = (4, 8, 16, 32)


def random_targets(count: int, size: int, classes: int, seed: int) -> InstanceData:
    """Draw rectangles: ``labels`` (N,) and ``masks`` (N, size, size) bool."""
    draw = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=draw).mul(size).sort(1).values.long()
    places = torch.arange(size)
    inside = (places >= corners[:, 0, :, None]) & (places <= corners[:, 1, :, None])
    labels = torch.randint(classes, (count,), generator=draw)
    return InstanceData(labels=labels, masks=inside[:, 0, :, None] & inside[:, 1, None, :])


def random_predictions(
    layers: int, images: int, queries: int, size: int, classes: int
) -> tuple[list[MaskPrediction], list[Tensor]]:
    """Draw smooth mask logits (B, Q, size, size) and class logits of every layer."""
    draw = torch.Generator().manual_seed(0)
    predictions, logits = [], []
    for _ in range(layers):
        coarse = 3 * torch.randn(images, queries, 8, 8, generator=draw)
        masks = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
        predictions.append(MaskPrediction(masks.requires_grad_(), masks.new_zeros(images, 0)))
        logits.append(torch.randn(images, queries, classes + 1, generator=draw).requires_grad_())
    return predictions, logits


def mmdets_losses(head: OpenVocabMask2FormerHead, *layer: Any) -> tuple[Tensor, ...]:
    """Compute the losses of one layer with mmdet's method, which does not return the matches."""
    head._matches.append([])
    return Mask2FormerHead._loss_by_feat_single(head, *layer)


def measure_losses(
    config: str, size: int, targets: int, layers: int, images: int, repeats: int
) -> dict[str, Any]:
    """Compute losses and their gradients alternately: as in mmdet, and as in this package.

    Args:
        config: config of the head.
        size: edge of the image in pixels.
        targets: number of targets of each image.
        layers: number of layers with losses.
        images: number of images.
        repeats: number of measured rounds after a warm-up.

    Returns:
        CPU seconds of every round, and the largest differences of losses and gradients.
    """
    cfg = load_model_config(config).model.head
    head = build_part(cfg, MODELS, in_channels=[cfg.get("out_channels", 256)] * 4)
    queries, classes = head.num_queries, 133
    truths = [random_targets(targets, size, classes, seed) for seed in range(images)]
    predictions, logits = random_predictions(layers, images, queries, size // 4, classes)
    inputs = [*logits, *(prediction.masks for prediction in predictions)]

    def run() -> tuple[float, dict[str, Tensor], list[Tensor]]:
        torch.manual_seed(0)
        begin = time.process_time()
        losses = head.losses(predictions, logits, truths)
        gradients = torch.autograd.grad(sum(losses.values()), inputs)
        return time.process_time() - begin, losses, list(gradients)

    seconds: dict[str, list[float]] = {"mmdet": [], "ours": []}
    difference = {"losses": 0.0, "gradients": 0.0}
    for round_ in range(repeats + 1):
        with (
            patch.object(OpenVocabMask2FormerHead, "_loss_by_feat_single", mmdets_losses),
            patch.object(OpenVocabMask2FormerHead, "_floats", staticmethod(list)),
        ):
            theirs = run()
        ours = run()
        if round_:
            seconds["mmdet"].append(theirs[0])
            seconds["ours"].append(ours[0])
        for name, value in theirs[1].items():
            apart = float((value - ours[1][name]).detach().abs() / value.detach().abs())
            difference["losses"] = max(difference["losses"], apart)
        for one, other in zip(theirs[2], ours[2], strict=True):
            apart = float((one - other).abs().max() / one.abs().max())
            difference["gradients"] = max(difference["gradients"], apart)
    sizes = dict(size=size, queries=queries, targets=targets, layers=layers, images=images)
    return {**sizes, "cpu_seconds": seconds, "difference": difference}


def loss_table(result: dict[str, Any]) -> Table:
    """Make the table of a result of :func:`measure_losses`."""
    table = Table(
        f"Matching and losses: {result['images']} image(s) of {result['size']} pixels, "
        f"{result['queries']} queries, {result['targets']} targets, {result['layers']} layers",
        ("way", "CPU seconds, median", "minimum"),
    )
    medians = {}
    for way, times in result["cpu_seconds"].items():
        medians[way] = statistics.median(times)
        table.rows.append((way, f"{medians[way]:.2f}", f"{min(times):.2f}"))
    apart = result["difference"]
    table.notes = [
        f"Ratio {medians['ours'] / medians['mmdet']:.2f}, with gradients. The random points are "
        f"the same; losses differ by at most {apart['losses']:.1e} of their value, gradients by "
        f"{apart['gradients']:.1e} of their largest value.",
    ]
    return table
