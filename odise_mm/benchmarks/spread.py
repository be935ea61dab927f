"""Mean and spread over results of several runs of one config."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from odise_mm.benchmarks.tables import ReportError, Table, find_reports
from odise_mm.config.naming import path_below_configs

# Heading -> metric, "" or "SUBSET/" in its place.
METRICS = {
    "PQ": "panoptic/{}PQ",
    "PQ st": "panoptic/{}PQ_st",
    "mAP": "instance/{}AP",
    "mIoU": "semantic/{}mIoU",
}

Runs = dict[str, dict[str, dict[str, float]]]


def group(paths: Sequence[Path]) -> Runs:
    """What was run (config, options, test set, ...) -> checkpoint -> metrics.

    Raises:
        ReportError: no results, or a checkpoint comes twice.
    """
    runs: Runs = defaultdict(dict)
    for file, content in find_reports(paths):
        checkpoint = (content["checkpoint"] or {}).get("sha256", "none")
        for dataset, result in content["sets"].items():
            name = ", ".join([*what_ran(content), dataset, *what_was_seen(result)])
            if checkpoint in runs[name]:
                raise ReportError(
                    f"{file}: another file has {name} with the same checkpoint, too; a spread is "
                    "over different trainings"
                )
            runs[name][checkpoint] = result["metrics"]
    if not runs:
        raise ReportError(f"no result of tools/test.py in {', '.join(map(str, paths))}")
    return runs


def what_ran(content: dict[str, Any]) -> list[str]:
    """The config, by its path below configs/, with options, and a precision that is not fp32."""
    name = path_below_configs(Path(content["config"]["file"]))
    options = [f"{key}={value}" for key, value in sorted(content["config"]["options"].items())]
    precision = content.get("precision", "fp32")
    return [" ".join([name, *options]), *([precision] if precision != "fp32" else [])]


def what_was_seen(result: dict[str, Any]) -> list[str]:
    """Which images, where they are not all of them."""
    return [] if result.get("limit") is None else [f"first {result['images']}"]


def summarize(runs: Runs) -> tuple[Table, dict]:
    """A table with one row per group, and the same for programs: mean, deviation and values."""
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
    """ "12.3 ± 0.4"; without a spread for one value, "-" for none."""
    if mean is None:
        return "-"
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"
