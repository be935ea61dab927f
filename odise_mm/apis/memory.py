"""Running out of memory, said in one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


class DeviceMemoryError(RuntimeError):
    """The device's memory does not suffice. The message says what to lower."""


@contextmanager
def memory_guard(
    device: torch.device, precision: str, sizes: Sequence[tuple[int, int]] = ()
) -> Iterator[None]:
    """Turn running out of memory into an error that says what to lower.

    Nothing is tried again elsewhere: a run that silently went on on the CPU would take hours.

    Args:
        device: where the work runs.
        precision: "fp32", "bf16" or "fp16".
        sizes: (height, width) of the pictures in the batch; none while the model is loaded.

    Raises:
        DeviceMemoryError: when the work inside runs out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as err:
        if not _is_out_of_memory(err):
            raise
        if device.type == "cuda" and torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise DeviceMemoryError(
            f"out of memory on {device} {_doing(sizes)}; {_advice(precision, sizes)}. "
            "Nothing was moved to another device."
        ) from err


def _is_out_of_memory(err: BaseException) -> bool:
    if isinstance(err, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The CPU's allocator has no exception type of its own.
    return "DefaultCPUAllocator" in str(err)


def _doing(sizes: Sequence[tuple[int, int]]) -> str:
    if not sizes:
        return "while loading the model"
    shown = ", ".join(f"{width} x {height}" for height, width in sizes)
    return f"with {len(sizes)} picture{'s' if len(sizes) > 1 else ''} of {shown} pixels"


def _advice(precision: str, sizes: Sequence[tuple[int, int]]) -> str:
    lower = []
    if len(sizes) > 1:
        lower.append(f"the batch size (now {len(sizes)})")
    if sizes:
        lower += ["max_tiles_per_batch", "the image scale of the config's test pipeline"]
    if precision == "fp32":
        lower.append("the precision (bf16 or fp16)")
    more = "use a device with more memory"
    return f"lower {', '.join(lower)}, or {more}" if lower else more
