"""Tables of the report on a device from :mod:`odise_mm.analysis.device_report`."""

from __future__ import annotations

from pathlib import Path

from odise_mm.analysis.inference_cost import Numbers
from odise_mm.benchmarks.tables import Table

PUBLISHED = "The paper states 1.26 images/s and 11.9 GB for 1024 x 1024 on a V100."


def make_tables(result: Numbers) -> list[Table]:
    """Make the tables of a result of :func:`odise_mm.analysis.device_report.report`.

    Args:
        result: The numbers.

    Returns:
        Tables of the agreement with the CPU, of inference, of its parts, and of training steps.
        Parts of the report that were skipped have no table.
    """
    tables = [_inference(result), *_parts(result)]
    if result["agreement"]:
        tables.insert(0, _agreement(result))
    if result["training"]:
        tables.append(_training(result))
    return tables


def _title(result: Numbers, what: str, size: int) -> str:
    return f"{Path(result['config']).stem}, {size} x {size}: {what} on {result['device']}"


def _machine(result: Numbers) -> str:
    machine = result["machine"]
    name = machine.get("gpu", f"{machine['cpu']}, {machine['threads']} threads")
    return f"{name}; torch {machine['torch']}, Python {machine['python']}; weights: " + (
        "random." if result["weights"] == "none" else "those of the config."
    )


def _agreement(result: Numbers) -> Table:
    rows = result["agreement"]
    stages = next((list(row)[1:] for row in rows if "error" not in row), [])
    title = _title(result, "agreement with float32 on the CPU", result["agreement_size"])
    table = Table(title, ["precision", *stages])
    for row in rows:
        if "error" in row:
            table.rows.append([row["precision"], row["error"], *[""] * (len(stages) - 1)])
            continue
        shown = [f"{row[s]:.2%}" if s.endswith("map") else f"{row[s]:.1e}" for s in stages]
        table.rows.append([row["precision"], *shown])
    table.notes = [
        "Maps: share of equal pixels. Other stages: largest difference, divided by the standard "
        "deviation.",
        _machine(result),
    ]
    attention = result["attention"]
    if "error" in attention:
        table.notes.append(f"Deformable attention: {attention['error']}.")
    else:
        table.notes.append(
            f"Deformable attention: mmcv's kernel takes {1e3 * attention['kernel']:.2f} ms, plain "
            f"PyTorch {1e3 * attention['pytorch']:.2f} ms; largest difference "
            f"{attention['difference']:.1e} of the standard deviation."
        )
    return table


def _inference(result: Numbers) -> Table:
    columns = ("precision", "tiles", "compiled", "images/s", "ms", "from", "to", "peak GB")
    table = Table(_title(result, "inference", result["size"]), columns)
    for row in result["inference"]:
        way = [row["precision"], str(row["tiles"]), "yes" if row["compiled"] else "no"]
        if "error" in row:
            table.rows.append([*way, row["error"], "", "", "", ""])
            continue
        times = (row["total_seconds"], min(row["totals"]), max(row["totals"]))
        shown = [f"{1e3 * seconds:.1f}" for seconds in times]
        peak = f"{row['total_peak_bytes'] / 1e9:.2f}"
        table.rows.append([*way, f"{1 / row['total_seconds']:.2f}", *shown, peak])
    table.notes = [_machine(result), PUBLISHED]
    return table


def _parts(result: Numbers) -> list[Table]:
    measured = [row for row in result["inference"] if "seconds" in row]
    if not measured:
        return []
    columns = [
        f"{row['precision']}, {row['tiles']} tiles" + (", compiled" if row["compiled"] else "")
        for row in measured
    ]
    table = Table(_title(result, "milliseconds of the parts", result["size"]), ["part", *columns])
    for part in dict.fromkeys(part for row in measured for part in row["seconds"]):
        cells = [row["seconds"].get(part) for row in measured]
        shown = ["" if seconds is None else f"{1e3 * seconds:.1f}" for seconds in cells]
        table.rows.append([part, *shown])
    return [table]


def _training(result: Numbers) -> Table:
    columns = ("images", "use_checkpoint", "images/s", "seconds", "peak GB")
    table = Table(_title(result, "training step", result["size"]), columns)
    for row in result["training"]:
        way = [str(row["images"]), "yes" if row["checkpointing"] else "no"]
        if "error" in row:
            table.rows.append([*way, row["error"], "", ""])
            continue
        speed, peak = f"{row['images_per_second']:.2f}", f"{row['peak_bytes'] / 1e9:.2f}"
        table.rows.append([*way, speed, f"{row['seconds']:.2f}", peak])
    table.notes = [
        "Forward pass, losses, backward pass and update (AdamW); data loading is not included."
    ]
    return table
