#!/usr/bin/env python
"""Train and test one config after the other: a study, or a whole folder of them.

Every config gets a work directory below --work-root, named like the config, with the checkpoints,
the log of both steps (study.log), the results (result.json) and images of them (shown/). Stopped
in any way and started again, it goes on where it was: results that are there are kept, a training
is resumed. Where a config fails, the others are still run. Configs that say the same about the
training, such as rows of several studies that are the paper's own model, share the first one's.

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
    parser = Parser(__doc__)
    parser.add_argument("configs", nargs="+", type=Path, help="config files, or folders of them")
    parser.add_argument("--work-root", type=Path, default=Path("work_dirs"), metavar="DIR")
    parser.add_argument("--data-root", metavar="DIR", help="instead of data/ in the configs")
    parser.add_argument(
        "--datasets", nargs="+", default=[], metavar="NAME", help="test sets, as of tools/test.py"
    )
    parser.add_argument("--precision", help="as of tools/train.py and tools/test.py")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="changes of every config; those of the training alone are left out in testing",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
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
