#!/usr/bin/env python
"""Train and test several configs, one after the other.

Every config gets a work directory below --work-root, named like the config, with checkpoints, the
log of both steps (study.log), the results (result.json) and drawings of them (shown/). An
interrupted study continues when it is started again: existing results are kept, and training runs
are resumed. If a config fails, the others still run. Configs with equal training settings, such as
the paper's model in several studies, share one training run.

Examples:
    python tools/run_study.py configs/toy/ablation/representation
    python tools/run_study.py configs/ablation/steps --precision bf16 --datasets coco ade20k
    python tools/analysis_tools/ablation_table.py work_dirs/toy/ablation/representation/*
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from odise_mm.benchmarks.studies import Study, find_configs
from odise_mm.utils.command_line import Parser, one_line_errors

TOOLS = Path(__file__).resolve().parent


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument("configs", nargs="+", type=Path, help="config files, or folders of them")
    parser.add_argument(
        "--work-root",
        type=Path,
        default=Path("work_dirs"),
        metavar="DIR",
        help="parent folder of the work directories (default: %(default)s)",
    )
    parser.add_argument(
        "--data-root", metavar="DIR", help="folder to use instead of data/ in the configs"
    )
    parser.add_argument(
        "--datasets",
        nargs="+",
        default=[],
        metavar="NAME",
        help="test sets, as for tools/test.py (default: those of the configs)",
    )
    parser.add_argument("--precision", help="as for tools/train.py and tools/test.py")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="changes of every config; those that only affect training are left out in testing",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    study = Study(
        TOOLS,
        args.work_root,
        data_root=args.data_root,
        datasets=args.datasets,
        precision=args.precision,
        options=args.cfg_options,
    )
    with one_line_errors():
        return 1 if study.run(find_configs(args.configs)) else 0


if __name__ == "__main__":
    sys.exit(main())
