#!/usr/bin/env python
"""Draw what a model sees of a dataset: images after the pipeline, segments, names, words.

Of training data the first images of the stream are drawn, with its augmentations; of validation
and test data the first ones in order. Each file shows the image at the left, and at the right its
ground truth; the words for caption supervision stand above it. Dark pixels have no segment.

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
    parser = Parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", help="config file or its name under configs/")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), help="default: the first there is"
    )
    parser.add_argument("--number", type=positive_int, default=10, metavar="N", help="of images")
    parser.add_argument(
        "--out", default="work_dirs/browse", metavar="DIR", help="default: %(default)s/"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the training stream (default: %(default)s)"
    )
    parser.add_argument("--data-root", metavar="DIR", help="instead of data/ in the config")
    parser.add_argument(
        "--cfg-options",
        action=ConfigOptions,
        help="changes of the config",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
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
