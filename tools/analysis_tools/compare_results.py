#!/usr/bin/env python
"""Compare two sets of panoptic results, such as those of two precisions or of two versions.

The files are those that `tools/test.py --dump` or `odise-mm segment` writes, or any others in
COCO's panoptic format, for the same images and class names.

Example:
    python tools/analysis_tools/compare_results.py fp32/coco/panoptic.json bf16/coco/panoptic.json
"""

from __future__ import annotations

import argparse
import sys

from odise_mm.benchmarks.tables import FORMATS, show
from odise_mm.utils.command_line import Parser, one_line_errors


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument("first", metavar="FIRST", help="panoptic.json of the reference")
    parser.add_argument("second", metavar="SECOND", help="panoptic.json to compare with it")
    parser.add_argument(
        "--format", choices=FORMATS, default="table", help="output format (default: %(default)s)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Compare the results."""
    args = parse_args(argv)
    with one_line_errors():
        # Imported after parsing the arguments, so that --help is fast.
        from odise_mm.analysis.agreement import compare_results

        found = compare_results(args.first, args.second)
        show([found.table(args.first, args.second)], found.to_dict(), args.format)
    return 0


if __name__ == "__main__":
    sys.exit(main())
