#!/usr/bin/env python
"""Write a training's checkpoint as the small file that ships: trained parameters, float16.

What resuming needs (the optimizer's state, curves) stays behind. The result fits the config's model
and no number is lost to half precision's range, or nothing is written.

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
    """Weights in float16; whole numbers stay as they are.

    Raises:
        CheckpointError: a value that float16 does not have; names the parameter.
    """
    import torch

    from odise_mm.errors import CheckpointError

    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    for key, value in half.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{source}: {key} has numbers that are not finite in float16")
    return half


def ship(source: str, out: str, config: str) -> dict[str, Tensor]:
    """Convert a checkpoint.

    Args:
        source: of a training, or weights of ours.
        out: ``.safetensors`` file.
        config: that it was trained with.

    Returns:
        What was written.

    Raises:
        CheckpointError: see :func:`halved`; or the file is of another model.
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
    """Argument type: a path that ends in .safetensors."""
    if Path(text).suffix != ".safetensors":
        raise argparse.ArgumentTypeError(f"must end in .safetensors: {text}")
    return text


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="iter_*.pth of a training")
    parser.add_argument("out", metavar="OUT", type=safetensors, help=".safetensors")
    parser.add_argument(
        "--config", default=str(CONFIG), help="that it was trained with (default: odise_toy_label)"
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
