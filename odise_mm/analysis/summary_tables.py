"""Tables of the model summaries from :mod:`odise_mm.analysis.model_summary`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from odise_mm.analysis import published
from odise_mm.benchmarks.tables import Table


def make_tables(summary: dict[str, Any]) -> list[Table]:
    """Make the tables of one model.

    Args:
        summary: Result of :func:`odise_mm.analysis.model_summary.summarize`.

    Returns:
        Tables of the trained and frozen parameters, the parameters that are not loaded (diffusion
        backbones only), and the feature maps.
    """
    tables = [_counts(summary, "trained"), _counts(summary, "frozen")]
    if "not_built" in summary:
        tables.append(_not_built(summary))
    taps = Table("Feature maps of the backbone", ("where", "channels", "stride"))
    taps.rows = [(t["tap"], str(t["channels"]), str(t["stride"])) for t in summary["taps"]]
    size = summary["size"]
    taps.notes = [
        f"{summary['flops'] / 1e12:.3f} TFLOP for an image of {size} x {size} "
        f"({published.COUNTED_CLASSES} classes, {published.COUNTED_SYNONYMS} names, embedded "
        "beforehand); by part: tools/analysis_tools/benchmark.py CONFIG --flops-only"
    ]
    return [*tables, taps]


def make_comparison(summaries: list[dict[str, Any]]) -> Table:
    """Make a table with one row per config.

    Args:
        summaries: Results of :func:`odise_mm.analysis.model_summary.summarize`.
    """
    columns = ("config", "trained", "frozen", "channels", "strides", "TFLOP per image")
    table = Table("Models", columns)
    for summary in summaries:
        maps = summary["taps"]
        table.rows.append(
            (
                _short_name(summary["config"]),
                f"{sum(summary['trained'].values()):,}",
                f"{sum(summary['frozen'].values()):,}",
                " ".join(str(m["channels"]) for m in maps),
                " ".join(str(m["stride"]) for m in maps),
                f"{summary['flops'] / 1e12:.3f} ({summary['size']})",
            )
        )
    table.notes = [
        "Parameters: those in memory; shared ones count once. Strides in pixels.",
        "TFLOP: 10^12 operations, 2 per multiply-add, for a square image (edge in parentheses) "
        f"and {published.COUNTED_CLASSES} classes ({published.COUNTED_SYNONYMS} names), embedded "
        "beforehand.",
    ]
    return table


def _short_name(config: str) -> str:
    """Return a config's path below ``configs/``, without suffix."""
    parts = Path(config).with_suffix("").parts
    last = max((i for i, part in enumerate(parts) if part == "configs"), default=-1)
    return "/".join(parts[last + 1 :]) if last >= 0 else str(Path(config).with_suffix(""))


def _counts(summary: dict[str, Any], kind: str) -> Table:
    ours, theirs = summary[kind], summary.get(f"published_{kind}")
    table = Table(f"{kind.capitalize()} parameters", ["part", "ours"])
    parts = list(dict.fromkeys([*(theirs or {}), *ours]))
    if theirs is None:
        table.rows = [(part, f"{ours[part]:,}") for part in parts]
        table.rows += [(), ("total", f"{sum(ours.values()):,}")]
        return table
    table.columns += ["published", "difference"]
    rows = [(part, ours.get(part, 0), theirs.get(part, 0)) for part in parts]
    rows.append(("total", sum(ours.values()), sum(theirs.values())))
    table.rows = [(n, f"{a:,}", f"{b:,}", f"{a - b:+,}" if a != b else "0") for n, a, b in rows]
    table.rows.insert(-1, ())
    if kind == "trained":
        table.notes = [
            f"The paper rounds the published total to {published.PAPER_TRAINED_MILLIONS} M. The "
            "logit scale counts for the names here, and for the head in the published code."
        ]
    else:
        paper = sum(theirs.values()) - summary["fewer_positions"]
        table.notes = [
            "CLIP counts once; the published code holds three copies of it.",
            f"The paper states {published.PAPER_FROZEN_MILLIONS:,} M. This is presumably {paper:,}:"
            f" the total minus the {summary['fewer_positions']:,} position parameters that CLIP "
            f"has more at 336 pixels than at {published.PAPER_CLIP_IMAGE_SIZE}.",
        ]
    return table


def _not_built(summary: dict[str, Any]) -> Table:
    missing = summary["not_built"]
    table = Table("Diffusion model: parameters not in memory", ("part: module", "parameters"))
    for part, modules in missing.items():
        table.rows += [(f"{part}: {name}", f"{count:,}") for name, count in modules.items()]
    total = sum(sum(modules.values()) for modules in missing.values())
    table.rows += [(), ("total", f"{total:,}")]
    table.notes = ["The text encoder runs once, on the empty prompt, and is then discarded."]
    if "published_frozen" in summary:
        ours, theirs = sum(summary["frozen"].values()), sum(summary["published_frozen"].values())
        rest = theirs - ours - total
        table.notes.append(
            f"{ours:,} frozen + {total:,} not in memory = {ours + total:,}; published: {theirs:,}; "
            f"unexplained: {rest:,}."
        )
    return table
