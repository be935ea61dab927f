"""Cost of a training step: FLOPs and memory, counted on the meta device and measured."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from odise_mm.analysis.machine import describe_machine
from odise_mm.analysis.meta import build_on_meta, flop_counter, load_model_config, running_on_meta
from odise_mm.analysis.parts import process_memory, release_freed_memory, reset_process_peak
from odise_mm.analysis.training_ways import (
    BASELINE,
    CHECKPOINTED,
    OURS,
    gradient_nodes,
    trained_as,
)
from odise_mm.config.building import build_model
from odise_mm.errors import ConfigError
from odise_mm.models import OpenVocabSegmentor
from odise_mm.models.segmentors.supervision import what_is_trained

Numbers = dict[str, Any]


def cost_of_ways(
    config: str,
    size: int,
    *,
    measured: bool = False,
    repeats: int = 3,
    threads: int | None = None,
) -> Numbers:
    """Compute the cost of a training step in each of the three ways of training.

    Args:
        config: Config file, or its name under ``configs/``.
        size: Edge of the square image in pixels, a multiple of 64.
        measured: Also measure steps on the CPU.
        repeats: Number of measured steps.
        threads: Number of CPU threads of torch.

    Returns:
        All numbers, in a dictionary that can be written as JSON.

    Raises:
        ConfigError: The config does not exist, or the size is not a multiple of 64.
    """
    if threads:
        torch.set_num_threads(threads)
    if size % 64:
        raise ConfigError(f"--size {size}: must be a multiple of 64")
    cfg = load_model_config(config)
    result: Numbers = {"config": config, "size": size, "ways": {}}
    for way in (OURS, CHECKPOINTED, BASELINE):
        numbers = count(cfg, size, way, sixteen_bit=False)
        half = count(cfg, size, way, sixteen_bit=True)
        numbers["kept_bytes_16_bit"] = half["kept_bytes"]
        numbers["recomputed_bytes_16_bit"] = half["recomputed_bytes"]
        result["ways"][way] = numbers
    if measured:
        result["machine"] = describe_machine(torch.device("cpu"))
        for way, numbers in result["ways"].items():
            numbers["measured"] = measure(cfg, size, way, repeats)
    return result


def count(cfg: Config, size: int, way: str, sixteen_bit: bool) -> Numbers:
    """Count FLOPs, kept bytes and gradients of one step on one square image, without running it.

    The losses are replaced by :func:`surrogate_loss`, as matching depends on values.

    Args:
        cfg: Config from :func:`odise_mm.analysis.meta.load_model_config`.
        size: Edge of the image in pixels, a multiple of 64.
        way: One of the three ways of training.
        sixteen_bit: Store and run the frozen parts in 16 bit. The trained parts count in float32
            nevertheless, so their share is an upper bound.

    Returns:
        ``forward_flops``, ``backward_flops`` (recomputation included), ``kept_bytes`` (for the
        backward pass), ``recomputed_bytes`` (largest block), and ``gradient_nodes`` and
        ``gradient_numbers`` by part.
    """
    model = build_on_meta(cfg)
    if sixteen_bit:
        model.set_precision("bf16")
        first = model.head if model.neck is None else model.neck
        first.register_forward_pre_hook(
            lambda _, inputs: ([level.float() for level in inputs[0]], *inputs[1:])
        )
    contexts = (trained_as(model, way), running_on_meta(), fused_attention())
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        stack.enter_context(torch.enable_grad())
        f = stack.enter_context(flop_counter())
        model.backbone.use_checkpoint = False
        kept = Kept(model, way == CHECKPOINTED, f)
        if hasattr(model.backbone, "_run"):
            model.backbone._run = kept.wrap(model.backbone._run)
        with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
            loss = surrogate_loss(model, torch.empty(3, size, size, device="meta"))
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


def surrogate_loss(model: OpenVocabSegmentor, image: torch.Tensor) -> torch.Tensor:
    """Return a sum over everything that the losses depend on.

    Args:
        model: The model.
        image: (3, H, W).

    Returns:
        A scalar.
    """
    (pyramid,) = model.extract_pyramids([image])
    predictions = model.head(tuple(level[None] for level in pyramid), all_layers=True)
    embeddings = [prediction.embeddings for prediction in predictions]
    own = what_is_trained(model.head, model.classifiers[0], model.grounding)
    used = [p.objectness for p in predictions if p.objectness is not None]
    if model.grounding is not None:
        words = own.word_embeddings([["word"] * 8])
        valid = image.new_ones((1, 8)).bool()
        used += [model.grounding(layer, words, valid, own.scale) for layer in embeddings]
    elif own is not None:
        used += own.supervised_logits(embeddings, model.vocabulary)
    return sum(x.float().mean() for x in [*used, *(p.masks for p in predictions)])


@contextmanager
def fused_attention() -> Iterator[None]:
    """Use the fused attention kernel inside this context.

    On the meta device torch decomposes attention, and autograd would keep attention matrices that
    no real device keeps.
    """
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


class Kept:
    """Counter of the storages that autograd keeps for the backward pass, without weights.

    With checkpointing, a block of the UNet keeps only its inputs, and everything else is recomputed
    one block at a time. This is counted and not run, as torch's checkpointing needs a real device.

    Args:
        model: The model.
        checkpointing: Whether the UNet uses checkpointing.
        flops: A running FLOP counter.
    """

    def __init__(
        self, model: OpenVocabSegmentor, checkpointing: bool, flops: FlopCounterMode
    ) -> None:
        self.weights = {p.untyped_storage()._cdata for p in model.parameters()}
        self.checkpointing = checkpointing
        self.flops = flops
        self.storages: dict[int, int] = {}
        self.alive: list[torch.Tensor] = []  # keeps tensors alive, so that addresses stay unique
        self.block: dict[int, int] | None = None
        self.largest_block = 0
        self.recomputed_flops = 0

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a tensor's storage and return the tensor."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights:
            into = self.storages if self.block is None else self.block
            into[storage._cdata] = storage.nbytes()
            self.alive.append(tensor)
        return tensor

    def wrap(self, run: Callable) -> Callable:
        """Wrap the method that runs the UNet's blocks."""

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


def measure(cfg: Config, size: int, way: str, repeats: int) -> Numbers:
    """Measure time and memory of real steps (forward, losses, backward) on the CPU.

    The steps run in a separate process, as memory that one way has freed would hide the growth of
    the next one.

    Args:
        cfg: Config of the model.
        size: Edge of the square image in pixels.
        way: One of the three ways of training.
        repeats: Number of measured steps after the warm-up.

    Returns:
        Medians ``seconds`` and ``cpu_seconds`` (of all threads; hardly depends on the load of the
        machine), and ``peak_bytes``: the growth of the process since before the first step,
        gradients included.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, cfg, size, way, repeats, torch.get_num_threads()).result()


def _measure(cfg: Config, size: int, way: str, repeats: int, threads: int) -> Numbers:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    batch = training_batch(model, size)
    if model.grounding is None:
        # Embed the names beforehand, so that no step includes it.
        model.classifiers[0].text_encoder(model.vocabulary.flat[0])
    seconds, cpu_seconds = [], []
    gc.collect()
    release_freed_memory()
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


def training_batch(model: OpenVocabSegmentor, size: int, images: int = 1) -> Numbers:
    """Make a batch of noise images with eight horizontal stripes as masks.

    Args:
        model: The model, for its preprocessor and the number of classes.
        size: Edge of the square images in pixels.
        images: Number of images.

    Returns:
        Arguments of the model's ``loss``, on the model's device.
    """
    generator = torch.Generator().manual_seed(0)
    masks = np.zeros((8, size, size), np.uint8)
    for i, rows in enumerate(np.array_split(np.arange(size), 8)):
        masks[i, rows] = 1
    labels = torch.arange(8) % len(model.vocabulary)
    inputs, samples = [], []
    for _ in range(images):
        shape = (3, size, size)
        inputs.append(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))
        sample = DetDataSample(metainfo=dict(img_shape=(size, size), words=["word"] * 8))
        instances = InstanceData(labels=labels, masks=BitmapMasks(masks, size, size))
        sample.gt_instances = instances
        samples.append(sample)
    return model.data_preprocessor(dict(inputs=inputs, data_samples=samples), True)
