"""Tables and figures that compare our ablation results with the paper's."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path
from typing import Any

from odise_mm.benchmarks.ablations import METRICS, NOT_IN_PAPER, NOT_RUN, PAPER_SETS, Row
from odise_mm.benchmarks.tables import Table, write_figure
from odise_mm.utils.files import atomic_writer

MARK = " *"


def datasets_of(rows: list[Row]) -> list[str]:
    """List the paper's datasets, then the others that have results."""
    names = [paper for paper, _ in PAPER_SETS.values()]
    others = dict.fromkeys(name for row in rows for name in row.runs if name not in names)
    return [*names, *others]


def subsets_of(rows: list[Row], dataset: str) -> list[str]:
    """List the subsets of classes that any row has results for, first "" for all classes."""
    runs = [row.runs[dataset] for row in rows if dataset in row.runs]
    return list(dict.fromkeys(["", *(subset for run in runs for subset in run.metrics)]))


def make_table(study: str, rows: list[Row], note: str | None = None) -> Table:
    """Make the table of a study, with cells "PQ / mAP / mIoU".

    Args:
        study: Name of the study.
        rows: Rows of the study.
        note: A sentence to add below the table.
    """
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
    """Return the notes below a table; results that are not comparable get their reasons."""
    notes = [
        f"{NOT_RUN}: we have no result. {NOT_IN_PAPER}: the paper gives no number, or the metafile "
        "does not list it."
    ]
    cells_by_reason: dict[str, list[str]] = {}
    for row in rows:
        for dataset, run in row.runs.items():
            for reason in run.reasons:
                cells_by_reason.setdefault(reason, []).append(f"{row.name} on {dataset}")
    if cells_by_reason:
        notes.append(
            f"{MARK.strip()} These are pipeline numbers: they show that everything runs and must "
            "not be compared with the paper's. Reasons:"
        )
        for reason, cells in cells_by_reason.items():
            shown = ", ".join(cells[:4]) + (f" and {len(cells) - 4} more" if len(cells) > 4 else "")
            notes.append(f"{reason}: {shown}.")
    return [*notes, *([note] if note else [])]


def write_csv(rows: list[Row], path: Path) -> None:
    """Write a CSV file with one line per row, dataset, subset of classes and metric, unrounded."""
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
    """Draw a panel for every dataset and metric, with the paper's numbers as rings, ours as dots.

    Args:
        study: Name of the study.
        rows: Rows of the study.
        path: Image file to write.
    """
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
