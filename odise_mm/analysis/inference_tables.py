"""Tables of the inference cost from :mod:`odise_mm.analysis.inference_cost`.

If the architecture is the published one, the published implementation's numbers are included.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from odise_mm.analysis import published
from odise_mm.benchmarks.tables import Table

Numbers = dict[str, Any]


def make_tables(result: Numbers) -> list[Table]:
    """Make the tables of a result of :func:`odise_mm.analysis.inference_cost.examine`.

    Args:
        result: The numbers.

    Returns:
        One table per image size, then one per comparison with crops.
    """
    tables = [_size_table(result, size) for size in result["sizes"]]
    return tables + [_crops_table(result, s) for s, n in result["sizes"].items() if "crops" in n]


def _crops_table(result: Numbers, size: int) -> Table:
    found = result["sizes"][size]["crops"]
    title = f"CLIP's prediction on {found['masks']} masks: {_title(result, size)}"
    table = Table(title, ("way", "GFLOP", "seconds", "from", "to"))
    pooling, crops = found["mask pooling"], found["box crops"]
    for name in ("mask pooling", "box crops"):
        times = found[name]["seconds"]
        shown = (statistics.median(times), min(times), max(times))
        table.rows.append((name, _giga(found[name]["flops"]), *(f"{t:.3f}" for t in shown)))
    flops = crops["flops"] / pooling["flops"]
    table.notes = [
        f"Crops take {found['ratio']:.1f} times the time and {flops:.1f} times the FLOPs. Medians "
        f"of {len(crops['seconds'])} runs of each, alternately, on the same masks. The masks' size "
        "hardly matters, as every crop is resized to CLIP's input size."
    ]
    return table


def _size_table(result: Numbers, size: int) -> Table:
    numbers = result["sizes"][size]
    theirs = published.FLOPS.get(size) if result["published_architecture"] else None
    timed = "seconds" in numbers
    table = Table(_title(result, size), ["part", "GFLOP"])
    if theirs:
        table.columns += ["published, needed", "published, all", "share of needed", "of all"]
    if timed:
        table.columns += ["seconds", "share of time", "peak GB"]
    found = [*(theirs or {}), *numbers["flops"], *numbers.get("seconds", {})]
    known = [part for part in published.FLOPS[1024] if part in found]
    for part in [*dict.fromkeys([*known, *found]), None]:
        if part is None:
            table.rows.append(())
        flops = _of(numbers["flops"], part)
        row = [part or "total", _giga(flops)]
        if theirs:
            needed = _of({name: cost.needed for name, cost in theirs.items()}, part)
            everything = _of({name: cost.total for name, cost in theirs.items()}, part)
            row += [_giga(needed), _giga(everything)]
            row += [_percent(flops, needed), _percent(flops, everything)]
        if timed:
            row += _time_and_memory(numbers, part)
        table.rows.append(row)
    table.notes = _notes(result, size, theirs)
    return table


def _of(numbers: dict[str, int], part: str | None) -> int:
    return sum(numbers.values()) if part is None else numbers.get(part, 0)


def _giga(number: int) -> str:
    return f"{number / 1e9:,.2f}" if number else "0"


def _percent(number: float, whole: float) -> str:
    return f"{100 * number / whole:.2f} %" if whole else ""


def _time_and_memory(numbers: Numbers, part: str | None) -> list[str]:
    total = numbers["total_seconds"]
    if part is None:
        return [f"{total:.3f}", "100 %", f"{numbers['total_peak_bytes'] / 1e9:.2f}"]
    if part not in numbers["seconds"]:
        return ["", "", ""]
    seconds, peak = numbers["seconds"][part], numbers["peak_bytes"][part]
    return [f"{seconds:.3f}", _percent(seconds, total), f"{peak / 1e9:.2f}"]


def _title(result: Numbers, size: int) -> str:
    title = f"{Path(result['config']).stem}, {size} x {size}"
    if "seconds" not in result["sizes"][size]:
        return title
    compiled = ", compiled" if result["compiled"] else ""
    return f"{title}, {result['precision']}{compiled} on {result['device']}"


def _notes(result: Numbers, size: int, theirs: Any) -> list[str]:
    numbers = result["sizes"][size]
    words = result["vocabulary"]
    notes = [
        "2 FLOPs per multiply-add, attention included. Names: "
        f"{words['classes']} classes, {words['synonyms']} synonyms, embedded beforehand."
    ]
    if theirs:
        ours, total = sum(numbers["flops"].values()), sum(c.total for c in theirs.values())
        needed = sum(c.needed for c in theirs.values())
        notes.append(
            f"{ours / 1e12:.3f} TFLOP are {ours / total:.2%} of the {total / 1e12:.3f} TFLOP of "
            f"the published implementation ({needed / total:.2%} are needed for its output)."
        )
        if not words["as_published"]:
            notes.append(
                f"The published count was made with {published.COUNTED_CLASSES} classes; the cost "
                "of naming and of semantic post-processing grows with the number of classes."
            )
    if "seconds" not in numbers:
        return notes
    machine, totals = result["machine"], numbers["totals"]
    load = machine["load_average"][0]
    where = machine.get("gpu", f"{machine['cpu']}, {machine['cores']} cores")
    notes.append(
        f"{where}; {machine['threads']} threads, torch {machine['torch']}, load average {load} at "
        f"the start. Median of {len(totals)} runs ({min(totals):.3f} to {max(totals):.3f} s) "
        f"after a warm-up of {numbers['warm_up']:.1f} s."
    )
    what = "Bytes in tensors on the GPU" if "gpu" in machine else "Resident memory of the process"
    whole = "" if numbers["peak_can_be_reset"] else ", since its start (the system can't reset it)"
    notes.append(
        f"Peak: {what.lower()}{whole}; {numbers['bytes_before'] / 1e9:.2f} GB before the first "
        f"run. Weights: {result['weights_bytes'] / 1e9:.3f} GB."
    )
    return notes
