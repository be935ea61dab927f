#!/usr/bin/env python
"""Summarize models: trained and frozen parameters, feature maps and FLOPs.

Models are built and run on torch's meta device, so no weights and little memory are needed. For one
config, the tables list every part, with the published model's numbers if the architecture is the
published one. For several configs, one table has a row for each of them.

Examples:
    python tools/analysis_tools/model_summary.py odise_coco_label
    python tools/analysis_tools/model_summary.py configs/ablation/*/*.py --format markdown
    python tools/analysis_tools/model_summary.py --all
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout

from odise_mm.analysis.summary_tables import make_comparison, make_tables
from odise_mm.benchmarks.tables import FORMATS, show
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "configs", metavar="CONFIG", nargs="*", help="config files or their names under configs/"
    )
    parser.add_argument("--all", action="store_true", help="all model configs under configs/")
    parser.add_argument(
        "--size",
        type=positive_int,
        help="edge of the square image for the FLOPs, in pixels (default: the short edge that the "
        "config tests with)",
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="table", help="output format (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.all == bool(args.configs):
        parser.error("pass either configs or --all")
    return args


def progress(configs: list[str]) -> Iterable[str]:
    """Iterate over the configs, with a progress bar for several configs on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    quiet = len(configs) == 1 or not console.is_terminal
    return track(configs, "building models", console=console, disable=quiet)


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    with one_line_errors():
        with redirect_stdout(sys.stderr):  # the log must not mix with the numbers
            # here, for a quick --help
            from odise_mm.analysis.model_summary import all_configs, summarize

            configs = all_configs() if args.all else args.configs
            summaries = [summarize(config, args.size) for config in progress(configs)]
        if args.all or len(configs) > 1:
            show([make_comparison(summaries)], {"models": summaries}, args.format)
        else:
            show(make_tables(summaries[0]), summaries[0], args.format)
    return 0


if __name__ == "__main__":
    sys.exit(main())
