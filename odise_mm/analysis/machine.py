"""Description of the machine that numbers were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine, its software and its load.

    Args:
        device: Device that is measured on.

    Returns:
        ``cpu``, ``cores`` (that this process may use), ``threads``, ``torch``, ``python`` and
        ``load_average``; on CUDA also ``gpu`` and ``gpu_bytes``.
    """
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
