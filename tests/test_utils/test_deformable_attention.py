"""Deformable attention in plain PyTorch, beside the formula with ``grid_sample``."""

import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import multi_scale_deform_attn as attention
from torch import Tensor

from odise_mm.analysis.meta import running_on_meta
from odise_mm.utils import deformable_attention as ours
from odise_mm.utils import mmcv_ops
from odise_mm.utils.deformable_attention import deformable_attention

SHAPES = [(5, 3), (1, 4), (2, 2)]


def with_grid_sample(value: Tensor, where: Tensor, weight: Tensor) -> Tensor:
    """Sample every level with ``grid_sample`` and sum the weighted samples."""
    batch, _, heads, channels = value.shape
    levels = value.split([h * w for h, w in SHAPES], dim=1)
    total = value.new_zeros(batch * heads, channels, where.shape[1])
    for index, (height, width) in enumerate(SHAPES):
        image = levels[index].permute(0, 2, 3, 1).reshape(-1, channels, height, width)
        grid = where[:, :, :, index].transpose(1, 2).flatten(0, 1) * 2 - 1
        samples = F.grid_sample(image, grid, align_corners=False)
        shares = weight[:, :, :, index].transpose(1, 2).flatten(0, 1)
        total = total + (samples * shares[:, None]).sum(-1)
    return total.view(batch, heads * channels, -1).transpose(1, 2)


def make_inputs(low: float = -0.8, high: float = 1.8) -> list[Tensor]:
    """Return values, points (x, y) between two numbers, and weights, for 2 images of 3 heads."""
    generator = torch.Generator().manual_seed(5)
    options = dict(generator=generator, dtype=torch.float64)
    value = torch.randn(2, sum(h * w for h, w in SHAPES), 3, 4, **options)
    where = torch.rand(2, 7, 3, len(SHAPES), 2, 2, **options) * (high - low) + low
    weight = torch.randn(2, 7, 3, len(SHAPES), 2, **options)
    return [tensor.requires_grad_() for tensor in (value, where, weight)]


@pytest.mark.parametrize("dense", [0, 40])
@pytest.mark.parametrize("bounds", [(-0.8, 1.8), (0.0, 1.0), (1.5, 9.0)])
def test_output_and_gradients_equal_grid_sample(
    bounds: tuple[float, float], dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "_DENSE", dense)
    inputs = make_inputs(*bounds)
    value, where, weight = inputs
    got = deformable_attention(value, torch.tensor(SHAPES), where, weight)
    expected = with_grid_sample(value, where, weight)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert bool(expected.any()) == (bounds != (1.5, 9.0))  # far outside, everything is zero
    upstream = torch.randn(got.shape, dtype=torch.float64, generator=torch.Generator())
    for mine, other in zip(
        torch.autograd.grad(got, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dense", [0, 40])
@pytest.mark.parametrize("chunk", [1, 100, 2**19])
@pytest.mark.parametrize("trained", [(True, False), (False, True), (True, True)])
def test_gradients_do_not_depend_on_the_algorithm(
    dense: int, chunk: int, trained: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "_CHUNK", chunk)
    monkeypatch.setattr(ours, "_DENSE", dense)
    generator = torch.Generator().manual_seed(0)
    images, keys, heads, queries, samples = 2, 4, 3, 5, 7
    table = torch.randn(images * keys * heads, 6, generator=generator)
    weights = torch.randn(images * queries * heads, samples, generator=generator)
    places = torch.randint(keys, (images, queries, heads, samples), generator=generator)
    image, head = torch.arange(images).view(-1, 1, 1, 1), torch.arange(heads).view(1, 1, -1, 1)
    rows = ((image * keys + places) * heads + head).flatten(0, 2).int()
    inputs = [
        tensor.requires_grad_(wanted)
        for tensor, wanted in zip((table, weights), trained, strict=True)
    ]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    upstream = torch.randn(len(weights), 6, generator=generator)
    out = ours._WeightedSum.apply(table, rows, weights, images, heads)
    got = torch.autograd.grad(out, wanted, upstream)
    empty = torch.zeros(len(weights), len(table))
    expected = empty.scatter_add(1, rows.long(), weights) @ table
    for mine, other in zip(got, torch.autograd.grad(expected, wanted, upstream), strict=True):
        torch.testing.assert_close(mine, other)


def test_gradients_in_16_bits_are_summed_in_32() -> None:
    value, where, weight = (t.detach().float() for t in make_inputs(0, 1))
    rough = [t.bfloat16().requires_grad_() for t in (value, where, weight)]
    exact = [t.detach().float().requires_grad_() for t in rough]
    gradients = []
    for inputs in (rough, exact):
        out = deformable_attention(inputs[0], torch.tensor(SHAPES), *inputs[1:])
        gradients += torch.autograd.grad(out.float().sum(), inputs[:1])
    assert gradients[0].dtype is torch.bfloat16
    torch.testing.assert_close(gradients[0].float(), gradients[1], rtol=0.05, atol=0.05)


def test_points_at_corners_and_edges() -> None:
    value, where, weight = make_inputs()
    edges = torch.tensor([-0.5, -0.1, 0.0, 0.1, 0.5, 1.0, 1.1, 1.5], dtype=torch.float64)
    pairs = torch.cartesian_prod(edges, edges).reshape(2, -1)[:, :64]
    where = pairs.reshape(1, -1, 1, 1, 1, 2).expand(2, -1, 3, 3, 2, 2)
    weight = weight[:, :1].expand(-1, where.shape[1], -1, -1, -1)
    torch.testing.assert_close(
        deformable_attention(value, torch.tensor(SHAPES), where, weight),
        with_grid_sample(value, where, weight),
        rtol=0,
        atol=1e-12,
    )


def test_points_that_are_not_numbers_give_nan_only_for_their_query() -> None:
    value, where, weight = (tensor.detach().float() for tensor in make_inputs())
    where[0, 2, 1] = float("nan")
    where[1, 3, 0] = float("inf")
    out = deformable_attention(value, torch.tensor(SHAPES), where, weight).unflatten(2, (3, 4))
    assert out[0, 2, 1].isnan().all()
    out[0, 2, 1] = 0
    assert out.isfinite().all() and not out[1, 3, 0].any()


def test_sizes_on_meta() -> None:
    value, where, weight = (tensor.detach().to("meta") for tensor in make_inputs())
    with running_on_meta():
        out = deformable_attention(value, torch.tensor(SHAPES), where, weight)
    assert out.is_meta and out.shape == (2, 7, 12)


def test_mmcv_uses_it() -> None:
    mmcv_ops.choose_ops_backend()
    assert attention.multi_scale_deformable_attn_pytorch is deformable_attention
