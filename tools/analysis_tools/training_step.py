#!/usr/bin/env python
"""What one training step costs: who gets gradients, FLOPs, memory kept for the backward pass, time.

Three ways of training the same model are compared: as this package does it, with the UNet's
activations recomputed in the backward pass (`use_checkpoint`), and a baseline in which nothing was
done about the frozen parts: the UNet's weights ask for gradients, VAE and CLIP are tracked too.

FLOPs and bytes are counted on torch's meta device, by shapes alone. With --measure a step is also
run on the CPU with made-up weights.

Examples:
    python tools/analysis_tools/training_step.py odise_tiny --size 512 --measure
    python tools/analysis_tools/training_step.py odise_coco_label --size 1024
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # runs from a clone that is not installed, too

from odise_mm.benchmarks.tables import FORMATS, Table, show, write_json  # noqa: E402
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int  # noqa: E402
from odise_mm.utils.outputs import check_outputs  # noqa: E402

if TYPE_CHECKING:
    import torch
    from mmengine.config import Config

    from odise_mm.models import OpenVocabSegmentor

Numbers = dict[str, Any]
OURS, CHECKPOINTED, BASELINE = "ours", "ours, use_checkpoint", "baseline"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", help="config file or its name under configs/")
    parser.add_argument(
        "--size", type=positive_int, default=512, help="edge of the image (default: %(default)s)"
    )
    parser.add_argument("--measure", action="store_true", help="also run steps on the CPU")
    parser.add_argument(
        "--repeats", type=positive_int, default=3, help="measured steps: their median"
    )
    parser.add_argument("--threads", type=positive_int, help="of torch on the CPU")
    parser.add_argument("--format", choices=FORMATS, default="table", help="default: %(default)s")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there, too")
    return parser.parse_args(argv)


@contextmanager
def trained_as(model: OpenVocabSegmentor, way: str) -> Iterator[None]:
    """Inside, the model is trained in one of the three ways."""
    import torch

    from odise_mm.models.frozen import FrozenModule

    backbone, clip = model.backbone, getattr(model, "clip", None)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for part in model.modules():
        if isinstance(part, FrozenModule):
            part.requires_grad_(False)
    before = getattr(backbone, "use_checkpoint", False)
    backbone.use_checkpoint = way == CHECKPOINTED
    patched = []
    if way == BASELINE:
        backbone.requires_grad_(True)
        tracked = torch.enable_grad()
        for method in ("encode", "_decoder_taps"):
            if hasattr(backbone, method):
                setattr(backbone, method, tracked(getattr(backbone, method)))
                patched.append((backbone, method))
        if clip is not None:
            clip.visual.requires_grad_(True)
            untracked = type(clip).encode_image
            original = getattr(untracked, "__wrapped__", untracked)
            clip.encode_image = tracked(original.__get__(clip))
            patched.append((clip, "encode_image"))
    try:
        yield
    finally:
        for owner, method in patched:
            delattr(owner, method)
        backbone.use_checkpoint = before
        for part in model.modules():
            if isinstance(part, FrozenModule):
                part.requires_grad_(False)


def gradient_nodes(model: OpenVocabSegmentor, loss: torch.Tensor) -> dict[str, Counter[str]]:
    """What the autograd graph of a loss ends in: ``AccumulateGrad`` nodes and numbers, by part."""
    from odise_mm.analysis.parts import part_of

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    nodes: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            part = part_of(names[id(node.variable)])
            nodes[part] += 1
            numbers[part] += node.variable.numel()
        waiting.extend(child for child, _ in node.next_functions)
    return {"nodes": nodes, "numbers": numbers}


@contextmanager
def fused_attention() -> Iterator[None]:
    """On the meta device torch takes attention apart, which keeps matrices that no device keeps."""
    import torch
    from torch.overrides import TorchFunctionMode

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    class Fused(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            kwargs = kwargs or {}
            if func is torch.nn.functional.scaled_dot_product_attention:
                plain = len(args) == 3 and not any(v for k, v in kwargs.items() if k != "scale")
                if plain:
                    return fused(*args, scale=kwargs.get("scale"))[0]
            return func(*args, **kwargs)

    with Fused():
        yield


class _Kept:
    """Counts what autograd keeps, each storage once, weights left out.

    With checkpointing a block keeps its inputs; what it would keep itself is recomputed, one block
    at a time. That is counted here rather than run, as torch's checkpointing needs a real device.
    """

    def __init__(self, model: OpenVocabSegmentor, checkpointing: bool, flops: Any) -> None:
        self.weights = {p.untyped_storage()._cdata for p in model.parameters()}
        self.checkpointing = checkpointing
        self.flops = flops
        self.storages: dict[int, int] = {}
        self.alive: list[torch.Tensor] = []  # so that no address is used twice
        self.block: dict[int, int] | None = None
        self.largest_block = 0
        self.recomputed_flops = 0

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights:
            into = self.storages if self.block is None else self.block
            into[storage._cdata] = storage.nbytes()
            self.alive.append(tensor)
        return tensor

    def wrap(self, run: Any) -> Any:
        """Around the method that runs the UNet's blocks."""

        def counted(layer: Any, *inputs: Any, **options: Any) -> Any:
            if not self.checkpointing:
                return run(layer, *inputs, **options)
            for tensor in inputs:
                self.add(tensor)
            self.block, before = {}, self.flops.get_total_flops()
            output = run(layer, *inputs, **options)
            self.largest_block = max(self.largest_block, sum(self.block.values()))
            self.recomputed_flops += self.flops.get_total_flops() - before
            self.block = None
            return output

        return counted


def count(cfg: Config, size: int, way: str, sixteen_bit: bool) -> Numbers:
    """FLOPs, kept bytes and gradients of one step with one square image, by shapes alone.

    Matching depends on values: in place of the losses stands a sum over all that they read.

    Args:
        cfg: from :func:`odise_mm.analysis.meta.load_model_config`.
        size: edge of the image in pixels, a multiple of 64.
        way: one of the three ways of training.
        sixteen_bit: whether the frozen parts are stored and run in 16 bit. The trained parts are
            counted in float32 all the same, so that their share is an upper bound.
    """
    import torch

    from odise_mm.analysis.meta import build_on_meta, flop_counter, running_on_meta

    model = build_on_meta(cfg)
    if sixteen_bit:
        model.set_precision("bf16")
        model.neck.register_forward_pre_hook(
            lambda _, inputs: ([level.float() for level in inputs[0]], *inputs[1:])
        )
    contexts = (trained_as(model, way), running_on_meta(), fused_attention())
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        stack.enter_context(torch.enable_grad())
        f = stack.enter_context(flop_counter())
        model.backbone.use_checkpoint = False
        kept = _Kept(model, way == CHECKPOINTED, f)
        if hasattr(model.backbone, "_run"):
            model.backbone._run = kept.wrap(model.backbone._run)
        with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
            loss = _surrogate_loss(model, torch.empty(3, size, size, device="meta"))
        gradients = gradient_nodes(model, loss)
        forward = f.get_total_flops()
        loss.backward()
        backward = f.get_total_flops() - forward
    return {
        "forward_flops": forward,
        "backward_flops": backward + kept.recomputed_flops,
        "kept_bytes": sum(kept.storages.values()),
        "recomputed_bytes": kept.largest_block,
        "gradient_nodes": dict(gradients["nodes"]),
        "gradient_numbers": dict(gradients["numbers"]),
    }


def _surrogate_loss(model: OpenVocabSegmentor, image: torch.Tensor) -> torch.Tensor:
    (pyramid,) = model.extract_pyramids([image])
    predictions = model.head(tuple(level[None] for level in pyramid), all_layers=True)
    embeddings = [prediction.embeddings for prediction in predictions]
    own = model.classifiers[0]
    if model.grounding is None:
        read = own.supervised_logits(embeddings, model.vocabulary)
    else:
        words = own.word_embeddings([["word"] * 8])
        valid = image.new_ones((1, 8)).bool()
        read = [model.grounding(layer, words, valid, own.scale) for layer in embeddings]
        read += [prediction.objectness for prediction in predictions]
    return sum(x.float().mean() for x in [*read, *(p.masks for p in predictions)])


def measure(cfg: Config, size: int, way: str, repeats: int) -> Numbers:
    """Time and memory of real steps (forward, losses, backward) on the CPU, after a warm-up.

    In a process of its own: memory that one way has freed would hide what the next one needs.

    Returns:
        ``seconds`` and ``cpu_seconds`` (medians; the latter, of all threads, hardly depends on what
        else the machine does) and ``peak_bytes``: how far the process grew above what it
        used before the first step, gradients included.
    """
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    import torch

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, cfg, size, way, repeats, torch.get_num_threads()).result()


def _measure(cfg: Config, size: int, way: str, repeats: int, threads: int) -> Numbers:
    import gc
    import statistics
    import time

    import torch

    from odise_mm.analysis.parts import process_memory, reset_process_peak
    from odise_mm.config.building import build_model

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    batch = _batch(model, size)
    if model.grounding is None:
        model.classifiers[0].text_encoder(model.vocabulary.flat[0])  # names are embedded before
    seconds, cpu_seconds = [], []
    gc.collect()
    before = process_memory("VmRSS")
    reset_process_peak()
    with trained_as(model, way):
        for _ in range(repeats + 1):
            model.zero_grad()
            start, cpu_start = time.perf_counter(), time.process_time()
            sum(model(**batch, mode="loss").values()).backward()
            seconds.append(time.perf_counter() - start)
            cpu_seconds.append(time.process_time() - cpu_start)
    return {
        "seconds": statistics.median(seconds[1:]),
        "cpu_seconds": statistics.median(cpu_seconds[1:]),
        "peak_bytes": process_memory("VmHWM") - before,
    }


def _batch(model: OpenVocabSegmentor, size: int) -> Numbers:
    import numpy as np
    import torch
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)
    masks = np.zeros((8, size, size), np.uint8)
    for i, rows in enumerate(np.array_split(np.arange(size), 8)):
        masks[i, rows] = 1
    sample = DetDataSample(metainfo=dict(img_shape=(size, size), words=["word"] * 8))
    labels = torch.arange(8) % len(model.vocabulary)
    sample.gt_instances = InstanceData(labels=labels, masks=BitmapMasks(masks, size, size))
    return model.data_preprocessor(dict(inputs=[image], data_samples=[sample]), True)


def run(args: argparse.Namespace) -> Numbers:
    """All numbers that were asked for."""
    import warnings

    import torch

    from odise_mm.analysis.meta import load_model_config
    from odise_mm.errors import ConfigError
    from tools.analysis_tools.benchmark import describe_machine

    warnings.filterwarnings("ignore", message="torch.meshgrid")  # mmdet's, harmless
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.size % 64:
        raise ConfigError(f"--size {args.size}: a multiple of 64")
    cfg = load_model_config(args.config)
    result: Numbers = {"config": args.config, "size": args.size, "ways": {}}
    for way in (OURS, CHECKPOINTED, BASELINE):
        numbers = count(cfg, args.size, way, sixteen_bit=False)
        half = count(cfg, args.size, way, sixteen_bit=True)
        numbers["kept_bytes_16_bit"] = half["kept_bytes"]
        numbers["recomputed_bytes_16_bit"] = half["recomputed_bytes"]
        result["ways"][way] = numbers
    if args.measure:
        result["machine"] = describe_machine(torch.device("cpu"))
        for way, numbers in result["ways"].items():
            numbers["measured"] = measure(cfg, args.size, way, args.repeats)
    return result


def make_tables(result: Numbers) -> list[Table]:
    """Who gets gradients, and what a step costs."""
    ways = result["ways"]
    parts = dict.fromkeys(part for w in ways.values() for part in w["gradient_numbers"])
    who = Table("numbers that get gradients (AccumulateGrad nodes)", ["part", *ways])
    for part in parts:
        who.rows.append([part, *(_numbers(w, part) for w in ways.values())])
    who.rows += [(), ["total", *(_numbers(w, None) for w in ways.values())]]

    title = f"{result['config']}: one step, one image of {result['size']} x {result['size']}"
    rows = {
        "forward, GFLOP": lambda w: f"{w['forward_flops'] / 1e9:,.1f}",
        "backward, GFLOP": lambda w: f"{w['backward_flops'] / 1e9:,.1f}",
        "kept for the backward pass, float32, GB": lambda w: _giga(w["kept_bytes"]),
        "recomputed at a time, float32, GB": lambda w: _giga(w["recomputed_bytes"]),
        "kept, frozen parts in 16 bit, GB": lambda w: _giga(w["kept_bytes_16_bit"]),
        "recomputed at a time, 16 bit, GB": lambda w: _giga(w["recomputed_bytes_16_bit"]),
    }
    if "machine" in result:
        rows["seconds, measured"] = lambda w: f"{w['measured']['seconds']:.2f}"
        rows["CPU seconds, measured"] = lambda w: f"{w['measured']['cpu_seconds']:.2f}"
        rows["peak above the start, measured, GB"] = lambda w: _giga(w["measured"]["peak_bytes"])
    cost = Table(title, ["", *ways])
    cost.rows = [[name, *(cell(w) for w in ways.values())] for name, cell in rows.items()]
    cost.notes = [
        "baseline: the UNet's and VAE's weights and CLIP's image tower ask for gradients.",
        "FLOPs and bytes: on the meta device, 2 FLOPs per multiply-add, without the losses' points "
        "and matching. Bytes: activations, each storage once, without weights. With 16 bit the "
        "trained parts are counted in float32: an upper bound.",
        "ours: the UNet's weights get no gradient and no FLOP is spent on any; the backward pass "
        f"takes {_share(ways)} of the baseline's FLOPs.",
    ]
    if "machine" in result:
        machine = result["machine"]
        cost.notes.append(
            f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, "
            f"load {machine['load_average'][0]} at the start."
        )
    return [who, cost]


def _numbers(way: Numbers, part: str | None) -> str:
    numbers, nodes = way["gradient_numbers"], way["gradient_nodes"]
    if part is None:
        return f"{sum(numbers.values()):,} ({sum(nodes.values())})"
    return f"{numbers[part]:,} ({nodes[part]})" if part in numbers else "0"


def _giga(size: int) -> str:
    return f"{size / 1e9:.2f}"


def _share(ways: dict[str, Numbers]) -> str:
    return f"{ways[OURS]['backward_flops'] / ways[BASELINE]['backward_flops']:.0%}"


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
