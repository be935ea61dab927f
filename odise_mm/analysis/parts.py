"""Parts of a model by name, and meters of what each part uses."""

import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from odise_mm.models import FrozenCLIP, OpenVocabSegmentor, TrainableClassifier
from odise_mm.models.backbones.diffusion.latent import LatentBackbone
from odise_mm.models.segmentors.base_segmentor import BaseSegmentor

# Prefix of a parameter's name -> part; the longest matching prefix counts. A parameter without any
# of these prefixes belongs to a part that is named after its top-level module.
PARAMETER_PARTS = {
    "clip": "CLIP text tower",
    "clip.model.visual": "CLIP image tower",
    "backbone.unet": "UNet",
    "backbone.transformer": "diffusion transformer",
    "backbone.vae.encoder": "VAE encoder",
    "backbone.vae.quant_conv": "VAE encoder",
    "backbone.vae.decoder": "VAE decoder",
    "backbone.vae.post_quant_conv": "VAE decoder",
    "backbone.vae.quantize": "VAE decoder",
    "captioner": "captioner",
    "neck": "feature projection",
    "head": "transformer decoder",
    "head.pixel_decoder": "pixel decoder",
    "head.mask_embedding": "mask embedding",
    "classifiers": "names",
}
TEXT = "text encoder"
REST = "tiles, batches, noise and the rest"
POST_PROCESSING = "post-processing"
CAPTIONER_AND_NAMES = "captioner, names and ensemble"


def part_of(parameter: str) -> str:
    """Return the part that a parameter of the segmentor belongs to.

    Args:
        parameter: Dotted name of the parameter.
    """
    pieces = parameter.rpartition("proposals.segmentor.")[2].split(".")
    for end in range(len(pieces) - 1, 0, -1):
        prefix = ".".join(pieces[:end])
        if prefix in PARAMETER_PARTS:
            return PARAMETER_PARTS[prefix]
    return pieces[0]


@dataclass
class Sample:
    """FLOPs, time and memory that a part used.

    Attributes:
        flops: Floating point operations.
        seconds: Wall-clock time.
        peak_bytes: Peak memory use, weights and everything else included.
    """

    flops: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0

    def add(self, other: "Sample") -> None:
        """Add what was used in another interval: sum FLOPs and times, keep the higher peak."""
        self.flops += other.flops
        self.seconds += other.seconds
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)


class Probe(Protocol):
    """Interface of the probes that :class:`PartMeter` reads."""

    def take(self) -> Sample:
        """Return what was used since the last call."""
        ...


class FlopProbe:
    """Probe of FLOPs.

    Args:
        counter: A running FLOP counter.
    """

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter = counter
        self.last = 0

    def take(self) -> Sample:
        """Return the FLOPs since the last call."""
        total = self.counter.get_total_flops()
        sample = Sample(flops=total - self.last)
        self.last = total
        return sample


class TimeAndMemoryProbe:
    """Probe of wall-clock time and peak memory.

    On CUDA, memory means bytes in tensors. On the CPU it means the resident memory of the process,
    on Linux, where its peak can be reset. On other systems the peak is 0.

    Args:
        device: Device to measure.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.device = device
        gc.collect()
        self._reset_peak()
        self.last = time.perf_counter()

    def take(self) -> Sample:
        """Return the time, and the peak of memory, since the last call."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self.last
        sample = Sample(seconds=seconds, peak_bytes=self._peak())
        self._reset_peak()
        self.last = time.perf_counter()
        return sample

    def _peak(self) -> int:
        if self.cuda:
            return torch.cuda.max_memory_allocated(self.device)
        return process_memory("VmHWM")

    def _reset_peak(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            reset_process_peak()


def process_memory(entry: str) -> int:
    """Return this process's memory use in bytes; 0 on systems without /proc.

    Args:
        entry: ``VmRSS`` for the current use, ``VmHWM`` for the peak.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    for line in status.read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    return 0


def release_freed_memory() -> None:
    """Return freed memory to the system, if the C library can, so that later growth shows."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_process_peak() -> bool:
    """Reset the peak ``VmHWM`` to the current memory use; return False if the system can't."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


class PartMeter:
    """Context manager that measures what each part of a segmentor uses.

    It wraps the methods of the segmentor, and of another that makes masks for it. What a part uses
    inside another part counts only for the inner one, so the parts add up to everything that
    happened inside the context.

    Args:
        model: The segmentor.
        probe: Read whenever a part begins or ends.
        whole_backbone: Measure the backbone as one part. Wrapping the inside of a compiled backbone
            would break its graph.
    """

    def __init__(self, model: BaseSegmentor, probe: Probe, whole_backbone: bool = False) -> None:
        self.model = model
        self.probe = probe
        self.whole_backbone = whole_backbone
        self.samples: dict[str, Sample] = {}
        self._stack = [REST]
        self._wrapped: list[tuple[object, str]] = []

    def __enter__(self) -> "PartMeter":
        self._wrap_all()
        self.probe.take()
        return self

    def __exit__(self, *_: Any) -> None:
        self._switch()
        for owner, method in self._wrapped:
            delattr(owner, method)

    def total(self) -> Sample:
        """Return the sum over all parts."""
        total = Sample()
        for sample in self.samples.values():
            total.add(sample)
        return total

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside this context for the part ``name``."""
        self._switch()
        self._stack.append(name)
        try:
            yield
        finally:
            self._switch()
            self._stack.pop()

    def _switch(self) -> None:
        """Add what was used since the last switch to the current part."""
        self.samples.setdefault(self._stack[-1], Sample()).add(self.probe.take())

    def _wrap(self, owner: object, method: str, part: str | Callable[[str], str]) -> None:
        if (owner, method) in self._wrapped:
            return
        original = getattr(owner, method)

        @wraps(original)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.part(part if isinstance(part, str) else part(self._stack[-1])):
                return original(*args, **kwargs)

        setattr(owner, method, measured)
        self._wrapped.append((owner, method))

    def _wrap_all(self) -> None:
        model = self.model
        segmentors = [part for part in model.modules() if isinstance(part, BaseSegmentor)]
        for segmentor in segmentors:
            if isinstance(segmentor, OpenVocabSegmentor):
                self._wrap_parts_of_masks(segmentor)
        for clip in [m for m in model.modules() if isinstance(m, FrozenCLIP)]:
            self._wrap(clip, "encode_image", _part_of_clip)
            self._wrap(clip, "encode_text", TEXT)
        self._wrap(model.ensemble, "forward", CAPTIONER_AND_NAMES)
        for classifier in [each for segmentor in segmentors for each in segmentor.classifiers]:
            name = type(classifier).__name__.removesuffix("Classifier")
            trained = isinstance(classifier, TrainableClassifier)
            self._wrap(classifier, "forward", CAPTIONER_AND_NAMES if trained else name)
        self._wrap(model, "results_from", POST_PROCESSING)

    def _wrap_parts_of_masks(self, model: OpenVocabSegmentor) -> None:
        if self.whole_backbone:
            self._wrap(model, "extract_tile_features", "backbone")
        if model.captioner is not None:
            self._wrap(model.captioner, "forward", CAPTIONER_AND_NAMES)
        if model.neck is not None:
            self._wrap(model.neck, "forward", "feature projection")
        self._wrap_backbone(model.backbone)
        self._wrap_head(model.head)

    def _wrap_backbone(self, backbone: nn.Module) -> None:
        if self.whole_backbone:
            return
        if not isinstance(backbone, LatentBackbone):
            self._wrap(backbone, "forward", "backbone")
            return
        self._wrap(backbone, "encode", "VAE encoder")
        self._wrap(backbone, "_denoiser_taps", backbone.denoiser)
        self._wrap(backbone, "_decoder_taps", "VAE decoder")

    def _wrap_head(self, head: nn.Module) -> None:
        self._wrap(head, "forward", "transformer decoder: masks")
        self._wrap(head.pixel_decoder, "forward", "pixel decoder")
        for layer in head.transformer_decoder.layers:
            self._wrap(layer, "forward", "transformer decoder: layers")
        # The keys that the layers attend to count for the layers.
        self._wrap(head, "_decoder_memories", "transformer decoder: layers")
        if head.mask_embedding is not None:
            self._wrap(head.mask_embedding, "forward", "mask embedding")


def _part_of_clip(caller: str) -> str:
    return "captioner's CLIP" if caller == CAPTIONER_AND_NAMES else caller
