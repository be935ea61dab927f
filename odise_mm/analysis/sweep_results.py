"""Results of a sweep over the ensemble's exponents, as a table, a CSV file and a figure."""

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
# Metrics in the table and the figure, if the dataset measures them; the CSV file has all of them.
MAIN = {
    "PQ": ("panoptic/PQ",),
    "mAP": ("instance/AP", "lvis/AP"),
    "mIoU": ("semantic/mIoU",),
    "AR@100": ("proposals/AR@100",),
}


@dataclass
class Value:
    """A pair of exponents and its results.

    Attributes:
        alpha: Exponent for base classes.
        beta: Exponent for novel classes.
        label: Classifiers in use: "both", "without CLIP" or "CLIP only".
        own: Whether these are the config's exponents.
        numbers: Results in percent by metric; None if the dataset has nothing to measure.
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
        name: Name of the test set.
        values: Pairs of exponents in the order of the table.
        notes: Sentences below the table.
        subsets: Names of the subsets of classes that are also measured.
    """

    name: str
    values: list[Value]
    notes: list[str]
    subsets: tuple[str, ...] = ()

    def columns(self) -> dict[tuple[str, str], str]:
        """Map (heading, subset) to the key in ``numbers``, for the main metrics with results.

        The subset "" means all classes.
        """
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
    """Make a table of the main metrics, with the best number of each column marked."""
    columns = result.columns()
    title = f"{result.name}: exponents of the ensemble, results in percent"
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
    """Write all numbers, unrounded, as a CSV file."""
    keys = list(result.values[0].numbers)
    with atomic_writer(path, "w") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(("set", "classifiers", "alpha", "beta", "config's own", *keys))
        for value in result.values:
            numbers = ["" if (n := value.numbers[key]) is None else repr(n) for key in keys]
            own = "yes" if value.own else "no"
            rows.writerow((result.name, value.label, value.alpha, value.beta, own, *numbers))


def draw(result: Sweep, path: Path) -> None:
    """Draw a heat map over alpha and beta for every main metric.

    The first row of the figure is for all classes, further rows are for the subsets.

    Args:
        result: The sweep.
        path: Image file to write.
    """
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
    warnings = [n for n in result.notes if "not benchmark" in n or "meaningless" in n]
    title = f"{result.name}: CLIP's exponents; * exponents of the config"
    figure.suptitle("\n".join([title, *warnings]), fontsize=10)
    write_figure(path, figure, dpi=120)


def _map(axes: Any, title: str, key: str, result: Sweep) -> None:
    """Draw one metric over alpha and beta; pairs without a number stay empty."""
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
        title=title, xlabel="beta (novel classes)", ylabel="alpha (base classes)",
        xticks=range(len(betas)), xticklabels=[f"{b:g}" for b in betas],
        yticks=range(len(alphas)), yticklabels=[f"{a:g}" for a in alphas],
    )  # fmt: skip
    axes.figure.colorbar(drawn, ax=axes)
