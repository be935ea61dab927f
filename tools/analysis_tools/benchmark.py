#!/usr/bin/env python
"""Measure FLOPs, time and peak memory of every part of a model.

The tables include the published implementation's FLOPs if the architecture is the published one.
FLOPs are counted on torch's meta device, which takes seconds for any image size. Class names are
embedded before anything is measured. The default, random weights, needs no downloads; cost does
not depend on the values of the weights.

Examples:
    python tools/analysis_tools/benchmark.py odise_coco_label --flops-only --size 512 --size 1024
    python tools/analysis_tools/benchmark.py odise_coco_label --size 512 --precision bf16
    python tools/analysis_tools/benchmark.py odise_coco_label --size 512 --precision bf16 --crops
"""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout

from odise_mm.analysis import published
from odise_mm.analysis.inference_tables import make_tables
from odise_mm.benchmarks.tables import FORMATS, show, write_json
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int
from odise_mm.utils.outputs import check_outputs
from odise_mm.utils.precision import PRECISIONS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", help="config file or its name under configs/")
    parser.add_argument(
        "--size",
        type=positive_int,
        action="append",
        help="edge of the square image in pixels; may be repeated (default: 1024)",
    )
    parser.add_argument(
        "--flops-only", action="store_true", help="only count FLOPs; loads and measures nothing"
    )
    parser.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="precision to measure with (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=positive_int,
        default=3,
        metavar="N",
        help="measured runs after the warm-up; the median is reported (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        choices=("none", "config"),
        default="none",
        help="random weights, or those that the config names (default: %(default)s)",
    )
    parser.add_argument(
        "--vocabulary",
        help="name or file of a vocabulary (default: placeholder names, as many as in the "
        f"published count: {published.COUNTED_CLASSES} classes, {published.COUNTED_SYNONYMS} "
        "synonyms)",
    )
    parser.add_argument(
        "--max-tiles-per-batch",
        type=positive_int,
        metavar="N",
        help="tiles that run together (default: the config's value)",
    )
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="number of CPU threads of torch"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile the frozen parts")
    parser.add_argument(
        "--crops",
        action="store_true",
        help="also compare CLIP's mask pooling with box crops on the same masks",
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="table", help="output format (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write all numbers to this file")
    args = parser.parse_args(argv)
    if args.crops and args.flops_only:
        parser.error("--crops measures time, so it cannot be used with --flops-only")
    args.size = args.size or [1024]
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    with one_line_errors():
        check_outputs([args.json], [args.config])
        with redirect_stdout(sys.stderr):  # the log must not mix with the numbers
            from odise_mm.analysis.inference_cost import examine  # here, for a quick --help

            result = examine(
                args.config,
                args.size,
                flops_only=args.flops_only,
                device=args.device,
                precision=args.precision,
                weights=args.weights,
                vocabulary=args.vocabulary,
                max_tiles_per_batch=args.max_tiles_per_batch,
                compiled=args.compile,
                crops=args.crops,
                repeats=args.repeats,
                threads=args.threads,
            )
        show(make_tables(result), result, args.format)
        if args.json:
            write_json(args.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
