"""Memory pages of tensors that map files."""

from __future__ import annotations

import ctypes
import os
import sys

import numpy as np
import torch

# Bits of an entry of /proc/self/pagemap, see Linux' documentation (admin-guide/mm/pagemap).
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))
_DONT_NEED = 4  # MADV_DONTNEED


def release_pages(tensor: torch.Tensor) -> int:
    """Drop the pages of a tensor that map a file. Its contents do not change.

    The tensor stays usable: its next use reads the pages from the file again, usually from the
    system's cache. Nothing happens if memory of the tensor is not mapped from a file or was written
    to, and on other systems than Linux. No other thread may write to the tensor at the same time.

    Args:
        tensor: a tensor on the CPU. Nothing is dropped for others, and for non-contiguous ones.

    Returns:
        Number of dropped bytes, a multiple of the page size.
    """
    if sys.platform != "linux" or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return 0
    page = os.sysconf("SC_PAGE_SIZE")
    first = tensor.data_ptr() // page
    count = -(-(tensor.data_ptr() + tensor.nbytes) // page) - first
    if tensor.nbytes < page:
        return 0
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            entries = np.frombuffer(os.pread(file.fileno(), 8 * count, 8 * first), np.uint64)
    except OSError:
        return 0
    used = (entries & (_PRESENT | _SWAPPED)) != 0
    if len(entries) != count or (used & ((entries & _OF_FILE) == 0)).any():
        return 0
    libc = ctypes.CDLL(None)
    failed = libc.madvise(ctypes.c_void_p(first * page), ctypes.c_size_t(count * page), _DONT_NEED)
    return 0 if failed else int(used.sum()) * page


def to_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Convert a tensor to float32, and drop the pages of the original if a copy was made."""
    converted = tensor.to(torch.float32)
    if converted is not tensor:
        release_pages(tensor)
    return converted
