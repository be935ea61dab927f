#!/usr/bin/env python
"""What naming the masks of an image costs, with the same vocabulary for all images and with others.

From mask embeddings to class probabilities, on the CPU, without CLIP's image tower. Every name is
embedded by CLIP before anything is measured. "The same": a matrix of the vocabulary's text
embeddings is at hand after the first image. "Another for every image": the same names in another
order each time, so that it has to be put together anew. Random weights will do.

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
_ORDERS = 40  # more than are kept


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", help="config file or its name under configs/")
    parser.add_argument(
        "--vocabulary", default="lvis", help="a vocabulary's name or file (default: %(default)s)"
    )
    parser.add_argument("--masks", type=positive_int, default=100, help="default: %(default)s")
    parser.add_argument(
        "--repeats", type=positive_int, default=80, help="images of each way (default: %(default)s)"
    )
    parser.add_argument("--threads", type=positive_int, help="of torch")
    parser.add_argument("--format", choices=FORMATS, default="table", help="default: %(default)s")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All numbers."""
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
    """The two ways, one per row."""
    title = (
        f"{result['config']}: names of an image with {result['masks']} masks, {result['classes']} "
        f"classes, {result['synonyms']} synonyms"
    )
    columns = ("vocabulary", "rows put together", "rows mapped", "CPU ms, median", "least")
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
        f"{medians[OTHERS] / medians[SAME]:.1f} times the CPU time where every image brings "
        f"another vocabulary. {threads}, torch {result['torch']}, load "
        f"{result['load_average'][0]} at the start."
    ]
    return table


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with one_line_errors():
        with redirect_stdout(sys.stderr):  # the log must not mix with the numbers
            result = run(args)
        show([make_table(result)], result, args.format)
    return 0


if __name__ == "__main__":
    sys.exit(main())
