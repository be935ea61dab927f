#!/usr/bin/env python
"""Plot the curves of training runs together: loss, learning rate, PQ, ... over the iterations.

Reads what training wrote into the work directories. Losses are means over the last 50 iterations,
as in the log. The number at the end of a curve is its last value. Writes the plot and, with the
same name, a CSV file.

Example:
    python tools/analysis_tools/plot_curves.py work_dirs/first work_dirs/second --out curves.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from odise_mm.benchmarks.curves import choose_keys, draw_curves, read_runs, write_curves
from odise_mm.utils.command_line import Parser, one_line_errors
from odise_mm.utils.display import printable
from odise_mm.utils.outputs import InputFiles, check_outputs


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="work directories of training runs")
    parser.add_argument(
        "--keys",
        nargs="+",
        metavar="KEY",
        help="quantities to plot, such as loss_mask or panoptic/novel/PQ (default: loss, lr and "
        "panoptic/PQ)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        default=Path("curves.png"),
        help="plot to write, .png or .svg (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.out.suffix.lower() not in (".png", ".svg"):
        parser.error(f"--out must end in .png or .svg: {args.out}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    table = args.out.with_suffix(".csv")
    with one_line_errors():
        runs = read_runs(args.runs)
        keys = choose_keys(runs, args.keys)
        check_outputs([args.out, table], InputFiles())
        draw_curves(runs, keys, args.out)
        write_curves(runs, keys, table)
        print(f"wrote {printable(args.out)} and {printable(table)}: {', '.join(keys)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
