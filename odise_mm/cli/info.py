"""Show versions, devices, folders, configs and weights, as needed for a bug report.

Nothing is downloaded.

Examples:
    odise-mm info
    odise-mm info --json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

from odise_mm.utils.command_line import Parser, one_line_errors
from odise_mm.utils.display import first_line, printable

_WIDTH = 100


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__, prog=prog)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the command and return 0; errors exit with status 2, like argparse."""
    args = parse_args(argv, prog)
    with one_line_errors():
        found = gather()
        print(json.dumps(found, indent=1) if args.json else as_text(found))
    return 0


def gather() -> dict[str, Any]:
    """Collect everything that is shown, in JSON types."""
    from odise_mm.benchmarks.report import software_versions

    return dict(
        versions=software_versions(),
        devices=_devices(),
        mmcv_operators=_mmcv_operators(),
        folders=_folders(),
        configs=_configs(),
        weights=_weights(),
    )


def _devices() -> dict[str, Any]:
    import torch

    from odise_mm.utils.device import pick_device

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return dict(
        default=str(pick_device(None)),
        cuda=[dict(name=gpu.name, memory=gpu.total_memory) for gpu in gpus],
        cuda_of_torch=torch.version.cuda,
        mps=torch.backends.mps.is_available(),
        cpu_cores=os.cpu_count(),
        cpu_threads=torch.get_num_threads(),
    )


def _mmcv_operators() -> str:
    from odise_mm.utils.mmcv_ops import ops_backend

    try:
        return ops_backend()
    except ImportError as error:
        return f"error: {first_line(error)}"


def _folders() -> dict[str, Any]:
    import torch
    from huggingface_hub import constants

    import odise_mm
    from odise_mm.config.finding import config_folders

    return dict(
        package=str(Path(odise_mm.__file__).parent),
        configs=[str(folder) for folder in config_folders()],
        hugging_face_cache=constants.HF_HUB_CACHE,
        torch_cache=torch.hub.get_dir(),
        hugging_face_offline=constants.HF_HUB_OFFLINE,
    )


def _configs() -> dict[str, str]:
    from odise_mm.config.finding import known_configs

    return {name: str(file) for name, file in known_configs().items()}


def _weights() -> list[dict[str, Any]]:
    """List the published checkpoints and the frozen models of their configs, each once.

    Weights that only other libraries can locate are left out.
    """
    from odise_mm.checkpoints.hub import is_cached
    from odise_mm.checkpoints.published_weights import find_published, published_names
    from odise_mm.config.finding import load_config
    from odise_mm.config.walking import named_weights
    from odise_mm.errors import ConfigError

    rows: list[dict[str, Any]] = []
    frozen: dict[str, Path] = {}
    for name in published_names():
        try:
            cfg = load_config(name)
            published = find_published(cfg)
        except ConfigError as error:  # such as a broken config of this name in the work directory
            rows.append(dict(name=name, place=None, there=False, error=str(error)))
            continue
        if published is not None:
            place = published.path
            rows.append(dict(name=name, place=str(place), there=place.is_file()))
        frozen |= {source: Path(source).expanduser() for source in named_weights(cfg.get("model"))}
    for source, path in frozen.items():
        if path.exists():
            rows.append(dict(name=path.name, place=str(path.resolve()), there=True))
        elif source.count("/") == 1:
            rows.append(dict(name=source, place="Hugging Face cache", there=is_cached(source)))
    return rows


def as_text(found: dict[str, Any]) -> str:
    """Format the result of :func:`gather` as text."""
    devices, folders = found["devices"], found["folders"]
    operators = {
        "compiled": "compiled: deformable attention uses mmcv's CUDA kernel",
        "pytorch": "not compiled: deformable attention runs in plain PyTorch",
    }
    rows = [(f"cuda:{i}", f"{gpu['name']}, {gpu['memory'] / 2**30:.1f} GiB")
            for i, gpu in enumerate(devices["cuda"])]  # fmt: skip
    if not rows:
        built = devices["cuda_of_torch"]
        rows = [("cuda", "none found" if built else "none: this PyTorch was built without CUDA")]
    rows += [("mps", "available")] * devices["mps"]
    rows += [
        ("cpu", f"{devices['cpu_cores']} cores, PyTorch uses {devices['cpu_threads']} threads"),
        ("default", devices["default"]),
        ("mmcv operators", operators.get(found["mmcv_operators"], found["mmcv_operators"])),
    ]
    offline = ", offline" if folders["hugging_face_offline"] else ""
    places = [("package", folders["package"])]
    places += [("configs", folder) for folder in folders["configs"]]
    places += [
        ("Hugging Face cache", folders["hugging_face_cache"] + offline),
        ("torch cache", folders["torch_cache"]),
    ]
    blocks = [
        _block("Versions", list(found["versions"].items())),
        _block("Devices", rows),
        _block("Folders", places),
    ]
    if found["weights"]:
        blocks.append(_block("Weights", [_weights_row(row) for row in found["weights"]]))
    for folder, places in _by_folder(found["configs"], folders["configs"]).items():
        count = sum(map(len, places.values()))
        where = f" in {printable(folder)}" if len(folders["configs"]) > 1 else ""
        names = [(place, ", ".join(stems)) for place, stems in places.items()]
        blocks.append(_block(f"Configs{where} ({count}), by name or FOLDER/NAME", names, _WIDTH))
    return "\n\n".join(blocks)


def _weights_row(row: dict[str, Any]) -> tuple[str, str]:
    if row["place"] is None:
        return row["name"], f"error: {row['error']}"
    return row["name"], row["place"] if row["there"] else f"not found ({row['place']})"


def _by_folder(configs: dict[str, str], folders: list[str]) -> dict[str, dict[str, list[str]]]:
    """Return the names of the configs by folder of configs and by place in it."""
    found: dict[str, dict[str, list[str]]] = {}
    for file in map(Path, configs.values()):
        top = next(folder for folder in folders if file.is_relative_to(folder))
        place = str(file.parent.relative_to(top))
        found.setdefault(top, {}).setdefault(place, []).append(file.stem)
    return found


def _block(title: str, rows: list[tuple[str, str]], wrap: int = sys.maxsize) -> str:
    width = max(len(printable(name)) for name, _ in rows)
    fill = textwrap.TextWrapper(wrap, subsequent_indent=" " * (width + 4)).fill
    lines = [f"  {printable(name):<{width}}  {printable(value)}" for name, value in rows]
    return "\n".join([title, *map(fill, lines)])
