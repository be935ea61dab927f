"""Measure panoptic quality, mAP and mIoU of a model on one or several test sets.

The model is loaded once and every image is run once for all three tasks. Results of a set are
written as soon as it is finished.

Examples:
    odise-mm test odise_coco_label checkpoints/odise_label_coco_50e-b67d2efc.pth
    odise-mm test odise_coco_label work_dirs/odise_coco_label/iter_92188.pth \\
        --datasets ade20k pc59 voc21 --out results.json --per-class
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
from odise_mm.utils.outputs import check_outputs, owned_folders
from odise_mm.utils.precision import PRECISIONS
from odise_mm.utils.processes import follow_parent


def result_file(text: str) -> Path:
    """Argument type: a path that ends in .json or .csv."""
    path = Path(text)
    if path.suffix not in (".json", ".csv"):
        raise argparse.ArgumentTypeError(f"must end in .json or .csv: {text}")
    return path


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = Parser(__doc__, prog=prog)
    parser.add_argument("config", metavar="CONFIG", help="config file or its name under configs/")
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="ours (.pth, .safetensors, iter_*.pth of a training), a published ODISE file, or "
        "`none` for a tiny model whose weights are all random",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--datasets",
        nargs="+",
        metavar="NAME",
        help="test sets, or `all` (default: the config's own): coco ade20k ade847 pc59 pc459 voc20 "
        "voc21 cityscapes mapillary lvis uvo",
    )
    data.add_argument("--data-root", metavar="DIR", help="instead of data/ in the configs")
    data.add_argument(
        "--label-files",
        metavar="DIR",
        help="folder of OpenSeg's label files, which replace the built-in synonyms of test sets "
        "and training vocabulary (as in the published protocol)",
    )
    data.add_argument(
        "--limit", type=positive_int, metavar="N", help="the first N images of each set only"
    )
    out = parser.add_argument_group("output")
    out.add_argument(
        "--out", type=result_file, metavar="FILE", help=".json (everything) or .csv (numbers)"
    )
    out.add_argument("--per-class", action="store_true", help="print a table of classes, too")
    out.add_argument(
        "--dump",
        metavar="DIR",
        help="write panoptic PNGs and COCO JSON, instances (COCO results), semantic PNGs",
    )
    out.add_argument("--show-dir", metavar="DIR", help="write images")
    out.add_argument(
        "--show-interval", type=positive_int, default=1, metavar="N", help="of every Nth image"
    )
    out.add_argument("--work-dir", metavar="DIR", help="logs; default: work_dirs/CONFIG/test")
    how = parser.add_argument_group("how")
    how.add_argument("--precision", choices=PRECISIONS, default="fp32")
    how.add_argument(
        "--cfg-options",
        action=ConfigOptions,
        help="further changes of the config, for every test set",
    )
    how.add_argument("--launcher", choices=("none", "pytorch", "slurm", "mpi"), default="none")
    how.add_argument("--local-rank", "--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the command: 0; mistakes exit with 2, as argparse does."""
    args = parse_args(argv, prog)
    follow_parent(args.launcher)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    folders = (args.dump, args.show_dir, args.work_dir)
    with one_line_errors():
        try:
            with owned_folders(folders, "writing results of a test"):
                return run(args)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED


def run(args: argparse.Namespace) -> int:
    import torch
    from mmengine.device import get_device

    from odise_mm.benchmarks import planning, running
    from odise_mm.benchmarks.report import Report
    from odise_mm.engine.result_writer import ResultWriterHook
    from odise_mm.engine.runner import OpenVocabRunner
    from odise_mm.models.random_weights import RANDOM_WEIGHTS_NOTICE
    from odise_mm.utils.precision import check_precision

    check_precision(args.precision, torch.device(get_device()))
    sets = planning.plan_sets(
        args.config,
        args.datasets,
        data_root=args.data_root,
        label_files=args.label_files,
        limit=args.limit,
        work_dir=args.work_dir,
        launcher=args.launcher,
        changes=args.cfg_options,
    )
    random_weights = args.checkpoint == planning.NO_CHECKPOINT
    planning.check_checkpoint(args.checkpoint, sets[0].cfg)
    for test_set in sets:
        test_set.check()
    notice = RANDOM_WEIGHTS_NOTICE if random_weights else None
    writer = ResultWriterHook(args.dump, args.show_dir, args.show_interval, notice)
    check_outputs([args.out], planning.inputs_of(args.checkpoint, sets))
    for test_set in sets:
        writer.check(test_set.name)

    runner = OpenVocabRunner.from_cfg(sets[0].cfg)
    running.prepare_model(runner, args.checkpoint, args.precision)
    described = running.describe_run(runner, args.checkpoint, args.precision, args.cfg_options)
    report = Report(described, [test_set.name for test_set in sets], random_weights)
    running.run_sets(
        runner, report, sets, writer, args.out, limit=args.limit, per_class=args.per_class
    )
    return 0
