"""Selection of the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from odise_mm.errors import DeviceError

_DEVICES = "'cpu', 'cuda', 'cuda:1' or 'mps'"


def pick_device(device: str | torch.device | None) -> torch.device:
    """Return the requested device. None selects CUDA if available, else the CPU.

    Raises:
        DeviceError: If the name is invalid, the device type is not CPU, CUDA or MPS, or the device
            is not available. There is no automatic fallback to the CPU.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as err:
        raise DeviceError(f"{device!r} is not a device; use {_DEVICES}") from err
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"device type of '{device}' is not supported; use {_DEVICES}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            why = (
                "PyTorch finds no usable CUDA device (driver, CUDA_VISIBLE_DEVICES?)"
                if torch.version.cuda
                else "this PyTorch was built without CUDA"
            )
            raise DeviceError(
                f"device '{device}' was requested, but {why}; use device='cpu' to run on the CPU"
            )
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise DeviceError(
                f"device '{device}' was requested, but there are only "
                f"{torch.cuda.device_count()} CUDA devices, numbered from 0"
            )
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' was requested, but PyTorch finds none; use device='cpu'")
    return device


def current_device(device: torch.device) -> AbstractContextManager:
    """Make a GPU the current device, which compiled kernels like mmcv's run on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
