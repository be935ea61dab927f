"""Cost of inference on one image, part by part: FLOPs, time and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet.structures import DetDataSample

from odise_mm.analysis import published
from odise_mm.analysis.machine import describe_machine
from odise_mm.analysis.meta import build_on_meta, flop_counter, load_model_config, run_on_meta
from odise_mm.analysis.parts import (
    POST_PROCESSING,
    FlopProbe,
    PartMeter,
    TimeAndMemoryProbe,
    process_memory,
    reset_process_peak,
)
from odise_mm.config.building import build_model
from odise_mm.errors import ConfigError
from odise_mm.models import CropCLIPClassifier, MaskCLIPClassifier, OpenVocabSegmentor
from odise_mm.utils.device import pick_device
from odise_mm.utils.memory import memory_guard
from odise_mm.utils.precision import check_precision
from odise_mm.vocabulary import Vocabulary

Numbers = dict[str, Any]


def examine(
    config: str,
    sizes: Sequence[int],
    *,
    flops_only: bool = False,
    device: str = "cpu",
    precision: str = "fp32",
    weights: str = "none",
    vocabulary: str | None = None,
    max_tiles_per_batch: int | None = None,
    compiled: bool = False,
    crops: bool = False,
    repeats: int = 3,
    threads: int | None = None,
) -> Numbers:
    """Count FLOPs, and measure time and memory, of a config's model.

    Args:
        config: Config file, or its name under ``configs/``.
        sizes: Edges of the square images, in pixels.
        flops_only: Count FLOPs, measure nothing.
        device: Device to measure on.
        precision: Precision to measure with, "fp32", "fp16" or "bf16".
        weights: "config" for the weights that the config names, "none" for random weights.
        vocabulary: Name or file of a vocabulary. Defaults to placeholder names, as many as in the
            count for the published code.
        max_tiles_per_batch: Value to use instead of the config's.
        compiled: Compile the frozen parts.
        crops: Also compare CLIP's mask pooling with box crops.
        repeats: Number of measured runs after the warm-up.
        threads: Number of CPU threads of torch.

    Returns:
        All numbers, in a dictionary that can be written as JSON.

    Raises:
        ConfigError: The config does not exist, or has no classifier to compare crops with.
        VocabularyError: The vocabulary does not exist.
    """
    if threads:
        torch.set_num_threads(threads)
    place = pick_device(device)
    if not flops_only:
        check_precision(precision, place)
    names = make_vocabulary(vocabulary)
    result: Numbers = {
        "config": config,
        "machine": describe_machine(place),
        "device": str(place),
        "precision": precision,
        "compiled": compiled,
        "weights": weights,
    }
    result["vocabulary"] = {
        "classes": len(names),
        "synonyms": len(names.flat[0]),
        "as_published": not vocabulary,
    }

    cfg = load_model_config(config)
    if max_tiles_per_batch:
        cfg.model.max_tiles_per_batch = max_tiles_per_batch
    result["published_architecture"] = published.is_published_architecture(cfg.model)
    on_meta = build_on_meta(cfg)
    on_meta.vocabulary = names
    by_size = {size: {"flops": count_flops(on_meta, size)} for size in sizes}
    result["sizes"] = by_size
    if flops_only:
        return result

    real_cfg = load_model_config(config, weights=True) if weights == "config" else cfg
    if max_tiles_per_batch:
        real_cfg.model.max_tiles_per_batch = max_tiles_per_batch
    torch.manual_seed(0)
    with memory_guard(place, precision):
        model = build_model(real_cfg).eval().set_precision(precision).to(place)
    model.vocabulary = names
    if compiled:
        model.compile_frozen()
    result["weights_bytes"] = tensor_bytes(model)
    for size in sizes:
        with memory_guard(place, precision, [(size, size)]):
            by_size[size] |= measure(model, size, place, repeats, compiled)
            if crops:
                by_size[size]["crops"] = compare_crops(model, size, place, repeats)
    return result


def make_vocabulary(name: str | None = None) -> Vocabulary:
    """Load a vocabulary, or make one of placeholder names.

    Args:
        name: Name or file of the vocabulary. Defaults to placeholder names, as many as in the
            count for the published code.
    """
    if name:
        return Vocabulary.load(name)
    classes = [[f"name {i}"] for i in range(published.COUNTED_CLASSES)]
    for i in range(published.COUNTED_SYNONYMS - published.COUNTED_CLASSES):
        classes[i].append(f"other name {i}")
    return Vocabulary.parse("; ".join(", ".join(synonyms) for synonyms in classes))


def count_flops(model: OpenVocabSegmentor, size: int) -> dict[str, int]:
    """Count the FLOPs of inference on one square image, by part.

    Args:
        model: Model from :func:`odise_mm.analysis.meta.build_on_meta`.
        size: Edge of the image in pixels.

    Returns:
        FLOPs of every part, 2 per multiply-add.
    """
    with flop_counter() as counter, PartMeter(model, FlopProbe(counter)) as meter:
        post_process = run_on_meta(model, size, size)
        with meter.part(POST_PROCESSING):
            post_process()
    counts = {part: sample.flops for part, sample in meter.samples.items()}
    if sum(counts.values()) != counter.get_total_flops():
        raise AssertionError("the parts' FLOPs do not sum to the counter's")
    return counts


def measure(
    model: OpenVocabSegmentor, size: int, device: torch.device, repeats: int, compiled: bool
) -> Numbers:
    """Measure time and peak memory of inference on one square image, by part.

    Args:
        model: The model.
        size: Edge of the image in pixels.
        device: Device of the model.
        repeats: Number of measured runs after the warm-up.
        compiled: Whether the frozen parts are compiled. The backbone then counts as one part.

    Returns:
        ``seconds`` (median of the runs) and ``peak_bytes`` by part, ``totals`` (seconds of every
        run), ``warm_up`` (seconds), ``total_seconds``, ``total_peak_bytes``, ``bytes_before``
        (memory in use before the first run; on the CPU, of the whole process) and
        ``peak_can_be_reset``.
    """
    data = random_image(size)
    cuda = device.type == "cuda"
    resets = cuda or reset_process_peak()
    before = torch.cuda.memory_allocated(device) if cuda else process_memory("VmRSS")
    start = time.perf_counter()
    model.test_step(data())
    if cuda:
        torch.cuda.synchronize(device)
    warm_up = time.perf_counter() - start

    runs = []
    for _ in range(repeats):
        probe = TimeAndMemoryProbe(device)
        with PartMeter(model, probe, whole_backbone=compiled) as meter:
            results = model.test_step(data())
        runs.append(meter)
        del results
    parts = list(runs[0].samples)
    totals = [run.total().seconds for run in runs]
    return {
        "seconds": {p: statistics.median(r.samples[p].seconds for r in runs) for p in parts},
        "peak_bytes": {p: max(r.samples[p].peak_bytes for r in runs) for p in parts},
        "totals": totals,
        "warm_up": warm_up,
        "total_seconds": statistics.median(totals),
        "total_peak_bytes": max(run.total().peak_bytes for run in runs),
        "bytes_before": before,
        "peak_can_be_reset": resets,
    }


def compare_crops(
    model: OpenVocabSegmentor, size: int, device: torch.device, repeats: int
) -> Numbers:
    """Compare CLIP's mask pooling with box crops on the masks of one image.

    Both ways run alternately, so that changes of the machine's load affect them equally.

    Args:
        model: A model whose second classifier is a ``MaskCLIPClassifier``.
        size: Edge of the image in pixels.
        device: Device of the model.
        repeats: Number of measured runs of each way, after a warm-up.

    Returns:
        ``flops`` and ``seconds`` (of every run) for ``mask pooling`` and ``box crops``; ``ratio``
        of the median times, crops to pooling; ``masks``, the number of masks.

    Raises:
        ConfigError: The model has no such classifier.
    """
    pooling = model.classifiers[1] if len(model.classifiers) > 1 else None
    if not isinstance(pooling, MaskCLIPClassifier):
        raise ConfigError(
            "--crops needs a model whose second classifier is a MaskCLIPClassifier; "
            "use another config, such as ablation/classification/both"
        )
    crops = CropCLIPClassifier(pooling.clip, pooling.text_encoder, pooling.template)
    inputs: list[tuple] = []
    hook = pooling.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments))
    with torch.no_grad():
        model.test_step(random_image(size)())
    hook.remove()
    ways = {"mask pooling": pooling, "box crops": crops}
    found: Numbers = {"masks": inputs[0][0].masks.shape[1]}
    for name, way in ways.items():
        with flop_counter() as counter:  # warms up as well
            way(*inputs[0])
        found[name] = {"flops": counter.get_total_flops(), "seconds": []}
    for _ in range(repeats):
        for name, way in ways.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            way(*inputs[0])
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found[name]["seconds"].append(time.perf_counter() - start)
    medians = [statistics.median(found[name]["seconds"]) for name in ways]
    return found | {"ratio": medians[1] / medians[0]}


def random_image(size: int) -> Callable[[], Numbers]:
    """Return a function that makes a batch of one noise image, in a data loader's format.

    Args:
        size: Edge of the image in pixels.
    """
    image = torch.randint(
        0, 256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )

    def data() -> Numbers:
        shape = (size, size)
        sample = DetDataSample(
            metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
        )
        return dict(inputs=[image], data_samples=[sample])

    return data


def tensor_bytes(model: OpenVocabSegmentor) -> int:
    """Return the bytes of all parameters and buffers; shared ones count once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)
