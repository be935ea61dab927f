#!/usr/bin/env python
"""Draw a sheet of scenes: each with its image, labeled segments, names and a caption.

Novel names are marked with a star. Gray pixels are not labeled.

Example:
    python projects/toy_world/show.py --split train --number 12 --out work_dirs/toy_world.png
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from odise_mm.benchmarks.tables import write_figure
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int
from odise_mm.utils.display import printable
from odise_mm.utils.outputs import check_outputs
from projects.toy_world.arguments import image_file
from projects.toy_world.world import SPLITS, Scene, scene

_COLUMNS = 4


def sheet(scenes: list[Scene]) -> Figure:
    """Draw a figure with one cell per scene."""
    columns = min(_COLUMNS, len(scenes))
    rows = -(-len(scenes) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.75 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, made in zip(axes, scenes, strict=False):
        gap = np.full((len(made.image), 4, 3), 255, np.uint8)
        axis.imshow(np.concatenate([made.image, gap, colored(made)], axis=1))
        names = ", ".join(f"{s.name}{'*' * s.name.is_novel}" for s in made.segments)
        lines = textwrap.wrap(f'"{made.captions[0]}"', 60) + textwrap.wrap(names, 60)
        axis.set_title("\n".join(lines), fontsize=7, loc="left")
    return figure


def colored(made: Scene) -> np.ndarray:
    """Draw the labeled segments in their mean colors, (H, W, 3) uint8."""
    canvas = np.full_like(made.image, 128)
    for segment in made.segments:
        mask = made.panoptic == segment.id
        canvas[mask] = made.image[mask].mean(axis=0)
    return canvas


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--split", choices=SPLITS, default="val", help="default: val")
    parser.add_argument(
        "--number", type=positive_int, default=12, help="number of scenes (default: 12)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the scenes, as in generate.py (default: 0)"
    )
    parser.add_argument(
        "--out",
        type=image_file,
        default=Path("work_dirs/toy_world.png"),
        metavar="FILE",
        help="image to write, .png or .jpg (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error(f"argument --seed: must be at least 0, not {args.seed}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with one_line_errors():
        check_outputs([args.out])
        figure = sheet([scene((args.seed, i), args.split) for i in range(args.number)])
        write_figure(args.out, figure, dpi=100)
        print(printable(args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
