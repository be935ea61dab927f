"""Mean and standard deviation over the results of several runs of one config."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from odise_mm.benchmarks.tables import ReportError, Table, find_reports
from odise_mm.config.naming import path_below_configs

# Heading -> key of the metric; {} stands for "" or "SUBSET/".
METRICS = {
    "PQ": "panoptic/{}PQ",
    "PQ st": "panoptic/{}PQ_st",
    "mAP": "instance/{}AP",
    "mIoU": "semantic/{}mIoU",
}

Runs = dict[str, dict[str, dict[str, float]]]


def group(paths: Sequence[Path]) -> Runs:
    """Group results by config, options, precision, test set and number of images.

    Args:
        paths: JSON files of ``tools/test.py``, or folders that contain them.

    Returns:
        Name of the group -> SHA-256 of the checkpoint -> metrics.

    Raises:
        ReportError: There are no results, or a group has two results of one checkpoint.
    """
    runs: Runs = defaultdict(dict)
    for file, content in find_reports(paths):
        checkpoint = (content["checkpoint"] or {}).get("sha256", "none")
        for dataset, result in content["sets"].items():
            name = ", ".join([*what_ran(content), dataset, *what_was_seen(result)])
            if checkpoint in runs[name]:
                raise ReportError(
                    f"{file}: another file has a result of {name} with the same checkpoint, but "
                    "the deviation is computed over different training runs; remove one of them"
                )
            runs[name][checkpoint] = result["metrics"]
    if not runs:
        raise ReportError(f"no results of tools/test.py in {', '.join(map(str, paths))}")
    return runs


def what_ran(content: dict[str, Any]) -> list[str]:
    """Name the config (its path below ``configs/``), its options, and the precision if not fp32."""
    name = path_below_configs(Path(content["config"]["file"]))
    options = [f"{key}={value}" for key, value in sorted(content["config"]["options"].items())]
    precision = content.get("precision", "fp32")
    return [" ".join([name, *options]), *([precision] if precision != "fp32" else [])]


def what_was_seen(result: dict[str, Any]) -> list[str]:
    """Name the number of images if it was limited."""
    return [] if result.get("limit") is None else [f"first {result['images']}"]


def summarize(runs: Runs) -> tuple[Table, dict]:
    """Compute mean and standard deviation of every group.

    Args:
        runs: Result of :func:`group`.

    Returns:
        A table with one row per group, and a dictionary: group -> metric -> ``mean``, ``std`` and
        ``values``.
    """
    every = [metrics for group in runs.values() for metrics in group.values()]
    parts = (key.split("/") for metrics in every for key in metrics)
    subsets = dict.fromkeys(part[1] for part in parts if len(part) == 3)
    columns = {
        " ".join(filter(None, (heading, subset))): key.format(f"{subset}/" if subset else "")
        for subset in ("", *subsets)
        for heading, key in METRICS.items()
    }
    columns = {h: key for h, key in columns.items() if any(key in metrics for metrics in every)}
    table = Table("Mean and standard deviation over runs, in percent", ["", "runs", *columns])
    data: dict[str, dict] = {}
    for name, group in runs.items():
        row, data[name] = [name, str(len(group))], {}
        for heading, key in columns.items():
            values = [metrics[key] for metrics in group.values() if metrics.get(key) is not None]
            mean = statistics.mean(values) if values else None
            deviation = statistics.stdev(values) if len(values) > 1 else None
            row.append(mean_and_spread(mean, deviation))
            data[name][heading] = dict(mean=mean, std=deviation, values=values)
        table.rows.append(row)
    return table, data


def mean_and_spread(mean: float | None, deviation: float | None) -> str:
    """Format as "12.3 ± 0.4", or "12.3" without a deviation, or "-" without a mean."""
    if mean is None:
        return "-"
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"
