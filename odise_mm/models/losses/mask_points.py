"""Matching and mask losses at sampled points (PointRend, arXiv 1912.08193; Mask2Former)."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Matches(NamedTuple):
    """Which queries of an image were matched to which of its N targets."""

    queries: Tensor
    """(n,) int64, ascending."""
    targets: Tensor
    """(n,) int64, the target of each of these queries; no target occurs twice."""


def sample_shared(maps: Tensor, points: Tensor) -> Tensor:
    """Sample all maps of an image at the same points, bilinearly.

    The maps are channels of one image, so the positions are computed only once.

    Args:
        maps: (N, H, W) floating point.
        points: (P, 2), x and y in [0, 1].

    Returns:
        (N, P)
    """
    if not len(maps):
        return maps.new_zeros(0, len(points))
    grid = points.view(1, 1, -1, 2) * 2 - 1
    return F.grid_sample(maps[None], grid, align_corners=False)[0, :, 0]


def sample_each(maps: Tensor, points: Tensor) -> Tensor:
    """Sample every map at points of its own, bilinearly.

    Args:
        maps: (N, H, W) floating point.
        points: (N, P, 2), x and y in [0, 1].

    Returns:
        (N, P)
    """
    return F.grid_sample(maps[:, None], points[:, None] * 2 - 1, align_corners=False)[:, 0, 0]


def sample_matched(targets: Tensor, matches: Matches, points: Tensor) -> Tensor:
    """Sample the target of each matched query at the query's points.

    The points are brought into the order of the targets, since copies of the targets would be large
    (4 MB for one mask of 1024 x 1024).

    Args:
        targets: (N, H, W) floating point.
        matches: n matches.
        points: (n, P, 2), x and y in [0, 1].

    Returns:
        (n, P)
    """
    order = matches.targets.argsort()
    chosen = targets if len(order) == len(targets) else targets[matches.targets[order]]
    sampled = points.new_empty(points.shape[:2])
    sampled[order] = sample_each(chosen, points[order])
    return sampled
