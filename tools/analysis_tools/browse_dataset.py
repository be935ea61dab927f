#!/usr/bin/env python
"""Draw the images of a dataset after the pipeline, with their segments, class names and words.

For training data, the first images of the sampler are drawn, with augmentations. For validation and
test data, the first images are drawn in order. Each file shows the image on the left and its ground
truth on the right. A banner at the top lists the words for caption supervision, if there are any.
Dark pixels belong to no segment.

Examples:
    python tools/analysis_tools/browse_dataset.py odise_coco_caption --number 8
    python tools/analysis_tools/browse_dataset.py odise_label_ade20k --split test
"""

from __future__ import annotations

import argparse
import sys

from odise_mm.benchmarks.tables import show
from odise_mm.utils.command_line import ConfigOptions, Parser, one_line_errors, positive_int


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", help="config file or its name under configs/")
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        help="data to draw (default: the first of these that the config defines)",
    )
    parser.add_argument(
        "--number",
        type=positive_int,
        default=10,
        metavar="N",
        help="number of images (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        default="work_dirs/browse",
        metavar="DIR",
        help="folder for the drawings (default: %(default)s/)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the training sampler (default: %(default)s)"
    )
    parser.add_argument(
        "--data-root", metavar="DIR", help="folder to use instead of data/ in the config"
    )
    parser.add_argument(
        "--cfg-options",
        action=ConfigOptions,
        help="changes of the config",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    with one_line_errors():
        from odise_mm.analysis.browsing import browse  # here, for a quick --help

        table = browse(
            args.config,
            args.out,
            split=args.split,
            number=args.number,
            seed=args.seed,
            data_root=args.data_root,
            changes=args.cfg_options,
        )
        show([table], {}, "table")
    return 0


if __name__ == "__main__":
    sys.exit(main())
