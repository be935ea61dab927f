#!/usr/bin/env python
"""Measure the cost of classifying the masks of an image, depending on changes of the vocabulary.

The measurement covers everything from mask embeddings to class probabilities, on the CPU, without
CLIP's image tower. CLIP embeds all names beforehand. In the row "the same", all images use one
vocabulary, so its matrix of text embeddings is built only once. In the row "another for every
image", the order of the names changes, so the matrix is built for every image. Random weights
suffice.

Example:
    python tools/analysis_tools/benchmark_names.py odise_tiny --vocabulary lvis --threads 1
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Any

from odise_mm.benchmarks.tables import FORMATS, Table, show
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int

SAME, OTHERS = "the same", "another for every image"
_ORDERS = 40  # more than the classifiers cache


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", help="config file or its name under configs/")
    parser.add_argument(
        "--vocabulary",
        default="lvis",
        help="name or file of the vocabulary (default: %(default)s)",
    )
    parser.add_argument(
        "--masks",
        type=positive_int,
        default=100,
        metavar="N",
        help="masks per image (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=positive_int,
        default=80,
        metavar="N",
        help="measured images per row (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="number of CPU threads of torch"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="table", help="output format (default: %(default)s)"
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure both rows and return all numbers, in JSON types."""
    import torch

    from odise_mm.analysis.meta import load_model_config
    from odise_mm.analysis.names_cost import measure_names, other_orders
    from odise_mm.config.building import build_model
    from odise_mm.vocabulary import Vocabulary

    if args.threads:
        torch.set_num_threads(args.threads)
    vocabulary = Vocabulary.load(args.vocabulary)
    model = build_model(load_model_config(args.config)).eval()
    result: dict[str, Any] = {
        "config": args.config,
        "vocabulary": args.vocabulary,
        "classes": len(vocabulary),
        "synonyms": len(vocabulary.flat[0]),
        "masks": args.masks,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }
    orders = {SAME: [vocabulary], OTHERS: other_orders(vocabulary, _ORDERS)}
    for way, vocabularies in orders.items():
        result[way] = asdict(measure_names(model, vocabularies, args.masks, args.repeats))
    return result


def make_table(result: dict[str, Any]) -> Table:
    """Make the table of a result of :func:`run`."""
    title = (
        f"{result['config']}: classification of {result['masks']} masks, {result['classes']} "
        f"classes, {result['synonyms']} synonyms"
    )
    columns = ("vocabulary", "rows stacked", "rows mapped", "CPU ms, median", "minimum")
    table = Table(title, columns)
    medians = {}
    for way in (OTHERS, SAME):
        cost = result[way]
        times = [1e3 * seconds for seconds in cost["cpu_seconds"]]
        medians[way] = statistics.median(times)
        rows = (f"{cost['rows_stacked']:,}", f"{cost['rows_mapped']:,}")
        table.rows.append((way, *rows, f"{medians[way]:.2f}", f"{min(times):.2f}"))
    threads = f"{result['threads']} thread" + "s" * (result["threads"] > 1)
    table.notes = [
        f"{medians[OTHERS] / medians[SAME]:.1f} times the CPU time if every image has another "
        f"vocabulary. {threads}, torch {result['torch']}, load average "
        f"{result['load_average'][0]} at the start."
    ]
    return table


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    with one_line_errors():
        with redirect_stdout(sys.stderr):  # the log must not mix with the numbers
            result = run(args)
        show([make_table(result)], result, args.format)
    return 0


if __name__ == "__main__":
    sys.exit(main())
