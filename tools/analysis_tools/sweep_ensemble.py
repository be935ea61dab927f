#!/usr/bin/env python
"""Try values of the ensemble's two exponents on saved predictions.

Reads the predictions that tools/analysis_tools/save_predictions.py saved for one test set. No model
is run: for every pair of exponents, the ensemble, the results and the metrics are computed with the
code of tools/test.py. "Diffusion only" is alpha = beta = 0, and "CLIP only" is alpha = beta = 1.

Writes sweep.csv, sweep.md and a figure, sweep.png. All pairs are evaluated in one pass over the
images. For mAP, about 60 kB per image and pair stay in memory until the end, which is 8 GB for
5,000 images and 27 pairs. With --tasks panoptic semantic, hardly any memory is needed.

If the config of the dataset defines subsets of its classes, such as "base" and "novel", the results
of the subsets are included. To define subsets afterwards, save the predictions again with a config
that has them; no image is run again.

Examples:
    python tools/analysis_tools/sweep_ensemble.py predictions/ade20k
    python tools/analysis_tools/sweep_ensemble.py predictions/ade20k --alpha 0.2 0.3 --beta 0.6 0.7
"""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path

from odise_mm.analysis.sweep_results import TASKS, draw, make_table, write_csv
from odise_mm.benchmarks.tables import FORMATS, show
from odise_mm.utils.command_line import Parser, one_line_errors
from odise_mm.utils.display import printable
from odise_mm.utils.files import write_text
from odise_mm.utils.outputs import check_outputs

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


def exponent(text: str) -> float:
    """Parse a number from 0 to 1 (argument type)."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text}")
    return value


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "folder", metavar="FOLDER", help="folder with the saved predictions on one test set"
    )
    text = "CLIP's exponents for {} classes (default: {})"
    grid = " ".join(map(str, GRID))
    for name, which in (("alpha", "base"), ("beta", "novel")):
        parser.add_argument(
            f"--{name}",
            nargs="+",
            type=exponent,
            default=list(GRID),
            metavar="X",
            help=text.format(which, grid),
        )
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        default=list(TASKS),
        help="tasks to measure (default: all)",
    )
    parser.add_argument("--out", metavar="DIR", help="folder for the output (default: FOLDER)")
    parser.add_argument(
        "--custom-imports",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="your own modules whose classes the folder's config uses; without this, only classes "
        "of this package are allowed, as the config may come from others",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="table",
        help="format of the printed table (default: %(default)s)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    with one_line_errors():
        out = Path(args.out or args.folder)
        inputs = [path for path in Path(args.folder).glob("*") if path.suffix in (".npz", ".json")]
        check_outputs([out / f"sweep.{kind}" for kind in ("csv", "md", "png")], inputs)
        with redirect_stdout(sys.stderr):  # the log must not mix with the numbers
            from odise_mm.analysis.ensemble_sweep import sweep  # here, for a quick --help

            result = sweep(args.folder, args.alpha, args.beta, args.tasks, args.custom_imports)
        table = make_table(result)
        write_csv(result, out / "sweep.csv")
        write_text(out / "sweep.md", table.markdown() + "\n")
        draw(result, out / "sweep.png")
        numbers = [vars(value) for value in result.values]
        show([table], dict(set=result.name, values=numbers, notes=result.notes), args.format)
        if args.format == "table":
            print(f"wrote {printable(out)}/sweep.csv, sweep.md and sweep.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
