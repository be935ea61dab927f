#!/usr/bin/env python
"""Measure a model on a GPU, and write the results as one Markdown page.

The page says how well every precision agrees with float32 on the CPU, how long inference takes in
every precision, with different numbers of tiles and compiled, and what training steps cost. Entries
that do not fit into the memory say so. The default, random weights, needs no downloads; cost does
not depend on the values of the weights.

Examples:
    python tools/analysis_tools/gpu_report.py odise_coco_label --out gpu.md
    python tools/analysis_tools/gpu_report.py odise_tiny --device cpu --repeats 1 --out cpu.md
"""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout

from odise_mm.utils.command_line import Parser, one_line_errors, positive_int
from odise_mm.utils.outputs import check_outputs
from odise_mm.utils.precision import PRECISIONS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", help="config file or its name under configs/")
    parser.add_argument("--out", metavar="FILE", required=True, help="Markdown file to write")
    parser.add_argument("--json", metavar="FILE", help="also write all numbers to this file")
    parser.add_argument(
        "--device", default="cuda", help="cuda, cuda:1, cpu, ... (default: %(default)s)"
    )
    parser.add_argument(
        "--size",
        type=positive_int,
        default=1024,
        help="edge of the square image in pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--agreement-size",
        type=int,
        default=512,
        metavar="SIZE",
        help="edge of the image that is also segmented on the CPU; 0: do not compare "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=PRECISIONS,
        help="precisions of inference (default: all that the device supports)",
    )
    parser.add_argument(
        "--tiles",
        nargs="+",
        type=positive_int,
        default=[4, 8],
        metavar="N",
        help="numbers of tiles that run together (default: 4 8)",
    )
    parser.add_argument(
        "--batches",
        nargs="+",
        type=positive_int,
        default=[1, 2, 4],
        metavar="N",
        help="numbers of images in a training step (default: 1 2 4)",
    )
    parser.add_argument("--no-compile", action="store_true", help="do not try torch.compile")
    parser.add_argument("--no-training", action="store_true", help="do not measure training steps")
    parser.add_argument(
        "--weights",
        choices=("none", "config"),
        default="none",
        help="random weights, or those that the config names (default: none)",
    )
    parser.add_argument(
        "--repeats",
        type=positive_int,
        default=10,
        metavar="N",
        help="measured runs after the warm-up; the median is reported (default: %(default)s)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    with one_line_errors():
        check_outputs([args.out, args.json], [args.config])
        with redirect_stdout(sys.stderr):  # the log must not mix with the page
            # here, for a quick --help
            from odise_mm.analysis.device_report import report
            from odise_mm.analysis.device_tables import make_tables
            from odise_mm.benchmarks.tables import write_json
            from odise_mm.utils.files import write_text

            result = report(
                args.config,
                device=args.device,
                size=args.size,
                agreement_size=args.agreement_size,
                precisions=args.precisions,
                tiles=args.tiles,
                batches=args.batches,
                compiled=not args.no_compile,
                training=not args.no_training,
                weights=args.weights,
                repeats=args.repeats,
            )
        page = "\n\n".join(table.markdown() for table in make_tables(result)) + "\n"
        write_text(args.out, page)
        if args.json:
            write_json(args.json, result)
        print(page, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
