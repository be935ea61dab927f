"""Curves of training runs: losses, learning rates and validation results over the iterations."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odise_mm.benchmarks.tables import ReportError, write_figure
from odise_mm.utils.display import printable
from odise_mm.utils.files import atomic_writer

DEFAULT_KEYS = ("loss", "lr", "panoptic/PQ")
_FILE = "scalars.json"  # written by mmengine's LocalVisBackend
_NOT_CURVES = ("iter", "step", "epoch")


@dataclass
class Run:
    """Curves of a training run.

    Attributes:
        name: Name in the legend.
        curves: Quantity -> values by iteration, in the order of the iterations.
    """

    name: str
    curves: dict[str, dict[int, float]]


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read the curves of runs from their work directories.

    A run that was resumed has several folders with curves. A resumed part replaces what an earlier
    part logged from its first iteration on.

    Args:
        folders: Work directories.

    Raises:
        ReportError: A folder has no curves, or a file is damaged.
    """
    paths = [Path(folder) for folder in folders]
    short = [path.resolve().name for path in paths]
    unique = len(set(short)) == len(short)
    return [
        Run(name if unique else str(path), _read(path))
        for path, name in zip(paths, short, strict=True)
    ]


def _read(folder: Path) -> dict[str, dict[int, float]]:
    curves: dict[str, dict[int, float]] = {}
    # mmengine names the folders after the time at which the part started.
    for file in sorted(folder.glob(f"*/vis_data/{_FILE}")):
        part: dict[str, dict[int, float]] = {}
        last = 0
        for row in _rows(file):
            last = row.get("iter", last)
            # mmengine logs a validation at step 0 unless log_metric_by_epoch is False.
            at = row.get("iter") or row.get("step") or last
            for key, value in row.items():
                if key not in _NOT_CURVES and math.isfinite(value):
                    part.setdefault(key, {})[at] = value
        if not last:  # a test run
            continue
        first = min(min(points) for points in part.values())
        for key in {**curves, **part}:
            kept = {at: v for at, v in curves.get(key, {}).items() if at < first}
            curves[key] = kept | part.get(key, {})
    if not curves:
        raise ReportError(
            f"{printable(folder)}: no curves of a training run (*/vis_data/{_FILE}); name the "
            "work directory of a run"
        )
    return curves


def _rows(file: Path) -> list[dict[str, Any]]:
    """Read a file with a JSON object per line; a last line without its end is left out."""
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(True), start=1):
        if not line.endswith("\n"):  # the run is writing, or was killed
            break
        try:
            row = json.loads(line)
        except ValueError as err:
            raise ReportError(f"{printable(file)}, line {number}: not JSON ({err})") from None
        if not isinstance(row, dict) or not all(isinstance(v, int | float) for v in row.values()):
            raise ReportError(f"{printable(file)}, line {number}: not an object of numbers")
        rows.append(row)
    return rows


def choose_keys(runs: Sequence[Run], keys: Sequence[str] | None) -> list[str]:
    """Check the quantities to draw.

    Args:
        runs: The runs.
        keys: Names of the quantities. None: those of :data:`DEFAULT_KEYS` that a run has.

    Raises:
        ReportError: No run has one of the quantities.
    """
    known = dict.fromkeys(key for run in runs for key in run.curves)
    missing = [key for key in keys or () if key not in known]
    if missing:
        raise ReportError(f"no run has {missing[0]!r}; choose from {', '.join(known)}")
    return list(keys or (key for key in DEFAULT_KEYS if key in known))


def draw_curves(runs: Sequence[Run], keys: Sequence[str], path: Path) -> None:
    """Draw a panel per quantity with the curves of all runs.

    Args:
        runs: The runs.
        keys: Quantities.
        path: Image file to write, .png or .svg.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(keys), 3.8), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for index, run in enumerate(runs):
            points = run.curves.get(key, {})
            few = len(points) <= 30
            axes.plot(
                list(points),
                list(points.values()),
                color=f"C{index % 10}",
                label=run.name,
                marker="o" if few else None,
                markersize=3,
                linewidth=1.4,
            )
        axes.set(title=key, xlabel="iteration")
        axes.margins(x=0.15)
        _write_last_values(axes, [run.curves.get(key, {}) for run in runs])
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(runs)))
    write_figure(path, figure, dpi=150)


def _write_last_values(axes: Any, curves: Sequence[dict[int, float]]) -> None:
    """Write the last value at the end of each curve, without overlaps."""
    ends = [(*list(c.items())[-1], f"C{i % 10}") for i, c in enumerate(curves) if c]
    low, high = axes.get_ylim()
    gap, free = 0.05 * (high - low), low
    for at, value, color in sorted(ends, key=lambda end: end[1]):
        y = max(value, free)
        free = y + gap
        axes.annotate(
            f" {value:.4g}", (at, value), (at, y), fontsize=7, color=color, va="center"
        )  # fmt: skip


def write_curves(runs: Sequence[Run], keys: Sequence[str], path: Path) -> None:
    """Write a CSV file with a line per run, quantity and iteration, unrounded."""
    with atomic_writer(path, "w") as stream:
        lines = csv.writer(stream, lineterminator="\n")
        lines.writerow(("run", "quantity", "iteration", "value"))
        for run in runs:
            for key in keys:
                lines.writerows((run.name, key, at, v) for at, v in run.curves.get(key, {}).items())
