"""FLOPs on the meta device equal those of a real run, by part, and stay below a limit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from odise_mm.analysis import published
from odise_mm.analysis.inference_cost import (
    compare_crops,
    count_flops,
    make_vocabulary,
    random_image,
)
from odise_mm.analysis.meta import build_on_meta, flop_counter, load_model_config
from odise_mm.analysis.parts import FlopProbe, PartMeter, TimeAndMemoryProbe
from odise_mm.config.building import build_model
from odise_mm.errors import ConfigError
from tools.analysis_tools import benchmark

# Upper limit of our FLOPs, as a share of the published implementation's at 1024 x 1024.
LARGEST_SHARE = 0.62


@pytest.fixture(scope="module")
def full_flops() -> dict[int, dict[str, int]]:
    model = build_on_meta(load_model_config("odise_coco_label"))
    model.vocabulary = make_vocabulary(None)
    return {size: count_flops(model, size) for size in (512, 1024)}


@pytest.fixture(scope="module")
def tiny_model() -> nn.Module:
    torch.manual_seed(0)
    model = build_model(load_model_config("odise_tiny")).eval().requires_grad_(False)
    model.vocabulary = make_vocabulary(None)
    return model


def test_published_constants_sum_to_the_published_totals() -> None:
    for size, total, needed in (
        (512, 5_426_187_570_048, 3_458_137_914_240),
        (1024, 20_329_486_301_952, 12_457_287_678_720),
    ):
        assert sum(cost.total for cost in published.FLOPS[size].values()) == total
        assert sum(cost.needed for cost in published.FLOPS[size].values()) == needed


def test_flops_stay_below_the_limit_at_full_size(full_flops: dict[int, dict[str, int]]) -> None:
    theirs = sum(cost.total for cost in published.FLOPS[1024].values())
    assert sum(full_flops[1024].values()) <= LARGEST_SHARE * theirs


@pytest.mark.parametrize("size", [512, 1024])
def test_flops_equal_the_published_where_the_work_is_equal(
    size: int, full_flops: dict[int, dict[str, int]]
) -> None:
    theirs = published.FLOPS[size]
    for part in (
        "VAE encoder",
        "UNet",
        "VAE decoder",
        "feature projection",
        "pixel decoder",
        "transformer decoder: layers",
        "post-processing",
        "captioner, names and ensemble",
    ):
        assert full_flops[size][part] == theirs[part].needed, part
    # MaskCLIP: no token attends to the tokens of the masks, which the published code only hides.
    for part, least in (("captioner's CLIP", 0.997), ("MaskCLIP", 0.98)):
        ours, needed = full_flops[size][part], theirs[part].needed
        assert least * needed < ours <= needed, part
    for part in ("transformer decoder: masks", "mask embedding"):
        assert full_flops[size][part] < theirs[part].needed / 4, part


def test_flops_on_meta_equal_those_of_a_real_run(tiny_model: nn.Module) -> None:
    size = 64
    on_meta = build_on_meta(load_model_config("odise_tiny"))
    on_meta.vocabulary = tiny_model.vocabulary
    data = random_image(size)
    tiny_model.test_step(data())  # embeds the names
    tiny_model.classifiers[0].forget_vocabularies()  # so that mapping them is counted
    with flop_counter() as counter, PartMeter(tiny_model, FlopProbe(counter)) as meter:
        tiny_model.test_step(data())
    real = {part: sample.flops for part, sample in meter.samples.items()}
    assert {k: v for k, v in real.items() if v} == {
        k: v for k, v in count_flops(on_meta, size).items() if v
    }


def test_flops_of_a_model_that_makes_masks_for_another() -> None:
    """MaskCLIP++ resizes the image for FC-CLIP, whose parts need what they need alone."""
    counts = {}
    for config, size in (("maskclippp_convnext_l", 256), ("fcclip_coco", 800)):
        model = build_on_meta(load_model_config(config))
        model.vocabulary = make_vocabulary(None)
        counts[config] = count_flops(model, size)
    together, alone = counts.values()
    for part in ("backbone", "pixel decoder", "transformer decoder: layers", "mask embedding"):
        assert together[part] == alone[part] > 0, part
    # The same tower on an image of 640 x 640.
    assert together["SoftMaskCLIP"] > together["backbone"] * (640 / 800) ** 2
    assert "PooledCLIP" not in together


@pytest.mark.parametrize("fused", [True, False])
def test_attention_flops_do_not_depend_on_the_kernel(fused: bool) -> None:
    batch, length, width, heads = 2, 10, 32, 4
    attention = nn.MultiheadAttention(width, heads, batch_first=True).eval()
    x = torch.randn(batch, length, width)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fused)
    try:
        with torch.no_grad(), flop_counter() as counter:
            attention(x, x, x, need_weights=False)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    expected = 8 * batch * length * width**2 + 4 * batch * length**2 * width
    assert counter.get_total_flops() == expected
    heads_first = x.view(batch, length, heads, -1).transpose(1, 2)
    with flop_counter() as counter:
        nn.functional.scaled_dot_product_attention(heads_first, heads_first, heads_first)
    assert counter.get_total_flops() == 4 * batch * length**2 * width


def test_parts_add_up_and_methods_are_restored(tiny_model: nn.Module) -> None:
    data = random_image(64)
    before = dict(vars(tiny_model.head))
    with PartMeter(tiny_model, TimeAndMemoryProbe(torch.device("cpu"))) as meter:
        tiny_model.test_step(data())
    assert vars(tiny_model.head).keys() == before.keys()
    assert {"UNet", "VAE encoder", "VAE decoder", "pixel decoder", "MaskCLIP"} < set(meter.samples)
    total = meter.total()
    seconds = sum(sample.seconds for sample in meter.samples.values())
    assert total.seconds == pytest.approx(seconds)
    assert total.peak_bytes == max(sample.peak_bytes for sample in meter.samples.values())


def test_peak_memory_is_that_of_the_part() -> None:
    probe = TimeAndMemoryProbe(torch.device("cpu"))
    if not benchmark_can_reset():
        pytest.skip("this system cannot reset the peak memory of a process")
    probe.take()
    block = torch.ones(64 * 2**20)  # 256 MB
    del block
    with_block, without = probe.take().peak_bytes, probe.take().peak_bytes
    assert with_block - without > 200e6


def benchmark_can_reset() -> bool:
    from odise_mm.analysis.parts import reset_process_peak

    return reset_process_peak()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_reports_everything(precision: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "sub" / "numbers.json"
    arguments = ["odise_tiny", "--size", "64", "--repeats", "1", "--precision", precision]
    assert benchmark.main([*arguments, "--format", "markdown", "--json", str(file)]) == 0
    output = capsys.readouterr().out
    assert "| UNet |" in output and "load average" in output and "Weights:" in output
    numbers = json.loads(file.read_text())
    size = numbers["sizes"]["64"]
    assert size["total_seconds"] > 0 and size["total_peak_bytes"] > 0
    assert set(size["flops"]) <= set(size["seconds"]) | {"text encoder"}
    model = build_on_meta(load_model_config("odise_tiny")).set_precision(precision)
    assert model.backbone.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    # the rest are a few buffers (noise, attention masks, empty prompt)
    assert parameters < numbers["weights_bytes"] < parameters + 500_000


def test_flops_only_needs_no_weights(capsys: pytest.CaptureFixture) -> None:
    assert benchmark.main(["odise_tiny", "--flops-only", "--size", "64", "--format", "json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert "weights_bytes" not in numbers
    assert "seconds" not in numbers["sizes"]["64"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda:99"], "cuda:99"),
        (["--vocabulary", "nope.txt"], "vocabulary file 'nope.txt' not found"),
        (["--precision", "fp16"], "fp16 is for GPUs"),
    ],
)
def test_mistakes_end_in_one_line_before_anything_is_built(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("odise_mm.analysis.meta.build_model", None)
    with pytest.raises(SystemExit) as end:
        benchmark.main(["odise_tiny", *arguments])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        ["benchmark.py", "odise_tiny", "--flops-only", "--size", "64"],
        ["model_summary.py", "odise_tiny"],
    ],
    ids=lambda command: command[0],
)
def test_stdout_contains_only_json(command: list[str]) -> None:
    # In a separate process, as the first message of a process determines the log's stream.
    tool, *arguments = command
    path = Path(benchmark.__file__).with_name(tool)
    done = subprocess.run(
        [sys.executable, path, *arguments, "--format", "json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["config"] == "odise_tiny"


def test_crops_against_pooling(tiny_model: nn.Module) -> None:
    """Both use the same masks; the FLOPs of the 100 crops equal a count by hand."""
    found = compare_crops(tiny_model, 64, torch.device("cpu"), repeats=2)
    clip = tiny_model.clip
    with flop_counter() as counter, torch.no_grad():
        clip.encode_image(torch.rand(1, 3, clip.image_size, clip.image_size))
    one = counter.get_total_flops()
    pooling, crops = found["mask pooling"], found["box crops"]
    assert found["masks"] == 100
    # both compare 100 embeddings with 18 names of 64 numbers
    assert crops["flops"] == 100 * one + 2 * 100 * 64 * 18
    assert one < pooling["flops"] < crops["flops"]
    assert len(pooling["seconds"]) == len(crops["seconds"]) == 2
    middle = [sum(sorted(way["seconds"])) / 2 for way in (pooling, crops)]
    assert found["ratio"] == pytest.approx(middle[1] / middle[0])


def test_crops_without_mask_clip_raises(tiny_model: nn.Module) -> None:
    classifiers = tiny_model.classifiers
    tiny_model.classifiers = classifiers[:1]
    try:
        with pytest.raises(ConfigError, match="classification/both"):
            compare_crops(tiny_model, 64, torch.device("cpu"), repeats=1)
    finally:
        tiny_model.classifiers = classifiers
    with pytest.raises(SystemExit):
        benchmark.parse_args(["odise_tiny", "--crops", "--flops-only"])
