#!/usr/bin/env python
"""Convert a training checkpoint to a small file with the trained parameters in float16.

The data for resuming (optimizer state, curves) is left out. Nothing is written if the parameters do
not fit the config's model, or if a value exceeds the range of float16.

Example:
    python projects/toy_world/ship.py work_dirs/odise_toy_label/iter_2000.pth \\
        projects/toy_world/weights/odise_label.safetensors
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from odise_mm.utils.command_line import Parser, one_line_errors
from odise_mm.utils.display import printable
from odise_mm.utils.outputs import check_outputs

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "toy" / "odise_toy_label.py"


def halved(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Convert floating-point weights to float16, and leave integers unchanged.

    Raises:
        CheckpointError: A value is not finite in float16; the message names the parameter.
    """
    import torch

    from odise_mm.errors import CheckpointError

    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    for key, value in half.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{source}: {key} has values that are not finite in float16")
    return half


def ship(source: str, out: str, config: str) -> dict[str, Tensor]:
    """Convert a checkpoint.

    Args:
        source: Training checkpoint, or weights in this package's format.
        out: The ``.safetensors`` file to write.
        config: Config of the training run.

    Returns:
        The written weights.

    Raises:
        CheckpointError: The checkpoint does not fit the config's model; or see :func:`halved`.
    """
    from odise_mm.analysis.meta import build_on_meta, load_model_config
    from odise_mm.checkpoints.safe_loading import (
        differences,
        load_meta,
        load_state_dict,
        save_state_dict,
    )
    from odise_mm.checkpoints.training_names import NOTE, note_of, noted
    from odise_mm.errors import CheckpointError

    wanted = build_on_meta(load_model_config(config)).state_dict()
    state = load_state_dict(source, fits=wanted.__contains__)
    wrong = differences(state, wanted)
    if wrong:
        raise CheckpointError(f"{source} does not fit {config}: {wrong}")
    half = halved(state, source)
    meta = {"format": "odise_mm trained parameters", "config": Path(config).stem}
    names = noted(load_meta(source))
    if names is not None:
        meta[NOTE] = json.dumps(note_of(names), ensure_ascii=False)
    save_state_dict(out, half, meta)
    return half


def safetensors(text: str) -> str:
    """Check that a path ends in .safetensors (argument type)."""
    if Path(text).suffix != ".safetensors":
        raise argparse.ArgumentTypeError(f"must end in .safetensors: {text}")
    return text


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="training checkpoint, iter_*.pth")
    parser.add_argument("out", metavar="OUT", type=safetensors, help=".safetensors file to write")
    parser.add_argument(
        "--config",
        default=str(CONFIG),
        help="config of the training run (default: odise_toy_label)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with one_line_errors():
        check_outputs([args.out], [args.checkpoint, args.config])
        written = ship(args.checkpoint, args.out, args.config)
        numbers = sum(value.numel() for value in written.values())
        size = Path(args.out).stat().st_size / 1e6
        print(f"wrote {printable(args.out)}: {numbers:,} numbers, {size:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
