"""Figure of a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CLASSES = 40
"""Matrices of more classes show those that are confused most."""
_MAX_NUMBERS = 20  # classes up to which the cells have numbers


def confusion_figure(matrix: np.ndarray, names: Sequence[str], what: str) -> Figure:
    """Draw a confusion matrix whose rows sum to 100%.

    Args:
        matrix: (K + 1, K + 1) numbers; rows are annotated classes, columns are found ones. The last
            row and column are void.
        names: K class names.
        what: what was counted, such as "pixels".

    Returns:
        The figure. Classes that are neither annotated nor found are left out.
    """
    from matplotlib.figure import Figure

    labels = np.array([*names, "(nothing)"], dtype=object)
    there = (matrix.sum(axis=1) + matrix.sum(axis=0)) > 0
    there[-1] = True
    wrong = matrix - np.diag(np.diag(matrix))
    errors = wrong.sum(axis=1) + wrong.sum(axis=0)
    shown = np.flatnonzero(there)
    title = f"confusion by {what}, in percent of each row"
    if len(shown) > MAX_CLASSES + 1:
        classes = shown[:-1]
        chosen = classes[np.argsort(-errors[classes], kind="stable")[:MAX_CLASSES]]
        title += f"\nthe {MAX_CLASSES} most confused of {len(classes)} classes"
        shown = np.array([*sorted(chosen.tolist()), shown[-1]])
    totals = matrix.sum(axis=1, keepdims=True)
    part = (100 * matrix / np.maximum(totals, 1))[np.ix_(shown, shown)]

    count = len(shown)
    edge = max(4.0, 0.32 * count + 2.6)
    figure = Figure(figsize=(edge, edge), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(part, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(count), labels[shown], rotation=90)
    axes.set_yticks(range(count), labels[shown])
    axes.set_xlabel("found")
    axes.set_ylabel("annotated")
    axes.set_title(title)
    if count <= _MAX_NUMBERS + 1:
        for row, column in zip(*np.nonzero(part >= 0.5), strict=True):
            value = part[row, column]
            color = "white" if value > 55 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, size=8)
    return figure
