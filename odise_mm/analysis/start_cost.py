"""Cost of starting: time and memory of a new process up to its first result."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from odise_mm.analysis.meta import build_on_meta, load_model_config
from odise_mm.analysis.parts import process_memory
from odise_mm.benchmarks.tables import Table
from odise_mm.checkpoints.safe_loading import save_state_dict
from odise_mm.config.finding import load_config
from odise_mm.errors import ConfigError
from odise_mm.models import DiffusionBackbone
from odise_mm.models.backbones.diffusion.weights import build_text_encoder

_DTYPES = {"fp32": ("F32", 4), "fp16": ("F16", 2)}
STAGES = ("imports", "model", "first image")
# The program of a user: it imports the inferencer, and then everything is measured.
_PROGRAM = """
from odise_mm.analysis.start_cost import report
from odise_mm.apis import OpenVocabInferencer
report(OpenVocabInferencer)
"""
COMMANDS = {
    "import odise_mm": ["-c", "import odise_mm"],
    "odise-mm --help": ["-m", "odise_mm", "--help"],
}


def write_zeros(path: Path, state: Mapping[str, Tensor], precision: str = "fp32") -> int:
    """Write a safetensors file whose tensors are zeros, as a sparse file that takes no disk space.

    Args:
        path: the file; its folder is created.
        state: names and shapes; tensors on the meta device suffice.
        precision: "fp32" or "fp16".

    Returns:
        Size of the tensors in bytes.
    """
    name, width = _DTYPES[precision]
    header: dict[str, Any] = {}
    end = 0
    for key, value in state.items():
        start, end = end, end + value.numel() * width
        header[key] = {"dtype": name, "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end


def write_weights(config: str, folder: Path, precision: str = "fp32") -> dict[str, str]:
    """Write weights files for all parts of a config, in the shapes of the real ones.

    Frozen parts are zeros, see :func:`write_zeros`: neither time nor memory depends on the values.
    The trained part is random and small.

    Args:
        config: a config with a :class:`DiffusionBackbone` and a CLIP.
        folder: an existing folder.
        precision: "fp32" or "fp16", of the frozen parts.

    Returns:
        Arguments of :class:`~odise_mm.apis.OpenVocabInferencer`.

    Raises:
        ConfigError: the model has other frozen parts.
    """
    model = build_on_meta(load_model_config(config))
    backbone = model.backbone
    if not isinstance(backbone, DiffusionBackbone) or backbone.unet is None:
        raise ConfigError(
            f"{config}: the start is measured for models with a DiffusionBackbone that uses a "
            "UNet, such as odise_coco_label"
        )
    diffusion = folder / "diffusion"
    stem = "diffusion_pytorch_model.safetensors"
    write_zeros(diffusion / "unet" / stem, backbone.unet.state_dict(), precision)
    write_zeros(diffusion / "vae" / stem, backbone.vae.state_dict(), precision)
    for part in backbone.arch.text_parts:
        state = build_text_encoder(backbone.arch, part, "meta").state_dict()
        write_zeros(diffusion / part / "model.safetensors", state, precision)
    write_zeros(folder / "clip.safetensors", model.clip.model.state_dict(), precision)
    draw = torch.Generator().manual_seed(0)
    trained = {
        key: 0.02 * torch.randn(value.shape, generator=draw)
        for key, value in model.state_dict().items()
    }
    save_state_dict(folder / "trained.safetensors", trained)
    return dict(
        weights=str(folder / "trained.safetensors"),
        diffusion_weights=str(diffusion),
        clip_weights=str(folder / "clip.safetensors"),
    )


def measure_start(
    config: str,
    size: int | None = 512,
    precision: str = "fp32",
    files: str = "fp32",
    threads: int = 1,
) -> dict[str, Any]:
    """Measure new processes: two short ones, and one that builds a model and segments an image.

    The weights are read from files in the system's cache, so the speed of the disk has no part.

    Args:
        config: see :func:`write_weights`.
        size: edge of the image in pixels, at which it is segmented. None: build the model only.
        precision: precision of the model.
        files: "fp32" or "fp16", of the files of the frozen parts.
        threads: threads of torch.
    """
    result: dict[str, Any] = dict(
        config=config, size=size, precision=precision, files=files, commands={}
    )
    for name, arguments in COMMANDS.items():
        result["commands"][name] = _time_command(arguments)
    with TemporaryDirectory() as name:
        folder = Path(name)
        weights = write_weights(config, folder, files)
        job = dict(
            config=config,
            size=size,
            image=str(folder / "image.png"),
            threads=threads,
            options=dict(precision=precision, device="cpu", **weights),
        )
        if size:
            pixels = np.random.default_rng(0).integers(256, size=(size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(job["image"])
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, json.dumps(job)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return {**result, **json.loads(done.stdout.splitlines()[-1])}


def _time_command(arguments: list[str]) -> dict[str, float]:
    """Run Python twice and return the times of the second run, whose files are in the cache."""
    for _ in range(2):
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return dict(cpu_seconds=cpu, seconds=seconds)


def report(build: Callable[..., Any]) -> None:
    """Run a job of :func:`measure_start` in this process and print its numbers as JSON.

    Args:
        build: :class:`~odise_mm.apis.OpenVocabInferencer`.
    """
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    size = job["size"]
    cfg = load_config(job["config"])
    for step in cfg.test_pipeline if size else ():
        if "scale" in step:
            step["scale"] = (size, size)
    stages = {STAGES[0]: _use()}
    inferencer = build(cfg, **job["options"])
    stages[STAGES[1]] = _use()
    if size:
        inferencer(job["image"], texts="cat; dog")
        stages[STAGES[2]] = _use()
    model = inferencer.model
    kept = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    print(json.dumps(dict(stages=stages, weights_bytes=kept)))


def _use() -> dict[str, float]:
    entries = dict(now="VmRSS", own="RssAnon", peak="VmHWM")
    numbers: dict[str, float] = {key: process_memory(entry) for key, entry in entries.items()}
    return dict(cpu_seconds=sum(os.times()[:2]), **numbers)


def start_table(result: dict[str, Any]) -> Table:
    """Make the table of a result of :func:`measure_start`."""
    size = result["size"]
    table = Table(
        f"Start of {result['config']}, {result['precision']}, files in {result['files']}"
        + (f", first image {size} x {size}" if size else ""),
        ("after", "CPU s", "memory, GB", "not backed by files, GB", "peak, GB"),
    )
    for name, use in result["stages"].items():
        memory = (f"{use[key] / 1e9:.2f}" for key in ("now", "own", "peak"))
        table.rows.append((name, f"{use['cpu_seconds']:.1f}", *memory))
    weights = result["weights_bytes"]
    base, *peaks = (use["peak"] for use in result["stages"].values())
    table.notes = [f"Weights kept: {weights / 1e9:.2f} GB."]
    table.notes += [
        f"Peak up to the {stage}: {peak / weights:.2f} times the weights, "
        f"{(peak - base) / weights:.2f} without the libraries."
        for stage, peak in zip(STAGES[1:], peaks, strict=False)
    ]
    table.notes += [
        f"{name}: {cost['cpu_seconds']:.2f} s of CPU time, {cost['seconds']:.2f} s in all."
        for name, cost in result["commands"].items()
    ]
    return table
