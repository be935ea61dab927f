"""Tables of the cost of a training step from :mod:`odise_mm.analysis.training_cost`."""

from __future__ import annotations

from typing import Any

from odise_mm.analysis.training_ways import BASELINE, OURS
from odise_mm.benchmarks.tables import Table

Numbers = dict[str, Any]


def make_tables(result: Numbers) -> list[Table]:
    """Make the tables of a result of :func:`odise_mm.analysis.training_cost.cost_of_ways`.

    Args:
        result: The numbers.

    Returns:
        A table of the parameters that get gradients, and a table of the cost.
    """
    ways = result["ways"]
    parts = dict.fromkeys(part for w in ways.values() for part in w["gradient_numbers"])
    trained = Table("Parameters with gradients (AccumulateGrad nodes)", ["part", *ways])
    for part in parts:
        trained.rows.append([part, *(_numbers(w, part) for w in ways.values())])
    trained.rows += [(), ["total", *(_numbers(w, None) for w in ways.values())]]

    title = f"{result['config']}: one step, one image of {result['size']} x {result['size']}"
    rows = {
        "forward, GFLOP": lambda w: f"{w['forward_flops'] / 1e9:,.1f}",
        "backward, GFLOP": lambda w: f"{w['backward_flops'] / 1e9:,.1f}",
        "kept for the backward pass, float32, GB": lambda w: _giga(w["kept_bytes"]),
        "recomputed at a time, float32, GB": lambda w: _giga(w["recomputed_bytes"]),
        "kept, frozen parts in 16 bit, GB": lambda w: _giga(w["kept_bytes_16_bit"]),
        "recomputed at a time, 16 bit, GB": lambda w: _giga(w["recomputed_bytes_16_bit"]),
    }
    if "machine" in result:
        rows["seconds, measured"] = lambda w: f"{w['measured']['seconds']:.2f}"
        rows["CPU seconds, measured"] = lambda w: f"{w['measured']['cpu_seconds']:.2f}"
        rows["growth to the peak, measured, GB"] = lambda w: _giga(w["measured"]["peak_bytes"])
    cost = Table(title, ["", *ways])
    cost.rows = [[name, *(cell(w) for w in ways.values())] for name, cell in rows.items()]
    cost.notes = [
        "baseline: the weights of UNet, VAE and CLIP's image tower require gradients.",
        "FLOPs and bytes are counted on the meta device, 2 FLOPs per multiply-add, without the "
        "losses' point sampling and matching. Bytes are activations, each storage once, without "
        "weights. With 16 bit, the trained parts count in float32, so this is an upper bound.",
        "ours: no gradients are computed for the UNet's weights; the backward pass takes "
        f"{_share(ways)} of the baseline's FLOPs.",
    ]
    if "machine" in result:
        machine = result["machine"]
        cost.notes.append(
            f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, "
            f"load {machine['load_average'][0]} at the start."
        )
    return [trained, cost]


def _numbers(way: Numbers, part: str | None) -> str:
    numbers, nodes = way["gradient_numbers"], way["gradient_nodes"]
    if part is None:
        return f"{sum(numbers.values()):,} ({sum(nodes.values())})"
    return f"{numbers[part]:,} ({nodes[part]})" if part in numbers else "0"


def _giga(size: int) -> str:
    return f"{size / 1e9:.2f}"


def _share(ways: dict[str, Numbers]) -> str:
    return f"{ways[OURS]['backward_flops'] / ways[BASELINE]['backward_flops']:.0%}"
