#!/usr/bin/env python
"""Our numbers of the ablations beside the paper's: a table and an image per study.

Ours come from the JSON files that tools/test.py writes, wherever they lie below WORK_DIRS; a file
belongs to the row whose config it was made with (configs/ablation/STUDY/ROW.py, or a config of
that name elsewhere). A config is a program: only those of this repository are loaded, and those
that --configs names, never one that a JSON file names. The paper's numbers and the order of the
rows come from configs/ablation/metafile.yml. What was not run is called so, and a number that
cannot be compared with the paper's carries a mark that the notes explain. Results with numbers of
subsets of classes get a column for every subset.

Writes ablations.md, ablations.csv and an image for every study, STUDY.png.

Example:
    python tools/analysis_tools/ablation_table.py work_dirs --out ablations
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from odise_mm.benchmarks.ablation_tables import draw, make_table, write_csv
from odise_mm.benchmarks.ablations import STUDIES, add_named, collect, read_rows
from odise_mm.benchmarks.tables import find_reports, show
from odise_mm.utils.command_line import Parser, one_line_errors
from odise_mm.utils.display import printable
from odise_mm.utils.files import write_text
from odise_mm.utils.outputs import check_outputs


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "work_dirs", metavar="WORK_DIR", nargs="*", help="folders, or JSON files of tools/test.py"
    )
    parser.add_argument(
        "--out", metavar="DIR", default="work_dirs/ablations", help="default: %(default)s"
    )
    parser.add_argument(
        "--studies", nargs="+", choices=STUDIES, default=list(STUDIES), help="default: all"
    )
    parser.add_argument(
        "--configs",
        nargs="+",
        default=[],
        metavar="FILE",
        help="configs of rows of your own, to compare results with; they are programs and are run",
    )
    parser.add_argument("--note", help="a sentence for below every table")
    parser.add_argument(
        "--format", choices=("table", "markdown"), default="table", help="default: %(default)s"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with one_line_errors():
        out = Path(args.out)
        names = ("ablations.md", "ablations.csv", *(f"{study}.png" for study in args.studies))
        results = (file for file, _ in find_reports(args.work_dirs))
        check_outputs([out / name for name in names], results)
        rows = read_rows()
        add_named(rows, args.configs)
        remarks = collect(args.work_dirs, rows)
        rows = [row for row in rows if row.study in args.studies]
        tables = []
        for study in args.studies:
            members = [row for row in rows if row.study == study]
            tables.append(make_table(study, members, args.note))
            draw(study, members, out / f"{study}.png")
        text = "\n\n".join(table.markdown() for table in tables)
        write_text(out / "ablations.md", f"## Ablations\n\n{text}\n")
        write_csv(rows, out / "ablations.csv")
        show(tables, {}, args.format)
        for remark in remarks:
            print(printable(remark), file=sys.stderr)
        run = sum(bool(row.runs) for row in rows)
        print(f"{run} of {len(rows)} rows were run; wrote {printable(out)}/", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
