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
    """List the datasets that have results, the paper's first; without any results, the paper's."""
    names = [paper for paper, _ in PAPER_SETS.values()]
    run = dict.fromkeys(name for row in rows for name in row.runs)
    return [name for name in names if name in run] + [
        name for name in run if name not in names
    ] or names


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
    in_paper = {name for row in rows for name in row.paper}
    with_facts = any(row.facts for row in rows)
    columns = [study, *(["pre-training"] if with_facts else [])]
    for dataset in datasets_of(rows):
        for subset in subsets_of(rows, dataset):
            columns.append(", ".join(filter(None, (dataset, subset, "ours"))))
        if dataset in in_paper:
            columns.append(f"{dataset}, paper")
    table = Table(f"Ablation of the {study}: {' / '.join(METRICS)} in percent", columns)
    for row in rows:
        cells = [row.title, *([row.facts or "-"] if with_facts else [])]
        for dataset in datasets_of(rows):
            run = row.runs.get(dataset)
            mark = MARK if run is not None and run.reasons else ""
            for subset in subsets_of(rows, dataset):
                cells.append(_joined([row.ours(dataset, m, subset) for m in METRICS]) + mark)
            if dataset in in_paper:
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


_COLORS = {"": "tab:red", "base": "tab:orange", "novel": "tab:green"}
_MORE_COLORS = ("tab:purple", "tab:brown", "tab:pink", "tab:olive")
_LEAST_SPAN = 10.0  # percent; differences of less than a point should look small


def draw(study: str, rows: list[Row], path: Path) -> None:
    """Draw a panel for every dataset and metric, with the numbers beside the marks.

    Rings are the paper's numbers, dots are ours, for all classes and for each subset of classes.

    Args:
        study: Name of the study.
        rows: Rows of the study.
        path: Image file to write.
    """
    from matplotlib.figure import Figure

    datasets = datasets_of(rows)
    rows = [r for r in rows if any(d in r.paper or d in r.runs for d in datasets)] or rows
    lines = [1 + len(subsets_of(rows, dataset)) for dataset in datasets]
    heights = [1.2 + len(rows) * max(0.34, 0.17 * n) for n in lines]
    figure = Figure(figsize=(3.2 + 3.0 * len(METRICS), sum(heights) + 0.9), layout="constrained")
    grid = figure.subplots(
        len(datasets), len(METRICS), squeeze=False, sharey="row", height_ratios=heights
    )
    for axes_row, dataset in zip(grid, datasets, strict=True):
        for axes, metric in zip(axes_row, METRICS, strict=True):
            _panel(axes, rows, dataset, metric)
    handles = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    title = f"Ablation of the {study} (rows without a number are left out)"
    if any(run.reasons for row in rows for run in row.runs.values()):
        title += f"\n{MARK.strip()} not the paper's setting: ablations.md says why"
    figure.suptitle(title, fontsize=11)
    write_figure(path, figure, dpi=120)


def _panel(axes: Any, rows: list[Row], dataset: str, metric: str) -> None:
    subsets = subsets_of(rows, dataset)
    shown: list[tuple[str, list[float | None], dict[str, Any]]] = []
    if any(dataset in row.paper for row in rows):
        theirs = [row.paper.get(dataset, {}).get(metric) for row in rows]
        style = dict(facecolors="none", edgecolors="tab:blue")
        shown.append(("paper", theirs, style))
    colors = _COLORS | dict(
        zip((s for s in subsets if s not in _COLORS), _MORE_COLORS, strict=False)
    )
    for subset in subsets:
        ours = [row.number(dataset, metric, subset) for row in rows]
        label = "ours" + (f", {subset}" if subset else ", all classes" * (len(subsets) > 1))
        shown.append((label, ours, dict(color=colors.get(subset, "tab:gray"))))
    for index, (label, numbers, style) in enumerate(shown):
        offset = 0.7 * ((index + 0.5) / len(shown) - 0.5)  # one line for each in a row
        known = [(i, number) for i, number in enumerate(numbers) if number is not None]
        if not known:
            continue
        axes.scatter(
            [n for _, n in known], [i + offset for i, _ in known], s=22, label=label, **style
        )
        for i, number in known:
            run = rows[i].runs.get(dataset)
            mark = MARK if label != "paper" and run is not None and run.reasons else ""
            axes.annotate(
                f"{number:.1f}{mark}", (number, i + offset), (5, 0),
                textcoords="offset points", fontsize=7, va="center",
            )  # fmt: skip
    values = [number for _, numbers, _ in shown for number in numbers if number is not None]
    if values:
        low, high = min(values), max(values)
        span = max(high - low, _LEAST_SPAN)
        left = max(-0.04 * span, (low + high - span) / 2 - 0.08 * span)
        axes.set_xlim(left, left + 1.35 * span)  # room for the numbers
    axes.set(title=f"{dataset}: {metric}", xlabel="percent", ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [row.title for row in rows], fontsize=8)
    axes.title.set_fontsize(9)
    axes.grid(axis="x", alpha=0.3)
