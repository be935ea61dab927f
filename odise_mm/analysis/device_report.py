"""Report on a device: agreement with the CPU, cost of inference and of training steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from odise_mm.analysis.inference_cost import (
    Numbers,
    make_vocabulary,
    measure,
    random_image,
    tensor_bytes,
)
from odise_mm.analysis.machine import describe_machine
from odise_mm.analysis.meta import load_model_config
from odise_mm.analysis.training_cost import training_batch
from odise_mm.analysis.training_ways import CHECKPOINTED, OURS, trained_as
from odise_mm.config.building import build_model
from odise_mm.errors import DeviceError, DeviceMemoryError, OdiseError
from odise_mm.models import OpenVocabSegmentor
from odise_mm.utils.deformable_attention import deformable_attention
from odise_mm.utils.device import pick_device
from odise_mm.utils.memory import memory_guard
from odise_mm.utils.mmcv_ops import ops_backend
from odise_mm.utils.precision import check_precision


def report(
    config: str,
    *,
    device: str = "cuda",
    size: int = 1024,
    agreement_size: int = 512,
    precisions: Sequence[str] | None = None,
    tiles: Sequence[int] = (4, 8),
    batches: Sequence[int] = (1, 2, 4),
    compiled: bool = True,
    training: bool = True,
    weights: str = "none",
    repeats: int = 10,
) -> Numbers:
    """Measure a config's model on a device.

    An entry that cannot be measured, for example because the memory is too small, holds the reason
    as ``error``, and the report goes on.

    Args:
        config: Config file, or its name under ``configs/``.
        device: Device to measure.
        size: Edge of the square image in pixels, for inference and training.
        agreement_size: Edge of the image that is also segmented in float32 on the CPU. 0: don't
            compare.
        precisions: Precisions of inference, of "fp32", "bf16" and "fp16"; None: all that the
            device supports.
        tiles: Numbers of tiles in a batch of the backbone.
        batches: Numbers of images in a training step.
        compiled: Also measure with the frozen parts compiled.
        training: Also measure training steps.
        weights: "config" for the weights that the config names, "none" for random weights.
        repeats: Number of measured runs after the warm-up.

    Returns:
        All numbers, in a dictionary that can be written as JSON: ``machine``, ``agreement``,
        ``attention``, ``inference`` and ``training``.

    Raises:
        ConfigError: The config does not exist.
        DeviceError: The device does not exist.
    """
    place = pick_device(device)
    if precisions is None:
        precisions = ("fp32", "bf16", "fp16") if place.type == "cuda" else ("fp32", "bf16")
    cfg = load_model_config(config, weights=weights == "config")
    result: Numbers = {
        "config": config,
        "device": str(place),
        "size": size,
        "agreement_size": agreement_size,
        "weights": weights,
        "machine": describe_machine(place),
    }
    result["agreement"] = _agreements(cfg, agreement_size, precisions, place)
    result["attention"] = _tried(compare_attention, size, place, repeats)
    result["inference"] = [
        row | _tried(_inference, cfg, size, place, repeats, **row)
        for row in _ways_of_inference(precisions, tiles, compiled)
        if _progress("inference", row)
    ]
    ways = [dict(images=n, checkpointing=c) for n in batches for c in (False, True)]
    result["training"] = [
        row | _tried(_training, cfg, size, place, repeats, **row)
        for row in (ways if training else ())
        if _progress("training step", row)
    ]
    return result


def _ways_of_inference(
    precisions: Sequence[str], tiles: Sequence[int], compiled: bool
) -> Iterator[Numbers]:
    for precision in precisions:
        for number in tiles:
            yield dict(precision=precision, tiles=number, compiled=False)
    if compiled:
        yield dict(precision=precisions[-1], tiles=tiles[-1], compiled=True)


def _progress(what: str, row: Numbers) -> bool:
    print(f"{what}: {', '.join(f'{key} {value}' for key, value in row.items())}", flush=True)
    return True


def _tried(measurement: Any, *args: Any, **row: Any) -> Numbers:
    """Return the numbers of a measurement, or the error that prevented it."""
    try:
        return measurement(*args, **row)
    except (OdiseError, FloatingPointError) as err:
        return {"error": "out of memory" if isinstance(err, DeviceMemoryError) else str(err)}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _build(cfg: Config, precision: str, device: torch.device) -> OpenVocabSegmentor:
    check_precision(precision, device)
    torch.manual_seed(0)
    with memory_guard(device, precision):
        model = build_model(cfg).eval().set_precision(precision).to(device)
    model.vocabulary = make_vocabulary()
    return model


def _agreements(
    cfg: Config, size: int, precisions: Sequence[str], device: torch.device
) -> list[Numbers]:
    if not size:
        return []
    _progress("agreement", dict(device="cpu", precision="fp32"))
    reference = _stages(_build(cfg, "fp32", torch.device("cpu")), size)
    rows = []
    for precision in precisions:
        row = dict(precision=precision)
        _progress("agreement", row)
        rows.append(row | _tried(_agreement, cfg, size, device, reference, **row))
    return rows


def _agreement(
    cfg: Config, size: int, device: torch.device, reference: dict[str, Tensor], precision: str
) -> Numbers:
    with memory_guard(device, precision, [(size, size)]):
        found = _stages(_build(cfg, precision, device), size)
    return compare_stages(found, reference)


def compare_stages(found: dict[str, Tensor], reference: dict[str, Tensor]) -> Numbers:
    """Compare the stages of two models on the same image.

    Args:
        found: Tensors by name, on the CPU.
        reference: Tensors of the same names and shapes.

    Returns:
        For floating point tensors, the largest difference divided by the reference's standard
        deviation; for integer maps, the share of equal pixels.
    """
    numbers = {}
    for name, expected in reference.items():
        got = found[name]
        if expected.is_floating_point():
            difference = (got - expected).abs().max() / expected.std()
            numbers[name] = float(difference)
        else:
            numbers[name] = float((got == expected).float().mean())
    return numbers


@torch.no_grad()
def _stages(model: OpenVocabSegmentor, size: int) -> dict[str, Tensor]:
    """Return the tensors after every stage for one noise image, on the CPU."""
    data = model.data_preprocessor(random_image(size)(), False)
    inputs, samples = data["inputs"], data["data_samples"]
    with model._arithmetic(inputs):
        (pyramid,) = model.extract_pyramids(list(inputs))
    (found,) = model.segment(inputs, samples)
    probabilities = model.probabilities(found)
    model.results_from(found, samples)
    labels = torch.zeros_like(samples[0].pred_panoptic_seg.sem_seg)
    for segment in samples[0].pred_panoptic_seg.segments_info:
        labels[samples[0].pred_panoptic_seg.sem_seg == segment["id"]] = 1 + segment["category_id"]
    stages = {f"features, stride {4 * 2**i}": level for i, level in enumerate(pyramid)}
    stages |= {"mask logits": found.prediction.masks, "probabilities": probabilities}
    stages = {name: tensor.float().cpu() for name, tensor in stages.items()}
    maps = {"panoptic map": labels, "semantic map": samples[0].pred_sem_seg.sem_seg}
    return stages | {name: tensor.long().cpu() for name, tensor in maps.items()}


def compare_attention(size: int, device: torch.device, repeats: int) -> Numbers:
    """Compare mmcv's CUDA kernel of deformable attention with plain PyTorch.

    The inputs have the shapes of the pixel decoder: levels of strides 8, 16 and 32, 8 heads with 32
    channels, 4 points.

    Args:
        size: Edge of the square image in pixels.
        device: Device to measure.
        repeats: Number of measured runs of each way after a warm-up; they alternate.

    Returns:
        ``difference`` (largest, divided by the standard deviation) and median seconds ``kernel``
        and ``pytorch``.

    Raises:
        DeviceError: There is no kernel for this device.
    """
    if device.type != "cuda" or ops_backend() != "compiled":
        raise DeviceError("no CUDA kernel of deformable attention on this device")
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    torch.manual_seed(0)
    edges = torch.tensor([size // stride for stride in (32, 16, 8)], device=device)
    shapes = torch.stack([edges, edges], 1)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    count = int(shapes.prod(1).sum())
    value = torch.randn(1, count, 8, 32, device=device)
    locations = torch.rand(1, count, 8, 3, 4, 2, device=device)
    weights = torch.rand(1, count, 8, 3, 4, device=device)
    ways = {
        "kernel": lambda: MultiScaleDeformableAttnFunction.apply(
            value, shapes, starts, locations, weights, 64
        ),
        "pytorch": lambda: deformable_attention(value, shapes, locations, weights),
    }
    outputs = {name: way() for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            way()
            torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    difference = (outputs["kernel"] - outputs["pytorch"]).abs().max() / outputs["pytorch"].std()
    return {"difference": float(difference)} | {
        name: statistics.median(times) for name, times in seconds.items()
    }


def _inference(
    cfg: Config,
    size: int,
    device: torch.device,
    repeats: int,
    precision: str,
    tiles: int,
    compiled: bool,
) -> Numbers:
    model = _build(cfg, precision, device)
    model.max_tiles_per_batch = tiles
    if compiled:
        model.compile_frozen()
    with memory_guard(device, precision, [(size, size)]):
        numbers = measure(model, size, device, repeats, compiled)
    return numbers | {"weights_bytes": tensor_bytes(model)}


def _training(
    cfg: Config,
    size: int,
    device: torch.device,
    repeats: int,
    images: int,
    checkpointing: bool,
) -> Numbers:
    precision = "bf16" if device.type == "cuda" else "fp32"  # needs no loss scaling
    model = _build(cfg, precision, device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    batch = training_batch(model, size, images)
    seconds = []
    with (
        memory_guard(device, precision, [(size, size)] * images),
        trained_as(model, CHECKPOINTED if checkpointing else OURS),
        _peak(device) as peak,
    ):
        for _ in range(repeats + 1):
            start = time.perf_counter()
            optimizer.zero_grad()
            sum(model(**batch, mode="loss").values()).backward()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])
    return {
        "precision": precision,
        "seconds": median,
        "images_per_second": images / median,
        "peak_bytes": peak[0],
    }


@contextmanager
def _peak(device: torch.device) -> Iterator[list[int]]:
    """Measure the peak of the bytes in tensors on a GPU; 0 on the CPU."""
    peak = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield peak
    if device.type == "cuda":
        peak[0] = torch.cuda.max_memory_allocated(device)
