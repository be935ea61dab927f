#!/usr/bin/env python
"""Compute the cost of a training step: parameters with gradients, FLOPs, kept memory and time.

Three ways of training the same model are compared: as in this package, the same with activation
checkpointing in the UNet (`use_checkpoint`), and a baseline that does not exclude the frozen parts
from the autograd graph, so that the weights of UNet, VAE and CLIP require gradients.

FLOPs and bytes are counted on torch's meta device. With --measure, steps are also run on the CPU
with random weights.

Examples:
    python tools/analysis_tools/training_step.py odise_tiny --size 512 --measure
    python tools/analysis_tools/training_step.py odise_coco_label --size 1024
"""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout

from odise_mm.benchmarks.tables import FORMATS, show, write_json
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int
from odise_mm.utils.outputs import check_outputs


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", help="config file or its name under configs/")
    parser.add_argument(
        "--size",
        type=positive_int,
        default=512,
        help="edge of the square image in pixels, a multiple of 64 (default: %(default)s)",
    )
    parser.add_argument("--measure", action="store_true", help="also measure steps on the CPU")
    parser.add_argument(
        "--repeats",
        type=positive_int,
        default=3,
        metavar="N",
        help="measured steps; the median is reported (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="number of CPU threads of torch"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="table", help="output format (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write all numbers to this file")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    with one_line_errors():
        check_outputs([args.json], [args.config])
        with redirect_stdout(sys.stderr):  # the log must not mix with the numbers
            # here, for a quick --help
            from odise_mm.analysis.training_cost import cost_of_ways
            from odise_mm.analysis.training_tables import make_tables

            result = cost_of_ways(
                args.config,
                args.size,
                measured=args.measure,
                repeats=args.repeats,
                threads=args.threads,
            )
        show(make_tables(result), result, args.format)
        if args.json:
            write_json(args.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
