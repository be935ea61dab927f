"""A form of the head that can be exported: the same numbers from operators that graphs have.

mmdet's pixel decoder keeps the sizes of its maps in tensors and reads numbers out of them, which a
traced graph cannot do. Here they are integers, or the symbols of dynamic sizes. Deformable
attention (Deformable DETR, arXiv 2010.04159, equation 3) is ``grid_sample``, as ONNX has no
``embedding_bag``. It stores all samples, so it needs more memory than
:func:`~odise_mm.utils.deformable_attention.deformable_attention`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from mmdet.models.layers import MSDeformAttnPixelDecoder
from torch import Tensor, nn

Size = tuple[int, int]


@contextmanager
def graph_form(model: nn.Module) -> Iterator[None]:
    """Replace the pixel decoders of a model by :func:`decode_pixels` within this context.

    Args:
        model: a segmentor. It must not be used by other threads in the meantime.
    """
    with ExitStack() as stack:
        for part in model.modules():
            if isinstance(part, MSDeformAttnPixelDecoder):
                stack.enter_context(
                    mock.patch.object(part, "forward", partial(decode_pixels, part))
                )
        yield


def decode_pixels(
    decoder: MSDeformAttnPixelDecoder, pyramid: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Run mmdet's pixel decoder with the layers of ``decoder``.

    Args:
        decoder: the decoder, in eval mode.
        pyramid: feature maps, the finest first, each (B, C_i, H_i, W_i).

    Returns:
        Mask features (B, C, H_0, W_0), and the encoder's maps, the coarsest first.
    """
    batch = len(pyramid[0])
    coarse = list(reversed(pyramid))[: decoder.num_encoder_levels]
    sizes: list[Size] = [(level.shape[-2], level.shape[-1]) for level in coarse]
    tokens, positions, points = [], [], []
    for index, (level, (height, width)) in enumerate(zip(coarse, sizes, strict=True)):
        tokens.append(_as_rows(decoder.input_convs[index](level)))
        no_padding = level.new_zeros((batch, height, width), dtype=torch.bool)
        position = decoder.postional_encoding(no_padding)  # mmdet's spelling
        embedding = decoder.level_encoding.weight[index].view(1, -1, 1, 1)
        positions.append(_as_rows(position + embedding))
        points.append(_centers(level, (height, width)))
    memory, position, centers = torch.cat(tokens, 1), torch.cat(positions, 1), torch.cat(points)
    for layer in decoder.encoder.layers:
        memory = layer.norms[0](_attend(layer.self_attn, memory, position, centers, sizes))
        memory = layer.norms[1](layer.ffn(memory))
    lengths = [height * width for height, width in sizes]
    outs = [
        rows.transpose(1, 2).reshape(batch, memory.shape[-1], height, width)
        for rows, (height, width) in zip(memory.split(lengths, 1), sizes, strict=True)
    ]
    for index in reversed(range(decoder.num_input_levels - decoder.num_encoder_levels)):
        lateral = decoder.lateral_convs[index](pyramid[index])
        larger = F.interpolate(
            outs[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False
        )
        outs.append(decoder.output_convs[index](lateral + larger))
    return decoder.mask_feature(outs[-1]), outs[: decoder.num_outs]


def _as_rows(maps: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H * W, C)."""
    return maps.flatten(2).transpose(1, 2)


def _centers(like: Tensor, size: Size) -> Tensor:
    """Centers (x, y) of the pixels of a map in [0, 1], (H * W, 2)."""
    height, width = size
    y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1)
    return grid.flatten(0, 1)


def _attend(
    attention: nn.Module, memory: Tensor, position: Tensor, centers: Tensor, sizes: Sequence[Size]
) -> Tensor:
    """Multi-scale deformable self-attention with its residual connection.

    Args:
        attention: mmcv's ``MultiScaleDeformableAttention``.
        memory: pixels of all levels, (B, N, C).
        position: their position embeddings, (B, N, C).
        centers: their centers, (N, 2).
        sizes: height and width of every level.

    Returns:
        (B, N, C)
    """
    batch, count, channels = memory.shape
    heads, points = attention.num_heads, attention.num_points
    query = memory + position
    offsets = attention.sampling_offsets(query)
    offsets = offsets.view(batch, count, heads, len(sizes), points, 2)
    weights = attention.attention_weights(query).view(batch, count, heads, len(sizes) * points)
    weights = weights.softmax(-1).view(batch, count, heads, len(sizes), points)
    values = attention.value_proj(memory).view(batch, count, heads, channels // heads)
    where = centers[None, :, None, None]
    total = torch.zeros((), dtype=memory.dtype, device=memory.device)
    lengths = [height * width for height, width in sizes]
    for index, (level, (height, width)) in enumerate(
        zip(values.split(lengths, 1), sizes, strict=True)
    ):
        maps = level.permute(0, 2, 3, 1).reshape(batch * heads, channels // heads, height, width)
        offset = offsets[:, :, :, index]
        location = torch.stack(
            [where[..., 0] + offset[..., 0] / width, where[..., 1] + offset[..., 1] / height], -1
        )
        grid = (2 * location - 1).transpose(1, 2).flatten(0, 1)  # (B * heads, N, points, 2)
        samples = F.grid_sample(
            maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        weight = weights[:, :, :, index].transpose(1, 2).flatten(0, 1)[:, None]
        total = total + (samples * weight).sum(-1)
    rows = total.view(batch, channels, count).transpose(1, 2)
    return attention.output_proj(rows) + memory
