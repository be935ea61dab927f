"""What came of a sweep over the exponents of joined predictions: as table, CSV file and image."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odise_mm.benchmarks.tables import Table, write_figure
from odise_mm.utils.files import atomic_writer

TASKS = ("panoptic", "semantic", "instance")
_EXPONENTS = ("alpha", "beta")
# Shown in the table and drawn, where the set has them; the CSV file has all numbers.
MAIN = {
    "PQ": ("panoptic/PQ",),
    "mAP": ("instance/AP", "lvis/AP"),
    "mIoU": ("semantic/mIoU",),
    "AR@100": ("proposals/AR@100",),
}


@dataclass
class Value:
    """A pair of exponents, and what comes of it.

    Attributes:
        label: what it is called: "both", "diffusion only", "CLIP only".
        own: whether these are the config's own.
        numbers: in percent, by the metrics' names; None where the set has nothing to measure.
    """

    alpha: float
    beta: float
    label: str = "both"
    own: bool = False
    numbers: dict[str, float | None] = field(default_factory=dict)


@dataclass
class Sweep:
    """A finished sweep.

    Attributes:
        name: of the test set.
        values: in the order of the table.
        notes: sentences for below the table.
        subsets: names of the subsets of classes that there are numbers of, too.
    """

    name: str
    values: list[Value]
    notes: list[str]
    subsets: tuple[str, ...] = ()

    def columns(self) -> dict[tuple[str, str], str]:
        """(heading, subset) -> key of the main numbers that there are; "" for all classes."""
        known = {k for value in self.values for k, n in value.numbers.items() if n is not None}
        found = {}
        for subset in ("", *self.subsets):
            for heading, keys in MAIN.items():
                for key in keys:
                    key = key.replace("/", f"/{subset}/") if subset else key
                    if key in known:
                        found[heading, subset] = key
        return found


def make_table(result: Sweep) -> Table:
    """The main numbers; the best of each column is marked."""
    columns = result.columns()
    title = f"{result.name}: exponents of the joined predictions, results in percent"
    headings = [f"{heading} {subset}".strip() for heading, subset in columns]
    table = Table(title, ["classifiers", "alpha", "beta", *headings], notes=list(result.notes))
    best = {}
    for key in columns.values():
        numbers = {value.numbers[key] for value in result.values} - {None}
        best[key] = max(numbers) if len(numbers) > 1 else math.inf
    for value in result.values:
        row = [value.label + (" *" if value.own else ""), f"{value.alpha:g}", f"{value.beta:g}"]
        for key in columns.values():
            number = value.numbers[key]
            mark = " (best)" if number == best[key] else ""
            row.append("-" if number is None else f"{number:.2f}{mark}")
        table.rows.append(row)
    return table


def write_csv(result: Sweep, path: Path) -> None:
    """All numbers, unrounded."""
    keys = list(result.values[0].numbers)
    with atomic_writer(path, "w") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(("set", "classifiers", "alpha", "beta", "config's own", *keys))
        for value in result.values:
            numbers = ["" if (n := value.numbers[key]) is None else repr(n) for key in keys]
            own = "yes" if value.own else "no"
            rows.writerow((result.name, value.label, value.alpha, value.beta, own, *numbers))


def draw(result: Sweep, path: Path) -> None:
    """A map of every main number over alpha and beta, in a row for all classes and each subset."""
    from matplotlib.figure import Figure

    columns = result.columns()
    headings, subsets = (list(dict.fromkeys(part)) for part in zip(*columns, strict=True))
    alphas, betas = ({getattr(value, name) for value in result.values} for name in _EXPONENTS)
    width = 1.5 + (1.2 + 0.62 * len(betas)) * len(headings)
    height = 0.5 + (1.1 + 0.45 * len(alphas)) * len(subsets)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(len(subsets), len(headings), squeeze=False)
    for axes_row, subset in zip(grid, subsets, strict=True):
        for axes, heading in zip(axes_row, headings, strict=True):
            if (heading, subset) in columns:
                _map(axes, f"{heading} {subset}".strip(), columns[heading, subset], result)
            else:
                axes.set_axis_off()
    warnings = [note for note in result.notes if "no benchmark" in note or "mean nothing" in note]
    title = f"{result.name}: CLIP's exponents; * the config's own"
    figure.suptitle("\n".join([title, *warnings]), fontsize=10)
    write_figure(path, figure, dpi=120)


def _map(axes: Any, title: str, key: str, result: Sweep) -> None:
    """One number over alpha and beta; pairs that were not tried, or have none, stay empty."""
    import numpy as np

    alphas, betas = (sorted({getattr(v, name) for v in result.values}) for name in _EXPONENTS)
    grid = np.full((len(alphas), len(betas)), np.nan)
    known = [value for value in result.values if value.numbers[key] is not None]
    for value in known:
        grid[alphas.index(value.alpha), betas.index(value.beta)] = value.numbers[key]
    drawn = axes.imshow(grid, origin="lower", aspect="auto", cmap="viridis")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for value in known:
        at = betas.index(value.beta), alphas.index(value.alpha)
        number = value.numbers[key]
        axes.text(
            *at,
            f"{number:.1f}" + ("*" if value.own else ""),
            ha="center",
            va="center",
            fontsize=8,
            color="black" if number > middle else "white",
        )
    axes.set(
        title=title, xlabel="beta (classes not seen)", ylabel="alpha (classes seen)",
        xticks=range(len(betas)), xticklabels=[f"{b:g}" for b in betas],
        yticks=range(len(alphas)), yticklabels=[f"{a:g}" for a in alphas],
    )  # fmt: skip
    axes.figure.colorbar(drawn, ax=axes)
