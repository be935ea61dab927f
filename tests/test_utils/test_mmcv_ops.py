"""mmcv with and without compiled operators."""

import importlib.machinery
import subprocess
import sys
import types
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import mmcv.ops
import pytest
import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmcv.ops import multi_scale_deform_attn as attention
from mmengine import Config, ConfigDict

from odise_mm.registry import MODELS
from odise_mm.utils import mmcv_ops

LITE = isinstance(sys.modules["mmcv._ext"], mmcv_ops._StandIn)
needs_lite = pytest.mark.skipif(not LITE, reason="a compiled mmcv is installed")


def naive_attention(
    value: torch.Tensor, shapes: list[tuple[int, int]], where: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Compute Eq. 3 of arXiv 2010.04159 with loops.

    Sampling is bilinear and zero outside; pixel i is centered at i + 0.5.
    """
    batch, _, heads, channels = value.shape
    out = value.new_zeros(batch, where.shape[1], heads, channels)
    starts = [sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))]
    for b, q, head, level, p in torch.cartesian_prod(
        *[torch.arange(n) for n in where.shape[:5]]
    ).tolist():
        height, width = shapes[level]
        x, y = (where[b, q, head, level, p] * torch.tensor([width, height]) - 0.5).tolist()
        for row in (int(y // 1), int(y // 1) + 1):
            for column in (int(x // 1), int(x // 1) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                    pixel = value[b, starts[level] + row * width + column, head]
                    out[b, q, head] += weight[b, q, head, level, p] * share * pixel
    return out.flatten(2)


@pytest.fixture
def case() -> tuple[list[tuple[int, int]], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(5, 3), (2, 4)]
    keys = sum(h * w for h, w in shapes)
    return shapes, dict(
        query=torch.randn(2, 6, 8, generator=generator, dtype=torch.float64),
        value=torch.randn(2, keys, 8, generator=generator, dtype=torch.float64),
        # some reference points are outside, so that samples are outside as well
        reference_points=torch.rand(2, 6, 2, 2, generator=generator, dtype=torch.float64) * 1.2
        - 0.1,
        spatial_shapes=torch.tensor(shapes),
        level_start_index=torch.tensor([0, shapes[0][0] * shapes[0][1]]),
    )


def make_layer() -> MultiScaleDeformableAttention:
    torch.manual_seed(4)
    layer = MultiScaleDeformableAttention(8, 2, 2, 3, dropout=0.0, batch_first=True).double().eval()
    for parameter in layer.parameters():  # the default initialization ignores the query
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def expected_output(
    layer: MultiScaleDeformableAttention, shapes: list, inputs: dict
) -> torch.Tensor:
    query, points = inputs["query"], inputs["reference_points"]
    value = layer.value_proj(inputs["value"]).view(2, -1, 2, 4)
    offsets = layer.sampling_offsets(query).view(2, 6, 2, 2, 3, 2)
    weight = layer.attention_weights(query).view(2, 6, 2, 6).softmax(-1).view(2, 6, 2, 2, 3)
    size = torch.tensor([[w, h] for h, w in shapes], dtype=torch.float64)
    where = points[:, :, None, :, None] + offsets / size[None, None, None, :, None]
    return layer.output_proj(naive_attention(value, shapes, where, weight)) + query


def test_deformable_attention_equals_loops(case) -> None:
    shapes, inputs = case
    layer = make_layer()
    with torch.no_grad():
        torch.testing.assert_close(
            layer(**inputs), expected_output(layer, shapes, inputs), rtol=0, atol=1e-12
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_deformable_attention_on_cuda_equals_cpu(case) -> None:
    mmcv_ops.choose_ops_backend()
    layer = make_layer()
    inputs = {name: t.float() if t.is_floating_point() else t for name, t in case[1].items()}
    with torch.no_grad():
        on_cpu = layer.float()(**inputs)
        on_cuda = layer.cuda()(**{name: t.cuda() for name, t in inputs.items()})
    torch.testing.assert_close(on_cuda.cpu(), on_cpu, rtol=1e-4, atol=1e-4)


class _LooksLikeCuda(torch.Tensor):
    """A CPU tensor whose ``is_cuda`` is True, to test the branch that selects the kernel."""

    is_cuda = True


@pytest.mark.parametrize("cuda_flag", [True, False])
def test_cuda_tensors_use_the_kernel_only_if_there_is_one(case, monkeypatch, cuda_flag) -> None:
    calls = []

    class Kernel:
        @staticmethod
        def apply(value: torch.Tensor, *rest: object) -> torch.Tensor:
            calls.append(value.shape)
            return value.new_zeros(2, 6, 8)

    ext = types.SimpleNamespace(
        get_compiling_cuda_version=lambda: "12.6" if cuda_flag else "not available"
    )
    monkeypatch.setitem(sys.modules, "mmcv._ext", ext)
    monkeypatch.setattr(attention, "IS_CUDA_AVAILABLE", True)
    monkeypatch.setattr(attention, "MultiScaleDeformableAttnFunction", Kernel)
    mmcv_ops.choose_ops_backend()
    assert mmcv_ops.ops_backend() == ("compiled" if cuda_flag else "pytorch")

    shapes, inputs = case
    layer = make_layer()
    layer.value_proj.register_forward_hook(lambda *args: args[-1].as_subclass(_LooksLikeCuda))
    with torch.no_grad():
        out = layer(**inputs)
    assert len(calls) == cuda_flag
    if not cuda_flag:
        assert torch.equal(out.as_subclass(torch.Tensor), make_layer()(**inputs).detach())


@needs_lite
def test_head_built_with_mmcv_lite_uses_pytorch(monkeypatch) -> None:
    monkeypatch.setattr(attention, "IS_CUDA_AVAILABLE", True)
    config = Config.fromfile(Path(mmcv_ops.__file__).parents[2] / "configs/toy/odise_tiny.py")
    with torch.device("meta"):
        MODELS.build({**config.model.head, "in_channels": [8, 8, 8, 8]})
    assert mmcv_ops.ops_backend() == "pytorch"
    assert attention.IS_CUDA_AVAILABLE is False


@needs_lite
def test_other_operators_raise() -> None:
    with pytest.raises(mmcv_ops.MissingOpError, match=r"'nms'.*(-lite|onedl-mmcv) 2.*--no-build"):
        mmcv.ops.nms(torch.rand(3, 4), torch.rand(3), 0.5)


@pytest.mark.parametrize(
    ("name", "compiled", "without"),
    [
        (
            "mmcv-lite",
            'pip uninstall -y mmcv-lite, then pip install --no-build-isolation "mmcv>=2.0.1,<2.2"',
            'pip uninstall -y mmcv && pip install "mmcv-lite>=2.0.1,<2.2"',
        ),
        (
            "onedl-mmcv",
            "pip install --no-build-isolation --no-cache-dir --no-deps --force-reinstall "
            '"onedl-mmcv>=2.3.6,<2.4"',
            'pip install --no-cache-dir --no-deps --force-reinstall "onedl-mmcv>=2.3.6,<2.4"',
        ),
    ],
)
def test_advice_fits_the_installed_mmcv(monkeypatch, name, compiled, without) -> None:
    def version(asked: str) -> str:
        if asked != name:
            raise PackageNotFoundError(asked)
        return "2.9"

    def broken(module: str) -> None:
        raise ImportError("undefined symbol")

    monkeypatch.setattr(mmcv_ops, "version", version)
    with pytest.raises(mmcv_ops.MissingOpError) as error:
        mmcv_ops._missing("nms")()
    assert f"the installed {name} 2.9 has no" in str(error.value) and compiled in str(error.value)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(mmcv_ops.importlib, "import_module", broken)
    with pytest.raises(ImportError) as error:
        mmcv_ops.ops_backend()
    assert without in str(error.value) and "\n" not in str(error.value)


@needs_lite
def test_stand_in_answers_environment_reports() -> None:
    assert mmcv.ops.get_compiling_cuda_version() == "not available"
    assert mmcv.ops.get_compiler_version() == "n/a"


def test_pixel_decoder_runs_and_has_gradients() -> None:
    from mmdet.models import MSDeformAttnPixelDecoder

    layer = dict(
        self_attn_cfg=dict(embed_dims=16, num_heads=2, num_levels=3, num_points=2),
        ffn_cfg=dict(embed_dims=16, feedforward_channels=16),
    )
    decoder = MSDeformAttnPixelDecoder(  # mmdet reads these dicts by attribute
        in_channels=[4, 4, 4, 4],
        strides=[4, 8, 16, 32],
        feat_channels=16,
        out_channels=16,
        norm_cfg=dict(type="GN", num_groups=4),
        encoder=ConfigDict(num_layers=1, layer_cfg=layer),
        positional_encoding=ConfigDict(num_feats=8, normalize=True),
    )
    pyramid = [torch.randn(1, 4, 64 // s, 96 // s, requires_grad=True) for s in (4, 8, 16, 32)]
    mask_features, memories = decoder(pyramid)
    assert mask_features.shape == (1, 16, 16, 24)
    (mask_features.sum() + sum(m.sum() for m in memories)).backward()
    assert all(level.grad.abs().sum() > 0 for level in pyramid)


def test_compiled_extension_takes_precedence(tmp_path: Path) -> None:
    """If mmcv/_ext exists, the stand-in is not used and the CUDA flag is unchanged."""
    package = tmp_path / "mmcv"
    (package / "ops").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "_ext.py").write_text("def get_compiling_cuda_version():\n    return '12.6'\n")
    (package / "ops/__init__.py").write_text("from . import multi_scale_deform_attn\n")
    (package / "ops/multi_scale_deform_attn.py").write_text(
        "from mmcv import _ext\nIS_CUDA_AVAILABLE = True\n"
    )
    code = (
        "import odise_mm, mmcv._ext, mmcv.ops as ops\n"
        "from odise_mm.utils.mmcv_ops import choose_ops_backend, ops_backend\n"
        "choose_ops_backend()\n"
        "assert mmcv._ext.__file__.endswith('_ext.py'), mmcv._ext\n"
        "assert ops.multi_scale_deform_attn.IS_CUDA_AVAILABLE\n"
        "assert ops_backend() == 'compiled'\n"
    )
    root = Path(mmcv_ops.__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(tmp_path), str(root)]}\n{code}"],
        check=True,
    )


def test_broken_extension_raises(monkeypatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("undefined symbol: _ZN3c10")

    monkeypatch.setattr(mmcv_ops.importlib, "import_module", broken)
    with pytest.raises(
        ImportError, match="compiled for another version of torch.*undefined symbol"
    ):
        mmcv_ops.ops_backend()


def test_backend_is_logged_once(monkeypatch) -> None:
    lines = []
    monkeypatch.setattr("mmengine.logging.print_log", lambda line, **kwargs: lines.append(line))
    monkeypatch.setattr(mmcv_ops, "_logged", False)
    mmcv_ops.choose_ops_backend()
    mmcv_ops.choose_ops_backend()
    assert len(lines) == 1 and "deformable attention" in lines[0]


def test_import_of_the_package_is_light() -> None:
    code = "import sys, odise_mm; print(sorted({'torch', 'mmcv', 'mmengine'} & set(sys.modules)))"
    root = Path(mmcv_ops.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_mmdet_can_be_imported_after_the_package() -> None:
    code = "import odise_mm, mmdet.models"
    root = Path(mmcv_ops.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_finder_ignores_other_modules() -> None:
    assert mmcv_ops._finder.find_spec("mmcv._other", None) is None
    assert isinstance(mmcv_ops._finder.find_spec("mmcv._ext", None), importlib.machinery.ModuleSpec)
