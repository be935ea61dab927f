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

from odise_mm.utils.command_line import (
    INTERRUPTED,
    ConfigOptions,
    Parser,
    one_line_errors,
    positive_int,
)
from odise_mm.utils.display import printable
from odise_mm.utils.files import FolderLock
from odise_mm.utils.outputs import InputFiles, check_outputs
from odise_mm.utils.precision import PRECISIONS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", help="config file or its name under configs/")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="as for tools/test.py")
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
    data = parser.add_argument_group("data, as for tools/test.py")
    data.add_argument("--datasets", nargs="+", metavar="NAME", help="test sets, or `all`")
    data.add_argument(
        "--data-root", metavar="DIR", help="folder to use instead of data/ in the configs"
    )
    data.add_argument("--label-files", metavar="DIR", help="folder of OpenSeg's label files")
    data.add_argument(
        "--limit", type=positive_int, metavar="N", help="use only the first N images of each set"
    )
    how = parser.add_argument_group("running")
    how.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="precision of the model (default: %(default)s)",
    )
    how.add_argument(
        "--work-dir", metavar="DIR", help="folder for logs (default: work_dirs/CONFIG/test)"
    )
    how.add_argument("--cfg-options", action=ConfigOptions, help="changes of the config")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Save the predictions on all test sets."""
    import torch
    from mmengine.device import get_device

    from odise_mm.analysis.saving import SavingJob, save_set
    from odise_mm.benchmarks import planning, running
    from odise_mm.engine.runner import OpenVocabRunner
    from odise_mm.utils.precision import check_precision

    check_precision(args.precision, torch.device(get_device()))
    sets = planning.plan_sets(
        args.config,
        args.datasets,
        data_root=args.data_root,
        label_files=args.label_files,
        limit=args.limit,
        work_dir=args.work_dir,
        changes=args.cfg_options,
    )
    planning.check_checkpoint(args.checkpoint, sets[0].cfg)
    for test_set in sets:
        test_set.check()
    inputs = InputFiles(*planning.inputs_of(args.checkpoint, sets))
    for test_set in sets:
        folder = Path(args.out) / test_set.name
        check_outputs([folder / "set.json", folder / "config.json"], inputs)
    job = SavingJob(
        args.out, args.checkpoint, args.precision, args.masks, args.limit, args.cfg_options
    )
    runner = OpenVocabRunner.from_cfg(sets[0].cfg)
    running.prepare_model(runner, args.checkpoint, args.precision)
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
