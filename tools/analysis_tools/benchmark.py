#!/usr/bin/env python
"""FLOPs, time and peak memory of every part of a model, beside the published implementation's.

FLOPs are counted on torch's meta device, by shapes alone: seconds at any size. Names are embedded
before anything is measured. With made-up weights (the default) no download is needed; what the
parts cost does not depend on the weights' values.

Examples:
    python tools/analysis_tools/benchmark.py odise_coco_label --flops-only --size 512 --size 1024
    python tools/analysis_tools/benchmark.py odise_coco_label --size 512 --precision bf16
    python tools/analysis_tools/benchmark.py odise_coco_label --size 512 --precision bf16 --crops
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # runs from a clone that is not installed, too

from odise_mm.analysis import published  # noqa: E402
from odise_mm.benchmarks.tables import FORMATS, Table, show, write_json  # noqa: E402
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int  # noqa: E402
from odise_mm.utils.outputs import check_outputs  # noqa: E402
from odise_mm.utils.precision import PRECISIONS  # noqa: E402

if TYPE_CHECKING:
    import torch

    from odise_mm.models import OpenVocabSegmentor

Numbers = dict[str, Any]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", help="config file or its name under configs/")
    parser.add_argument(
        "--size",
        type=positive_int,
        action="append",
        help="edge of the square image in pixels; may be repeated (default: 1024)",
    )
    parser.add_argument(
        "--flops-only", action="store_true", help="no weights, no memory, no timing"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument(
        "--repeats", type=positive_int, default=3, help="runs after the warm-up: their median"
    )
    parser.add_argument(
        "--weights",
        choices=("none", "config"),
        default="none",
        help="made-up weights, or those that the config names (default: %(default)s)",
    )
    parser.add_argument(
        "--vocabulary",
        help="a vocabulary's name or file (default: made-up names, as many as the published "
        f"numbers were counted with: {published.COUNTED_CLASSES} classes, "
        f"{published.COUNTED_SYNONYMS} synonyms)",
    )
    parser.add_argument("--max-tiles-per-batch", type=positive_int, help="instead of the config's")
    parser.add_argument("--threads", type=positive_int, help="of torch on the CPU")
    parser.add_argument("--compile", action="store_true", help="torch.compile the frozen parts")
    parser.add_argument(
        "--crops",
        action="store_true",
        help="also compare CLIP's mask pooling with box crops of the same masks, in turns",
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="default: %(default)s")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there, too")
    args = parser.parse_args(argv)
    if args.crops and args.flops_only:
        parser.error("--crops measures time: not with --flops-only")
    args.size = args.size or [1024]
    return args


def describe_machine(device: torch.device) -> Numbers:
    """What the numbers were measured on, and how busy it was."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": usable,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
        machine["gpu_bytes"] = torch.cuda.get_device_properties(device).total_memory
    return machine


def make_vocabulary(name: str | None) -> Any:
    """The vocabulary of that name, or made-up names as in the published count."""
    from odise_mm.vocabulary import Vocabulary

    if name:
        return Vocabulary.load(name)
    classes = [[f"name {i}"] for i in range(published.COUNTED_CLASSES)]
    for i in range(published.COUNTED_SYNONYMS - published.COUNTED_CLASSES):
        classes[i].append(f"other name {i}")
    return Vocabulary.parse("; ".join(", ".join(synonyms) for synonyms in classes))


def count_flops(model: OpenVocabSegmentor, size: int) -> dict[str, int]:
    """FLOPs of one image by part.

    Args:
        model: from :func:`odise_mm.analysis.meta.build_on_meta`.
        size: edge of the image in pixels.
    """
    from odise_mm.analysis.meta import flop_counter, run_on_meta
    from odise_mm.analysis.parts import POST_PROCESSING, FlopProbe, PartMeter

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
    """Time and peak memory of one image by part: medians of ``repeats`` runs after a warm-up.

    Returns:
        ``seconds`` and ``peak_bytes`` by part, ``totals`` (seconds of every run), ``warm_up``
        (seconds), ``total_seconds``, ``total_peak_bytes``, ``bytes_before`` (memory in use before
        the first run: on the CPU that of the whole process) and ``peak_can_be_reset``.
    """
    import torch

    from odise_mm.analysis.parts import (
        PartMeter,
        TimeAndMemoryProbe,
        process_memory,
        reset_process_peak,
    )

    data = _random_image(size)
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
    """Mask pooling against box crops: CLIP's opinion on the same masks of one image, in turns.

    Args:
        model: whose second classifier pools inside masks.
        size: edge of the image in pixels.
        device: of the model.
        repeats: of each, after a warm-up.

    Returns:
        For ``mask pooling`` and ``box crops``: ``flops`` and ``seconds`` (of every run); ``ratio``
        of the medians, crops to pooling; ``masks``, how many.

    Raises:
        ConfigError: the model has no such classifier.
    """
    import torch

    from odise_mm.analysis.meta import flop_counter
    from odise_mm.errors import ConfigError
    from odise_mm.models import CropCLIPClassifier, MaskCLIPClassifier

    pooling = model.classifiers[1] if len(model.classifiers) > 1 else None
    if not isinstance(pooling, MaskCLIPClassifier):
        raise ConfigError(
            "--crops compares with a MaskCLIPClassifier, and the config's model has none as its "
            "second classifier: take one that has, such as ablation/classification/both"
        )
    crops = CropCLIPClassifier(pooling.clip, pooling.text_encoder, pooling.template)
    inputs: list[tuple] = []
    hook = pooling.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments))
    with torch.no_grad():
        model.test_step(_random_image(size)())
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


def _random_image(size: int) -> Any:
    import torch
    from mmdet.structures import DetDataSample

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
    """Bytes of all parameters and buffers; what is shared counts once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


def run(args: argparse.Namespace) -> Numbers:
    """All numbers that were asked for."""
    import warnings

    import torch

    from odise_mm.analysis.meta import build_on_meta, load_model_config
    from odise_mm.config.building import build_model
    from odise_mm.utils.device import pick_device
    from odise_mm.utils.memory import memory_guard
    from odise_mm.utils.precision import check_precision

    warnings.filterwarnings("ignore", message="torch.meshgrid")  # mmdet's, harmless
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    if not args.flops_only:
        check_precision(args.precision, device)
    vocabulary = make_vocabulary(args.vocabulary)
    result: Numbers = {
        "config": args.config,
        "machine": describe_machine(device),
        "device": str(device),
        "precision": args.precision,
        "compiled": args.compile,
        "weights": args.weights,
    }
    result["vocabulary"] = {
        "classes": len(vocabulary),
        "synonyms": len(vocabulary.flat[0]),
        "as_published": not args.vocabulary,
    }

    cfg = load_model_config(args.config)
    if args.max_tiles_per_batch:
        cfg.model.max_tiles_per_batch = args.max_tiles_per_batch
    result["published_architecture"] = published.is_published_architecture(cfg.model)
    on_meta = build_on_meta(cfg)
    on_meta.vocabulary = vocabulary
    sizes = {size: {"flops": count_flops(on_meta, size)} for size in args.size}
    result["sizes"] = sizes
    if args.flops_only:
        return result

    weights = args.weights == "config"
    real_cfg = load_model_config(args.config, weights=True) if weights else cfg
    real_cfg.model.max_tiles_per_batch = cfg.model.get("max_tiles_per_batch", 4)
    torch.manual_seed(0)
    with memory_guard(device, args.precision):
        model = build_model(real_cfg).eval().set_precision(args.precision).to(device)
    model.vocabulary = vocabulary
    if args.compile:
        model.compile_frozen()
    result["weights_bytes"] = tensor_bytes(model)
    for size in args.size:
        with memory_guard(device, args.precision, [(size, size)]):
            sizes[size] |= measure(model, size, device, args.repeats, args.compile)
            if args.crops:
                sizes[size]["crops"] = compare_crops(model, size, device, args.repeats)
    return result


def make_tables(result: Numbers) -> list[Table]:
    """The numbers for people: one table per size, and the machine."""
    tables = [_size_table(result, size) for size in result["sizes"]]
    return tables + [_crops_table(result, s) for s, n in result["sizes"].items() if "crops" in n]


def _crops_table(result: Numbers, size: int) -> Table:
    found = result["sizes"][size]["crops"]
    title = f"CLIP's opinion on {found['masks']} masks: {_title(result, size)}"
    table = Table(title, ("way", "GFLOP", "seconds", "from", "to"))
    pooling, crops = found["mask pooling"], found["box crops"]
    for name in ("mask pooling", "box crops"):
        times = found[name]["seconds"]
        shown = (statistics.median(times), min(times), max(times))
        table.rows.append((name, _giga(found[name]["flops"]), *(f"{t:.3f}" for t in shown)))
    flops = crops["flops"] / pooling["flops"]
    table.notes = [
        f"Crops take {found['ratio']:.1f} times the time and {flops:.1f} times the FLOPs. Medians "
        f"of {len(crops['seconds'])} runs of each, in turns, on the same masks; how large these "
        "are hardly matters, as every crop is resized to CLIP's size."
    ]
    return table


def _size_table(result: Numbers, size: int) -> Table:
    numbers = result["sizes"][size]
    theirs = published.FLOPS.get(size) if result["published_architecture"] else None
    timed = "seconds" in numbers
    table = Table(_title(result, size), ["part", "GFLOP"])
    if theirs:
        table.columns += ["published, needed", "published, all", "share of needed", "of all"]
    if timed:
        table.columns += ["seconds", "share of time", "peak GB"]
    found = [*(theirs or {}), *numbers["flops"], *numbers.get("seconds", {})]
    known = [part for part in published.FLOPS[1024] if part in found]
    for part in [*dict.fromkeys([*known, *found]), None]:
        if part is None:
            table.rows.append(())
        flops = _of(numbers["flops"], part)
        row = [part or "total", _giga(flops)]
        if theirs:
            needed = _of({name: cost.needed for name, cost in theirs.items()}, part)
            everything = _of({name: cost.total for name, cost in theirs.items()}, part)
            row += [_giga(needed), _giga(everything)]
            row += [_percent(flops, needed), _percent(flops, everything)]
        if timed:
            row += _time_and_memory(numbers, part)
        table.rows.append(row)
    table.notes = _notes(result, size, theirs)
    return table


def _of(numbers: dict[str, int], part: str | None) -> int:
    return sum(numbers.values()) if part is None else numbers.get(part, 0)


def _giga(number: int) -> str:
    return f"{number / 1e9:,.2f}" if number else "0"


def _percent(number: float, whole: float) -> str:
    return f"{100 * number / whole:.2f} %" if whole else ""


def _time_and_memory(numbers: Numbers, part: str | None) -> list[str]:
    total = numbers["total_seconds"]
    if part is None:
        return [f"{total:.3f}", "100 %", f"{numbers['total_peak_bytes'] / 1e9:.2f}"]
    if part not in numbers["seconds"]:
        return ["", "", ""]
    seconds, peak = numbers["seconds"][part], numbers["peak_bytes"][part]
    return [f"{seconds:.3f}", _percent(seconds, total), f"{peak / 1e9:.2f}"]


def _title(result: Numbers, size: int) -> str:
    title = f"{Path(result['config']).stem}, {size} x {size}"
    if "seconds" not in result["sizes"][size]:
        return title
    compiled = ", compiled" if result["compiled"] else ""
    return f"{title}, {result['precision']}{compiled} on {result['device']}"


def _notes(result: Numbers, size: int, theirs: Any) -> list[str]:
    numbers = result["sizes"][size]
    words = result["vocabulary"]
    notes = [
        "2 FLOPs per multiply-add, attention included. Names: "
        f"{words['classes']} classes, {words['synonyms']} synonyms, embedded before."
    ]
    if theirs:
        ours, total = sum(numbers["flops"].values()), sum(c.total for c in theirs.values())
        needed = sum(c.needed for c in theirs.values())
        notes.append(
            f"{ours / 1e12:.3f} TFLOP are {ours / total:.2%} of the {total / 1e12:.3f} that the "
            f"published implementation computes ({needed / total:.2%} are needed there)."
        )
        if not words["as_published"]:
            notes.append(
                f"The published count was made with {published.COUNTED_CLASSES} classes; cost of "
                "names and semantic post-processing grows with them."
            )
    if "seconds" not in numbers:
        return notes
    machine, totals = result["machine"], numbers["totals"]
    load = machine["load_average"][0]
    where = machine.get("gpu", f"{machine['cpu']}, {machine['cores']} cores")
    notes.append(
        f"{where}; {machine['threads']} threads, torch {machine['torch']}, load average at the "
        f"start {load}. Median of {len(totals)} runs ({min(totals):.3f} to {max(totals):.3f} s) "
        f"after a warm-up of {numbers['warm_up']:.1f} s."
    )
    what = "Bytes in tensors on the GPU" if "gpu" in machine else "Resident memory of the process"
    whole = "" if numbers["peak_can_be_reset"] else ", since its start (the system can't reset it)"
    notes.append(
        f"Peak: {what.lower()}{whole}; {numbers['bytes_before'] / 1e9:.2f} GB before the first "
        f"run. Weights: {result['weights_bytes'] / 1e9:.3f} GB exactly."
    )
    return notes


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with one_line_errors():
        check_outputs([args.json], [args.config])
        with redirect_stdout(sys.stderr):  # the log must not mix with the numbers
            result = run(args)
        show(make_tables(result), result, args.format)
        if args.json:
            write_json(args.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
