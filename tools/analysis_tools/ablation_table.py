#!/usr/bin/env python
"""Compare our ablation results with the paper's: a table and a figure per study.

Our results come from the JSON files that tools/test.py writes, anywhere below the WORK_DIRs. A file
belongs to the row of its config (configs/ablation/STUDY/ROW.py, or a config of that name
elsewhere). The paper's numbers and the order of the rows come from configs/ablation/metafile.yml.
Rows without a result are shown as "not run". Numbers that are not comparable with the paper's are
marked, and notes give the reasons. Subsets of classes get a column each.

Configs are programs. Only the configs of this package and those after --configs are loaded, never
one that a JSON file names.

Writes ablations.md, ablations.csv and a figure STUDY.png for every study with results, or for those
of --studies.

Example:
    python tools/analysis_tools/ablation_table.py work_dirs --out ablations
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from odise_mm.benchmarks.ablation_tables import draw, make_table, write_csv
from odise_mm.benchmarks.ablations import STUDIES, add_named, collect, read_rows
from odise_mm.benchmarks.tables import ReportError, find_reports, show
from odise_mm.utils.command_line import Parser, one_line_errors
from odise_mm.utils.display import printable, some
from odise_mm.utils.files import write_text
from odise_mm.utils.outputs import check_outputs


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "work_dirs", metavar="WORK_DIR", nargs="*", help="folders, or JSON files of tools/test.py"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="work_dirs/ablations",
        help="folder for the output (default: %(default)s)",
    )
    parser.add_argument(
        "--studies",
        nargs="+",
        choices=STUDIES,
        help="studies to include, with or without results (default: those with results)",
    )
    parser.add_argument(
        "--configs",
        nargs="+",
        default=[],
        metavar="FILE",
        help="configs of your own rows; they are run, as configs are programs",
    )
    parser.add_argument("--note", help="sentence to add below every table")
    parser.add_argument(
        "--format",
        choices=("table", "markdown"),
        default="table",
        help="format of the printed tables (default: %(default)s)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    with one_line_errors():
        out = Path(args.out)
        rows = read_rows()
        add_named(rows, args.configs)
        remarks = collect(args.work_dirs, rows)
        with_results = {row.study for row in rows if row.runs}
        studies = args.studies or [study for study in STUDIES if study in with_results]
        if not studies:
            _print(remarks)
            where = f"in {some(args.work_dirs)}" if args.work_dirs else "without a WORK_DIR"
            raise ReportError(
                f"no results of ablations {where}: make some with tools/run_study.py, or see the "
                f"paper's numbers with --studies {STUDIES[0]}"
            )
        names = ("ablations.md", "ablations.csv", *(f"{study}.png" for study in studies))
        results = (file for file, _ in find_reports(args.work_dirs))
        check_outputs([out / name for name in names], results)
        rows = [row for row in rows if row.study in studies]
        tables = []
        for study in studies:
            members = [row for row in rows if row.study == study]
            tables.append(make_table(study, members, args.note))
            draw(study, members, out / f"{study}.png")
        text = "\n\n".join(table.markdown() for table in tables)
        write_text(out / "ablations.md", f"## Ablations\n\n{text}\n")
        write_csv(rows, out / "ablations.csv")
        show(tables, {}, args.format)
        _print(remarks)
        run = sum(bool(row.runs) for row in rows)
        print(f"{run} of {len(rows)} rows have results; wrote {printable(out)}/", file=sys.stderr)
    return 0


def _print(remarks: list[str]) -> None:
    for remark in remarks:
        print(printable(remark), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
