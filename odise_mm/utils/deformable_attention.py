"""Multi-scale deformable attention in plain PyTorch (Deformable DETR, arXiv 2010.04159, Eq. 3).

mmcv's version calls ``grid_sample`` for every level and stores all samples before it sums them. A
weighted sum of rows of a table is a single operator, ``embedding_bag``: the rows are the values of
one head at one pixel, and the weights are those of the attention times those of the bilinear
interpolation. No sample is stored, and a row is read as a whole. On CPUs, the gradients are
computed here, because ``embedding_bag`` sorts all samples for that of the rows and adds them one by
one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK = 2**19  # numbers that the gradient of the rows holds at a time: 2 MB stay in a CPU's cache
_DENSE = 40  # keys of an image for each sample of a query, up to which matrix products are faster


def deformable_attention(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sum the values at sampling points, with the interface of mmcv's function.

    Sampling is bilinear, and values outside a map are zero. Pixel i of a map with n pixels is
    centered at (i + 0.5) / n.

    Args:
        value: values of the keys of all levels, (B, N, heads, C).
        spatial_shapes: height and width of every level, (levels, 2) integers.
        sampling_locations: points (x, y) in [0, 1], (B, Q, heads, levels, points, 2).
        attention_weights: (B, Q, heads, levels, points).

    Returns:
        (B, Q, heads * C)
    """
    sizes = [(int(height), int(width)) for height, width in spatial_shapes.tolist()]
    batch, _, heads, channels = value.shape
    points = sampling_locations.shape[4]
    table, origins = _bordered(value.flatten(2), sizes)
    keys = table.shape[1]
    kind = torch.int32 if table.numel() // channels < 2**31 else torch.int64

    def per_point(numbers: list, dtype: torch.dtype) -> Tensor:
        """Repeat numbers of the levels for every point: (levels * points * numbers of a level,)."""
        tensor = torch.tensor(numbers, dtype=dtype, device=value.device)
        return tensor.repeat_interleave(points, dim=0).flatten()

    # One line for every query and head, as operations on short inner dimensions are slow.
    lines = batch * sampling_locations.shape[1] * heads
    ends = per_point([(width, height) for height, width in sizes], sampling_locations.dtype)
    where = sampling_locations.reshape(lines, -1) * ends - 0.5
    # A point at -1 or less, or at n or more, has no neighbor in the map. NaN becomes a valid
    # index, and its weight remains NaN.
    where = torch.minimum(where.clamp_min(-1), ends)
    corner = where.detach().floor().nan_to_num(-1)
    fraction = where - corner

    steps = [(heads, heads * (width + 1)) for _, width in sizes]
    offset = corner.to(kind) * per_point(steps, kind)
    first = offset[:, 0::2] + offset[:, 1::2] + per_point([heads * o for o in origins], kind)
    head = torch.arange(heads, dtype=kind, device=value.device)
    image = torch.arange(batch, dtype=kind, device=value.device)[:, None, None] * (keys * heads)
    first += (head + image).expand(batch, lines // (batch * heads), heads).reshape(lines, 1)
    below = first + per_point([down for _, down in steps], kind)
    rows = torch.cat([first, first + heads, below, below + heads], dim=1)

    weight = attention_weights.reshape(lines, -1)
    x, y = fraction[:, 0::2], fraction[:, 1::2]
    lower = weight * y
    upper = weight - lower
    upper_right, lower_right = upper * x, lower * x
    weights = torch.cat([upper - upper_right, upper_right, lower - lower_right, lower_right], dim=1)
    rows_of_table, weights = table.view(-1, channels), weights.to(value.dtype)
    if value.device.type == "cpu":
        out = _WeightedSum.apply(rows_of_table, rows, weights, batch, heads)
    else:
        out = _weighted_sum(rows_of_table, rows, weights)
    return out.view(batch, -1, heads * channels)


def _weighted_sum(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Sum rows of a table: (K, C), indices (N, S) and weights (N, S) to (N, C)."""
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)


class _WeightedSum(torch.autograd.Function):
    """:func:`_weighted_sum` with fast gradients on CPUs.

    The table consists of the keys and heads of B images, (B * keys * heads, C), and there is a line
    of indices for every image, query and head, which are those of the same image and head.
    """

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, rows: Tensor, weights: Tensor, batch: int, heads: int
    ) -> Tensor:
        ctx.save_for_backward(table, rows, weights)
        ctx.sizes = batch, heads
        return _weighted_sum(table, rows, weights)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, None, Tensor | None, None, None]:
        table, rows, weights = ctx.saved_tensors
        batch, heads = ctx.sizes
        keys = len(table) // (batch * heads)
        if all(ctx.needs_input_grad[:3:2]) and keys <= _DENSE * rows.shape[1]:
            dtype = torch.promote_types(table.dtype, torch.float32)
            inputs = table.to(dtype), rows, weights.to(dtype), gradient.to(dtype)
            of_table, of_weights = _dense_gradients(*inputs, batch, heads)
            return of_table.to(table.dtype), None, of_weights.to(weights.dtype), None, None
        of_table = of_weights = None
        if ctx.needs_input_grad[0]:
            of_table = _gradient_of_table(table, rows, weights, gradient)
        if ctx.needs_input_grad[2]:
            with torch.enable_grad():
                leaf = weights.detach().requires_grad_()
                summed = _weighted_sum(table.detach(), rows, leaf)
            (of_weights,) = torch.autograd.grad(summed, leaf, gradient)
        return of_table, None, of_weights, None, None


def _gradient_of_table(table: Tensor, rows: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
    """Add up the weighted gradients (N, C) of all samples of each row."""
    dtype = torch.promote_types(table.dtype, torch.float32)
    total = torch.zeros_like(table, dtype=dtype)
    lines = max(1, _CHUNK // (rows.shape[1] * table.shape[1]))
    chunks = (each.split(lines) for each in (rows, weights, gradient))
    for row, weight, share in zip(*chunks, strict=True):
        samples = weight[..., None].to(dtype) * share[:, None].to(dtype)
        # 64 bits, because the fast algorithm does not take 32
        total.index_add_(0, row.flatten().long(), samples.flatten(0, 1))
    return total.to(table.dtype)


def _dense_gradients(
    table: Tensor, rows: Tensor, weights: Tensor, gradient: Tensor, batch: int, heads: int
) -> tuple[Tensor, Tensor]:
    """Compute both gradients with matrix products.

    The samples of a small map hit each of its keys many times. So the matrix of the queries'
    weights for all keys, one for each image and head, is nearly full, and it fits the cache.
    """

    def by_head(tensor: Tensor) -> Tensor:
        """Separate images and heads: (B * n * heads, S) to (B * heads, n, S)."""
        parts = tensor.view(batch, -1, heads, tensor.shape[1]).transpose(1, 2)
        return parts.flatten(0, 1).contiguous()

    def back(tensor: Tensor) -> Tensor:
        parts = tensor.unflatten(0, (batch, heads)).transpose(1, 2)
        return parts.reshape(-1, tensor.shape[2])

    table, weights, gradient = by_head(table), by_head(weights), by_head(gradient)
    keys = table.shape[1]
    first = torch.arange(batch * heads, device=rows.device)
    first = first // heads * keys * heads + first % heads
    places = (by_head(rows).long() - first[:, None, None]) // heads
    of_table, of_weights = torch.empty_like(table), torch.empty_like(weights)
    matrix = table.new_empty(weights.shape[1], keys)
    for i, place in enumerate(places):
        matrix.zero_().scatter_add_(1, place, weights[i])
        torch.mm(matrix.T, gradient[i], out=of_table[i])
        torch.mm(gradient[i], table[i].T, out=matrix)
        torch.gather(matrix, 1, place, out=of_weights[i])
    return back(of_table), back(of_weights)


def _bordered(value: Tensor, sizes: list[tuple[int, int]]) -> tuple[Tensor, list[int]]:
    """Surround every level by zeros. The border at the right is the next row's at the left.

    Args:
        value: (B, N, C).
        sizes: height and width of every level.

    Returns:
        (B, N', C), and the index of the first pixel of every level.
    """
    batch, _, channels = value.shape
    parts, origins, start = [], [], 0
    for level, (height, width) in zip(
        value.split([height * width for height, width in sizes], dim=1), sizes, strict=True
    ):
        image = level.reshape(batch, height, width, channels)
        parts.append(F.pad(image, (0, 0, 1, 0, 1, 1)).flatten(1, 2))
        origins.append(start + width + 2)
        start += parts[-1].shape[1]
    # Points beyond the last corner have neighbors of weight zero after the last level.
    parts.append(value.new_zeros(batch, sizes[-1][1] + 3, channels))
    return torch.cat(parts, dim=1), origins
