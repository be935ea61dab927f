"""Tables of the configs, written from configs/*/metafile.yml into the pages that show them.

Usage: python docs/tables.py

A page has a pair of comments, ``<!-- table: NAME -->`` and ``<!-- end of table -->``; what stands
between them is replaced. Names are those of :data:`TABLES`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs/model_zoo.md", *sorted(ROOT.glob("configs/*/README.md"))]
PLACE = re.compile(r"(<!-- table: (?P<name>[\w ]+) -->\n).*?(<!-- end of table -->)", re.S)
METRICS = ("PQ", "mAP", "mIoU")
NONE = "–"


def entries(folder: str) -> list[dict[str, Any]]:
    """The models that the metafile of a folder of configs lists."""
    text = (ROOT / "configs" / folder / "metafile.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["Models"]


def numbers(entry: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Dataset -> metric -> the paper's number."""
    found: dict[str, dict[str, float]] = {}
    for result in entry.get("Results", []):
        found.setdefault(result["Dataset"], {}).update(result["Metrics"])
    return found


def cells(values: dict[str, float]) -> list[str]:
    """One cell for each metric, with a dash where there is no number."""
    return [f"{values[name]:.1f}" if name in values else NONE for name in METRICS]


def table(columns: list[str], rows: list[list[str]], numeric: int) -> str:
    """A Markdown table; its last ``numeric`` columns are aligned to the right."""
    rule = [":--"] * (len(columns) - numeric) + ["--:"] * numeric
    return "".join(f"| {' | '.join(row)} |\n" for row in [columns, rule, *rows])


def odise(supervision: str, page: Path) -> str:
    """Table of one published checkpoint: a config for each test set."""
    rows = []
    for entry in entries("odise"):
        if entry["Metadata"]["Supervision"] == supervision:
            found = numbers(entry)
            (dataset, values) = next(iter(found.items()), (NONE, {}))
            rows.append([link(entry, page), dataset, *cells(values)])
    return table(["config", "tested on", *METRICS], rows, len(METRICS))


def method(folder: str, page: Path) -> str:
    """Table of one method that builds on FC-CLIP: a row for each config and dataset."""
    rows = []
    for entry in entries(folder):
        untested = {entry["Metadata"].get("Tested On", NONE): {}}
        for dataset, values in (numbers(entry) or untested).items():
            rows.append([link(entry, page), dataset, *cells(values)])
    return table(["config", "tested on", *METRICS], rows, len(METRICS))


def proposals(page: Path) -> str:
    """Table of the configs that name masks from elsewhere, which are not trained."""
    rows = []
    for entry in entries("proposals"):
        about = entry["Metadata"]
        parameters = f"{about['Frozen Parameters (M)']:,.0f}"
        rows.append([link(entry, page), about["Masks Of"], about["Named By"], parameters])
    return table(["config", "masks of", "named by", "parameters (M)"], rows, 1)


def baseline(page: Path) -> str:
    """Table of the baselines without a diffusion model, which have no published weights."""
    rows = [
        [
            link(entry, page),
            entry["Metadata"]["Supervision"],
            entry["Metadata"]["Named By"],
            dataset,
            *cells(values),
        ]
        for entry in entries("baseline")
        for dataset, values in (numbers(entry) or {NONE: {}}).items()
    ]
    columns = ["config", "trained with", "named by", "tested on", *METRICS]
    return table(columns, rows, len(METRICS))


def ablation(study: str, page: Path) -> str:
    """Table of one study: its rows on both datasets, if any row has numbers."""
    chosen = [entry for entry in entries("ablation") if entry["Metadata"]["Study"] == study]
    datasets = ("ADE20K", "COCO") if any(map(numbers, chosen)) else ()
    rows = []
    for entry in chosen:
        found = numbers(entry)
        row = [entry["Metadata"]["Row"], link(entry, page)]
        rows.append([*row, *(c for name in datasets for c in cells(found.get(name, {})))])
    columns = [f"{dataset} {name}" for dataset in datasets for name in METRICS]
    return table(["row", "config", *columns], rows, len(columns))


def toy(page: Path) -> str:
    """Table of the shipped models; the paper has no numbers of them."""
    rows = []
    for entry in entries("toy"):
        weights = relative(entry["Weights"], page)
        shown = f"[{Path(weights).name}]({weights})"
        rows.append([link(entry, page), entry["Metadata"]["Supervision"], shown])
    return table(["config", "trained with", "weights"], rows, 0)


def link(entry: dict[str, Any], page: Path) -> str:
    """Link from a page to a config."""
    path = relative(entry["Config"], page)
    return f"[{Path(path).stem}]({path})"


def relative(file: str, page: Path) -> str:
    """Path of a file of the repository, seen from a page."""
    return Path(os.path.relpath(ROOT / file, page.parent)).as_posix()


TABLES: dict[str, Callable[[Path], str]] = {
    "labels": lambda page: odise("labels", page),
    "captions": lambda page: odise("captions", page),
    "baseline": baseline,
    "proposals": proposals,
    "fcclip": lambda page: method("fcclip", page),
    "ovrcoat": lambda page: method("ovrcoat", page),
    "maftplus": lambda page: method("maftplus", page),
    "maskclippp": lambda page: method("maskclippp", page),
    "representation": lambda page: ablation("representation", page),
    "captioner": lambda page: ablation("captioner", page),
    "steps": lambda page: ablation("steps", page),
    "classification": lambda page: ablation("classification", page),
    "toy": toy,
}


def with_tables(page: Path) -> str:
    """Text of a page with its tables as the metafiles have them now."""

    def fill(place: re.Match[str]) -> str:
        # The empty lines are for Markdown: a table needs one before it.
        return f"{place[1]}\n{TABLES[place['name']](page)}\n{place[3]}"

    return PLACE.sub(fill, page.read_text(encoding="utf-8"))


def main() -> None:
    """Write the tables."""
    for page in PAGES:
        page.write_text(with_tables(page), encoding="utf-8")


if __name__ == "__main__":
    main()
