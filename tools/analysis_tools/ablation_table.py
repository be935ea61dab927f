#!/usr/bin/env python
"""Our numbers of the ablations beside the paper's: a table and a picture per study.

Ours come from the JSON files that tools/test.py writes, wherever they lie below WORK_DIRS; a file
belongs to the row whose config it was made with (configs/ablation/STUDY/ROW.py, or a config of
that name elsewhere). A config is a program: only those of this repository are loaded, and those
that --configs names, never one that a JSON file names. The paper's numbers and the order of the
rows come from configs/ablation/metafile.yml. What was not run is called so, and a number that
cannot be compared with the paper's carries a mark that the notes explain. Results with numbers of
subsets of classes get a column for every subset.

Writes ablations.md, ablations.csv and a picture for every study, STUDY.png.

Example:
    python tools/analysis_tools/ablation_table.py work_dirs --out ablations
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # runs from a clone that is not installed, too

from odise_mm.benchmarks.tables import Table, find_reports, show, write_figure  # noqa: E402
from odise_mm.utils.command_line import Parser, one_line_errors  # noqa: E402
from odise_mm.utils.display import printable  # noqa: E402
from odise_mm.utils.files import atomic_writer, write_text  # noqa: E402
from odise_mm.utils.outputs import check_outputs  # noqa: E402

METAFILE = ROOT / "configs" / "ablation" / "metafile.yml"
STUDIES = ("representation", "captioner", "steps", "classification")
# Metric -> keys of tools/test.py's JSON; a set has one of them at most.
METRICS = {
    "PQ": ("panoptic/PQ",),
    "mAP": ("instance/AP", "lvis/AP"),
    "mIoU": ("semantic/mIoU",),
}
# Set of tools/test.py -> the paper's name for it and the number of its images.
PAPER_SETS = {"ade20k": ("ADE20K", 2000), "coco": ("COCO", 5000)}
OWN_SET = "the config's own set"
NOT_RUN, NOT_IN_PAPER = "not run", "-"
MARK = " *"


@dataclass
class Run:
    """What one JSON file says about one test set.

    Attributes:
        file: it.
        config: file that the model was built from.
        metrics: subset of classes, "" for all of them -> METRICS' names -> percent.
        started: when, as text that sorts.
        reasons: why the numbers cannot be compared with the paper's; empty: nothing speaks
            against it.
    """

    file: Path
    config: str
    metrics: dict[str, dict[str, float]]
    started: str
    reasons: list[str] = field(default_factory=list)


@dataclass
class Row:
    """One row of a study.

    Attributes:
        title: what it is called.
        config: of the ablation, relative to the repository, or as a JSON file names it.
        file: the config, if it may be loaded: it is the repository's, or the user named it.
        facts: further words, such as the pre-training.
        paper: the paper's name of a set -> metric -> percent.
        runs: name of a set -> ours.
    """

    study: str
    name: str
    title: str
    config: str
    facts: str = ""
    file: Path | None = None
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)

    def number(self, dataset: str, metric: str, subset: str = "") -> float | None:
        """Ours, of a subset of classes or of all; None where there is none."""
        run = self.runs.get(dataset)
        return None if run is None else run.metrics.get(subset, {}).get(metric)

    def ours(self, dataset: str, metric: str, subset: str = "") -> str:
        """A cell: the number, or that there is none."""
        number = self.number(dataset, metric, subset)
        return NOT_RUN if number is None else f"{number:.1f}"

    def theirs(self, dataset: str, metric: str) -> str:
        """A cell: the paper's number, or that it has none."""
        number = self.paper.get(dataset, {}).get(metric)
        return NOT_IN_PAPER if number is None else f"{number:.1f}"


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


def read_rows(metafile: Path = METAFILE) -> list[Row]:
    """All rows, in the metafile's order, without ours."""
    import yaml

    rows = []
    for model in yaml.safe_load(metafile.read_text(encoding="utf-8"))["Models"]:
        told = model["Metadata"]
        row = Row(
            study=told["Study"],
            name=Path(model["Config"]).stem,
            title=told["Row"],
            config=model["Config"],
            facts=told.get("Pre-training", ""),
            file=ROOT / model["Config"],
        )
        for result in model.get("Results", ()):
            row.paper.setdefault(result["Dataset"], {}).update(result["Metrics"])
        rows.append(row)
    return rows


def row_of(config: str, rows: list[Row]) -> Row | None:
    """The row that a config belongs to: by study and name, or by a name that only one row has."""
    path = Path(config)
    for study in STUDIES:
        if path.parts[-3:-1] == ("ablation", study):
            for row in rows:
                if (row.study, row.name) == (study, path.stem):
                    return row
            row = own_row(study, path.stem, config)
            rows.append(row)
            return row
    named = [row for row in rows if row.name == path.stem]
    return named[0] if len(named) == 1 else None


def own_row(study: str, name: str, config: str, file: Path | None = None) -> Row:
    """A row that the metafile does not list.

    Args:
        study, name: what it is called.
        config: as a JSON file names it.
        file: the config, if the user named it; else it is loaded only where the repository has one.
    """
    if file is None and re.fullmatch(r"\w[\w-]*", name):
        file = ROOT / "configs" / "ablation" / study / f"{name}.py"
    return Row(study, name, name.replace("_", " "), config, file=file)


def add_named(rows: list[Row], configs: Sequence[str]) -> None:
    """Rows of configs that the user named.

    Raises:
        ConfigError: no such file, or none of a study's folder.
    """
    from odise_mm.errors import ConfigError

    for config in configs:
        path = Path(config)
        if not path.is_file() or path.absolute().parent.name not in STUDIES:
            raise ConfigError(
                f"--configs {config}: a config in a folder called like a study, such as "
                f"configs/ablation/{STUDIES[0]}/mine.py"
            )
        study = path.absolute().parent.name
        known = [row for row in rows if (row.study, row.name) == (study, path.stem)]
        if known:
            known[0].file = path.absolute()
        else:
            rows.append(own_row(study, path.stem, config, path.absolute()))


def collect(places: Sequence[str], rows: list[Row]) -> list[str]:
    """Put what was run into the rows; of several runs of a set the latest counts.

    Returns:
        Remarks for people: what was passed over.
    """
    remarks = []
    for file, content in find_reports(places):
        row = row_of(content["config"]["file"], rows)
        if row is None:
            remarks.append(f"{file}: {content['config']['file']} is no row of a study")
            continue
        for name, found in content["sets"].items():
            numbers = found["metrics"]
            metrics: dict[str, dict[str, float]] = {}
            for subset, (metric, keys) in product(["", *found.get("subsets", {})], METRICS.items()):
                for key in keys:
                    key = key.replace("/", f"/{subset}/") if subset else key
                    if numbers.get(key) is not None:
                        metrics.setdefault(subset, {})[metric] = numbers[key]
            dataset = PAPER_SETS[name][0] if name in PAPER_SETS else name
            if name == row.name or name == Path(content["config"]["file"]).stem:
                dataset = OWN_SET
            run = Run(file, content["config"]["file"], metrics, content.get("started", ""))
            run.reasons = reasons_against(row, name, content)
            before = row.runs.get(dataset)
            if before is None or run.started >= before.started:
                row.runs[dataset] = run
            if before is not None:
                older = before if row.runs[dataset] is run else run
                remarks.append(f"{older.file}: older than {row.runs[dataset].file}, passed over")
    return remarks


def reasons_against(row: Row, name: str, content: dict[str, Any]) -> list[str]:
    """Why a result on the set ``name`` cannot stand beside the paper's."""
    found = content["sets"][name]
    reasons = []
    if content["made_up_weights"]:
        reasons.append("made-up weights")
    if name not in PAPER_SETS:
        reasons.append("not a set of the paper's table")
    elif found["images"] != PAPER_SETS[name][1]:
        reasons.append(f"{found['images']} images of {PAPER_SETS[name][1]:,}")
    if _ablation_config(row) is None:
        reasons.append("no config of this row is known: name it with --configs")
    elif not same_model(row, content["config"]):
        reasons.append("another model or image size than the row's config in configs/ablation")
    iteration = re.search(r"iter_(\d+)\.", (content["checkpoint"] or {}).get("file", ""))
    if iteration and int(iteration[1]) < full_schedule(row):
        reasons.append(f"trained for {int(iteration[1]):,} of {full_schedule(row):,} iterations")
    return reasons


def same_model(row: Row, tested: dict[str, Any]) -> bool:
    """Whether a result was made with the model and the test pipeline of the row's config.

    Where frozen weights lie and which list names the training's classes may differ.
    """
    config = _ablation_config(row)
    if config is None:
        return False
    expected = dict(model=config.model.to_dict(), test_pipeline=config.test_pipeline)
    ours = {key: _comparable(tested.get(key)) for key in expected}
    return ours == {key: _comparable(value) for key, value in expected.items()}


def full_schedule(row: Row) -> int:
    """Iterations that the row's config trains for."""
    config = _ablation_config(row)
    return 0 if config is None else config.train_cfg.max_iters


def _ablation_config(row: Row) -> Any:
    from mmengine.config import Config

    path = row.file
    known = _CONFIGS.get(path)
    if known is None and path is not None and path.is_file():
        known = _CONFIGS[path] = Config.fromfile(path, import_custom_modules=False)
    return known


_CONFIGS: dict[Path, Any] = {}


def _comparable(value: Any) -> Any:
    """As after a way through JSON, without what may differ."""
    if isinstance(value, dict):
        left_out = ("weights", "train_vocabulary", "use_checkpoint", "max_tiles_per_batch")
        return {key: _comparable(v) for key, v in value.items() if key not in left_out}
    if isinstance(value, (list, tuple)):
        return [_comparable(item) for item in value]
    return value


def datasets_of(rows: list[Row]) -> list[str]:
    """The paper's sets, then others that something was run on."""
    names = [paper for paper, _ in PAPER_SETS.values()]
    others = dict.fromkeys(name for row in rows for name in row.runs if name not in names)
    return [*names, *others]


def subsets_of(rows: list[Row], dataset: str) -> list[str]:
    """Subsets of a set's classes that a row has numbers of; first "", which is all of them."""
    runs = [row.runs[dataset] for row in rows if dataset in row.runs]
    return list(dict.fromkeys(["", *(subset for run in runs for subset in run.metrics)]))


def make_table(study: str, rows: list[Row], note: str | None = None) -> Table:
    """A study's table; a cell has PQ / mAP / mIoU."""
    paper_sets = [name for name, _ in PAPER_SETS.values()]
    with_facts = any(row.facts for row in rows)
    columns = [study, *(["pre-training"] if with_facts else [])]
    for dataset in datasets_of(rows):
        for subset in subsets_of(rows, dataset):
            columns.append(", ".join(filter(None, (dataset, subset, "ours"))))
        if dataset in paper_sets:
            columns.append(f"{dataset}, paper")
    table = Table(f"Ablation of the {study}: {' / '.join(METRICS)} in percent", columns)
    for row in rows:
        cells = [row.title, *([row.facts or "-"] if with_facts else [])]
        for dataset in datasets_of(rows):
            run = row.runs.get(dataset)
            mark = MARK if run is not None and run.reasons else ""
            for subset in subsets_of(rows, dataset):
                cells.append(_joined([row.ours(dataset, m, subset) for m in METRICS]) + mark)
            if dataset in paper_sets:
                cells.append(_joined([row.theirs(dataset, m) for m in METRICS]))
        table.rows.append(cells)
    table.notes = notes_of(rows, note)
    return table


def _joined(cells: list[str]) -> str:
    return cells[0] if len(set(cells)) == 1 and not cells[0][0].isdigit() else " / ".join(cells)


def notes_of(rows: list[Row], note: str | None) -> list[str]:
    """What has to be said below a table."""
    notes = [
        f"{NOT_RUN}: there is no result of ours. {NOT_IN_PAPER}: the paper has no such number, or "
        "it is not known here."
    ]
    because: dict[str, list[str]] = {}
    for row in rows:
        for dataset, run in row.runs.items():
            for reason in run.reasons:
                because.setdefault(reason, []).append(f"{row.name} on {dataset}")
    if because:
        notes.append(
            f"{MARK.strip()} These are pipeline numbers: they show that everything runs and must "
            "not be compared with the paper's. Why:"
        )
        for reason, cells in because.items():
            shown = ", ".join(cells[:4]) + (f" and {len(cells) - 4} more" if len(cells) > 4 else "")
            notes.append(f"{reason}: {shown}.")
    return [*notes, *([note] if note else [])]


def write_csv(rows: list[Row], path: Path) -> None:
    """One line per row, set, subset of classes and metric; ours unrounded."""
    with atomic_writer(path, "w") as stream:
        lines = csv.writer(stream, lineterminator="\n")
        lines.writerow(
            (
                "study", "row", "config", "dataset", "subset", "metric", "ours", "paper",
                "not comparable",
            )
        )  # fmt: skip
        for row in rows:
            same_study = [other for other in rows if other.study == row.study]
            for dataset in datasets_of(same_study):
                run = row.runs.get(dataset)
                for subset, metric in product(subsets_of(same_study, dataset), METRICS):
                    number = row.number(dataset, metric, subset)
                    lines.writerow(
                        (
                            row.study, row.title, row.config, dataset, subset, metric,
                            NOT_RUN if number is None else repr(float(number)),
                            NOT_IN_PAPER if subset else row.theirs(dataset, metric),
                            "; ".join(run.reasons) if run else "",
                        )
                    )  # fmt: skip


def draw(study: str, rows: list[Row], path: Path) -> None:
    """A panel for every set and metric: the paper's numbers as rings, ours as dots."""
    from matplotlib.figure import Figure

    datasets = [d for d in datasets_of(rows) if any(d in r.paper or d in r.runs for r in rows)]
    if not datasets:
        datasets = [name for name, _ in PAPER_SETS.values()]
    size = (3.2 + 2.6 * len(METRICS), (1.4 + 0.26 * len(rows)) * len(datasets) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(datasets), len(METRICS), squeeze=False, sharey=True)
    for axes_row, dataset in zip(grid, datasets, strict=True):
        for axes, metric in zip(axes_row, METRICS, strict=True):
            _panel(axes, rows, dataset, metric)
    handles = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    figure.suptitle(f"Ablation of the {study} (rows without a dot: not run)", fontsize=11)
    write_figure(path, figure, dpi=120)


def _panel(axes: Any, rows: list[Row], dataset: str, metric: str) -> None:
    theirs = {i: row.paper.get(dataset, {}).get(metric) for i, row in enumerate(rows)}
    runs = {i: row.runs.get(dataset) for i, row in enumerate(rows)}
    ours = {i: row.number(dataset, metric) for i, row in enumerate(rows) if runs[i]}
    series = (
        ("paper", theirs, dict(marker="o", facecolors="none", edgecolors="tab:blue")),
        ("ours", {i: n for i, n in ours.items() if not runs[i].reasons}, dict(color="tab:red")),
        (
            "ours, pipeline numbers: not comparable",
            {i: n for i, n in ours.items() if runs[i].reasons},
            dict(color="tab:gray", marker="x"),
        ),
    )
    for label, numbers, style in series:
        known = {i: number for i, number in numbers.items() if number is not None}
        if known:
            axes.scatter(list(known.values()), list(known), s=28, label=label, **style)
    axes.set(title=f"{dataset}: {metric}", xlabel="percent", ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [row.title for row in rows], fontsize=8)
    axes.title.set_fontsize(9)
    axes.grid(axis="x", alpha=0.3)


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
