#!/usr/bin/env python
"""Run a model on test sets and save its masks and the predictions of every classifier.

tools/analysis_tools/sweep_ensemble.py then tries any exponents of the ensemble without running the
model again. Every image is saved in one file. If the run is interrupted, the same command continues
it.

Size: mask logits take 2 bytes (fp16) per mask and 16 pixels before compression, which is 4 MB for
100 masks at 512 x 683 pixels, and 18 MB at 1024 x 1365. The total is estimated after the first
image.

Examples:
    python tools/analysis_tools/save_predictions.py ablation/classification/both \\
        work_dirs/both/iter_92188.pth --datasets ade20k --out predictions
    python tools/analysis_tools/sweep_ensemble.py predictions/ade20k
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from odise_mm.cli.test import add_run_arguments, plan_run
from odise_mm.utils.command_line import INTERRUPTED, Parser, one_line_errors
from odise_mm.utils.display import printable
from odise_mm.utils.files import FolderLock
from odise_mm.utils.outputs import InputFiles, check_outputs


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    add_run_arguments(parser)
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="parent folder for the predictions; every test set gets a folder in it",
    )
    parser.add_argument(
        "--masks",
        choices=("fp16", "fp32"),
        default="fp16",
        help="precision of the saved mask logits (default: %(default)s, 3 decimal digits); all "
        "other numbers are saved in float32",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Save the predictions on all test sets."""
    from odise_mm.analysis.saving import SavingJob, save_set
    from odise_mm.benchmarks import planning, running

    sets = plan_run(args)
    inputs = InputFiles(*planning.inputs_of(args.checkpoint, sets))
    for test_set in sets:
        folder = Path(args.out) / test_set.name
        check_outputs([folder / "set.json", folder / "config.json"], inputs)
    job = SavingJob(
        args.out, args.checkpoint, args.precision, args.masks, args.limit, args.cfg_options
    )
    runner = running.make_runner(sets[0].cfg, args.checkpoint, args.precision)
    with running.progress_bar() as bar, FolderLock(args.out, "saving predictions"):
        for test_set in sets:
            print(printable(save_set(runner, test_set, job, bar)))


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    os.environ.setdefault("LOCAL_RANK", "0")
    with one_line_errors():
        try:
            run(args)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to continue", file=sys.stderr)
            return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
