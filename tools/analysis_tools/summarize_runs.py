#!/usr/bin/env python
"""Compute mean and standard deviation over runs of one config, such as runs with several seeds.

Reads the JSON files that tools/test.py writes, anywhere below the folders. Results are grouped by
config, options, precision, test set and number of images, and differ in their checkpoint. The
deviation is the sample standard deviation. Two results of one checkpoint are an error, as they
would make the deviation too small.

Example:
    python tools/run_study.py configs/toy/odise_toy_label.py --work-root work_dirs/seed_1 \\
        --cfg-options randomness.seed=1
    python tools/analysis_tools/summarize_runs.py work_dirs/seed_* --format markdown
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from odise_mm.benchmarks.spread import group, summarize
from odise_mm.benchmarks.tables import FORMATS, show
from odise_mm.utils.command_line import Parser, one_line_errors


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        type=Path,
        help="JSON files of tools/test.py, or folders that contain them",
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="table", help="output format (default: %(default)s)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    with one_line_errors():
        table, data = summarize(group(args.paths))
        show([table], data, args.format)
    return 0


if __name__ == "__main__":
    sys.exit(main())
