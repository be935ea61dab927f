"""Readable errors for running out of memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from odise_mm.errors import DeviceMemoryError
from odise_mm.utils.display import printable


@contextmanager
def memory_guard(
    device: torch.device,
    precision: str,
    sizes: Sequence[tuple[int, int]] = (),
    originals: Sequence[tuple[int, int]] = (),
) -> Iterator[None]:
    """Turn running out of memory into an error that suggests which settings to lower.

    There is no fallback to another device: on the CPU, the run could take hours.

    Args:
        device: Device of the block.
        precision: "fp32", "bf16" or "fp16".
        sizes: (height, width) of the model's input images in pixels; empty while the model is
            loaded.
        originals: (height, width) of the original images, if the results have that size.

    Raises:
        DeviceMemoryError: If the block runs out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err, device):
            raise
        if device.type == "cuda" and torch.cuda.is_available():
            with suppress(RuntimeError):  # a failing device must not hide the message below
                torch.cuda.empty_cache()
        raise DeviceMemoryError(
            f"out of memory on {device} {_doing(sizes)}; {_advice(precision, sizes, originals)}. "
            "Nothing was moved to another device."
        ) from err


@contextmanager
def image_guard(name: str, shape: tuple[int, ...]) -> Iterator[None]:
    """Turn running out of main memory while processing an image into an error that names it.

    Args:
        name: Name of the image.
        shape: (height, width, ...).

    Raises:
        DeviceMemoryError: If the block runs out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err, torch.device("cpu")):
            raise
        raise DeviceMemoryError(
            f"{printable(name)}: not enough memory for its {shape[1]} x {shape[0]} pixels; shrink "
            "it first"
        ) from err


def forget_frames(error: BaseException) -> None:
    """Drop the frames of an error and of its causes, to free the objects that they reference."""
    at: BaseException | None = error
    while at is not None:
        at.__traceback__ = None
        at = at.__cause__ or at.__context__


# Messages of allocators that have no exception type of their own.
_WORDS = {
    "cuda": ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),  # CUDA itself, cuBLAS
    "mps": ("MPS backend out of memory",),
}


def is_out_of_memory(err: BaseException, device: torch.device) -> bool:
    """Return whether an error means that the memory of the device or of the CPU is full."""
    if isinstance(err, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("DefaultCPUAllocator", *_WORDS.get(device.type, ()))
    return any(text in str(err) for text in words)


def _doing(sizes: Sequence[tuple[int, int]]) -> str:
    if not sizes:
        return "while loading the model"
    shown = ", ".join(f"{width} x {height}" for height, width in sizes)
    return f"with {len(sizes)} image{'s' if len(sizes) > 1 else ''} of {shown} pixels"


def _advice(
    precision: str, sizes: Sequence[tuple[int, int]], originals: Sequence[tuple[int, int]]
) -> str:
    lower = []
    if len(sizes) > 1:
        lower.append(f"the batch size (now {len(sizes)})")
    if sizes:
        lower += ["max_tiles_per_batch", "the image scale of the config's test pipeline"]
    if precision == "fp32":
        lower.append("the precision (bf16 or fp16)")
    if originals:
        height, width = max(originals, key=lambda hw: hw[0] * hw[1])
        lower.append(
            f"the image's own size (now {width} x {height}: results are made there, and 100 "
            f"masks in float32 take {400 * height * width / 1e9:.1f} GB)"
        )
    more = "use a device with more memory"
    return f"lower {', '.join(lower)}, or {more}" if lower else more
