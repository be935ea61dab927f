#!/usr/bin/env python
"""Mean and spread over runs of one config, such as trainings with several seeds.

Reads the JSON files that tools/test.py writes, wherever they lie below the folders. Runs belong
together if config, options and test set are the same; they differ in their checkpoint. The spread
is the sample standard deviation. A checkpoint that was tested twice is an error, as it would make
the spread look small.

Example:
    python tools/run_study.py configs/toy/odise_toy_label.py --work-root work_dirs/seed_1 \\
        --cfg-options randomness.seed=1
    python tools/analysis_tools/summarize_runs.py work_dirs/seed_* --format markdown
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # runs from a clone that is not installed, too

from odise_mm.errors import OdiseError  # noqa: E402
from odise_mm.utils.command_line import one_line_errors  # noqa: E402
from tools.report import FORMATS, Table, show  # noqa: E402

# Heading -> metric, "" or "SUBSET/" in its place.
METRICS = {
    "PQ": "panoptic/{}PQ",
    "PQ st": "panoptic/{}PQ_st",
    "mAP": "instance/{}AP",
    "mIoU": "semantic/{}mIoU",
}


class RunsError(OdiseError):
    """Results that cannot be read or summarised."""


def find_files(paths: list[Path]) -> list[Path]:
    """JSON files of tools/test.py, in order.

    Raises:
        RunsError: a path that is not there, or no such file at all.
    """
    found = []
    for path in paths:
        if not path.exists():
            raise RunsError(f"{path}: no such file or folder")
        files = [path] if path.is_file() else sorted(path.rglob("*.json"))
        for file in files:
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as err:
                raise RunsError(f"{file}: not JSON ({err})") from err
            if isinstance(content, dict) and {"sets", "config", "checkpoint"} <= content.keys():
                found.append(file)
    if not found:
        raise RunsError(f"no result of tools/test.py in {', '.join(map(str, paths))}")
    return found


def group(files: list[Path]) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    """(config with its options, set) -> checkpoint -> metrics.

    Raises:
        RunsError: a checkpoint comes twice.
    """
    runs: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(dict)
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        config = content["config"]
        options = [f"{key}={value}" for key, value in sorted(config["options"].items())]
        name = " ".join([Path(config["file"]).stem, *options])
        checkpoint = (content["checkpoint"] or {}).get("sha256", "none")
        for dataset, result in content["sets"].items():
            known = runs[name, dataset]
            if checkpoint in known:
                raise RunsError(
                    f"{file}: another file has {name} with the same checkpoint, too; a spread is "
                    "over different trainings"
                )
            known[checkpoint] = result["metrics"]
    return runs


def summarize(runs: dict[tuple[str, str], dict[str, dict[str, float]]]) -> tuple[Table, dict]:
    """A table with one row per group, and the same for programs: mean, spread and values."""
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
    for (config, dataset), group in runs.items():
        row, numbers = [f"{config}, {dataset}", str(len(group))], {}
        for heading, key in columns.items():
            values = [metrics[key] for metrics in group.values() if metrics.get(key) is not None]
            numbers[heading] = values
            row.append(mean_and_spread(values))
        table.rows.append(row)
        data[row[0]] = numbers
    return table, data


def mean_and_spread(values: list[float]) -> str:
    """ "12.3 ± 0.4"; without a spread for one value, "-" for none."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", type=Path, help="JSON files, or folders with some"
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with one_line_errors():
        table, data = summarize(group(find_files(args.paths)))
        show([table], data, args.format)
    return 0


if __name__ == "__main__":
    sys.exit(main())
