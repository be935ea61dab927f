"""The rows of the ablations: what the paper says of them, and what was run of them.

A config is a program: only those that came with the package are loaded, and those that the user
named, never one that a file of results names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from odise_mm.benchmarks.tables import find_reports
from odise_mm.errors import ConfigError

STUDIES = ("representation", "captioner", "steps", "classification")
# Metric -> keys of tools/test.py's JSON; a set has one of them at most.
METRICS = {
    "PQ": ("panoptic/PQ",),
    "mAP": ("instance/AP", "lvis/AP"),
    "mIoU": ("semantic/mIoU",),
}
# Set of tools/test.py -> the paper's name for it and the number of its images.
PAPER_SETS = {"ade20k": ("ADE20K", 2000), "coco": ("COCO", 5000)}
OWN_SET = "the config's own set"
NOT_RUN, NOT_IN_PAPER = "not run", "-"


@dataclass
class Run:
    """What one JSON file says about one test set.

    Attributes:
        file: it.
        config: file that the model was built from.
        metrics: subset of classes, "" for all of them -> METRICS' names -> percent.
        started: when, as text that sorts.
        reasons: why the numbers cannot be compared with the paper's; empty: nothing speaks
            against it.
    """

    file: Path
    config: str
    metrics: dict[str, dict[str, float]]
    started: str
    reasons: list[str] = field(default_factory=list)


@dataclass
class Row:
    """One row of a study.

    Attributes:
        title: what it is called.
        config: of the ablation, relative to the repository, or as a JSON file names it.
        file: the config, if it may be loaded: it is the repository's, or the user named it.
        facts: further words, such as the pre-training.
        paper: the paper's name of a set -> metric -> percent.
        runs: name of a set -> ours.
    """

    study: str
    name: str
    title: str
    config: str
    facts: str = ""
    file: Path | None = None
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)

    def number(self, dataset: str, metric: str, subset: str = "") -> float | None:
        """Ours, of a subset of classes or of all; None where there is none."""
        run = self.runs.get(dataset)
        return None if run is None else run.metrics.get(subset, {}).get(metric)

    def ours(self, dataset: str, metric: str, subset: str = "") -> str:
        """A cell: the number, or that there is none."""
        number = self.number(dataset, metric, subset)
        return NOT_RUN if number is None else f"{number:.1f}"

    def theirs(self, dataset: str, metric: str) -> str:
        """A cell: the paper's number, or that it has none."""
        number = self.paper.get(dataset, {}).get(metric)
        return NOT_IN_PAPER if number is None else f"{number:.1f}"


def _root() -> Path:
    """The folder whose ``configs`` came with the package."""
    from odise_mm.config.finding import own_config_folders  # here, for a quick --help

    return own_config_folders()[0].parent


def read_rows() -> list[Row]:
    """All rows, in the metafile's order, without ours."""
    import yaml

    root, rows = _root(), []
    metafile = root / "configs" / "ablation" / "metafile.yml"
    for model in yaml.safe_load(metafile.read_text(encoding="utf-8"))["Models"]:
        told = model["Metadata"]
        row = Row(
            study=told["Study"],
            name=Path(model["Config"]).stem,
            title=told["Row"],
            config=model["Config"],
            facts=told.get("Pre-training", ""),
            file=root / model["Config"],
        )
        for result in model.get("Results", ()):
            row.paper.setdefault(result["Dataset"], {}).update(result["Metrics"])
        rows.append(row)
    return rows


def row_of(config: str, rows: list[Row]) -> Row | None:
    """The row that a config belongs to: by study and name, or by a name that only one row has."""
    path = Path(config)
    for study in STUDIES:
        if path.parts[-3:-1] == ("ablation", study):
            for row in rows:
                if (row.study, row.name) == (study, path.stem):
                    return row
            row = own_row(study, path.stem, config)
            rows.append(row)
            return row
    named = [row for row in rows if row.name == path.stem]
    return named[0] if len(named) == 1 else None


def own_row(study: str, name: str, config: str, file: Path | None = None) -> Row:
    """A row that the metafile does not list.

    Args:
        study, name: what it is called.
        config: as a JSON file names it.
        file: the config, if the user named it; else it is loaded only where the repository has one.
    """
    if file is None and re.fullmatch(r"\w[\w-]*", name):
        file = _root() / "configs" / "ablation" / study / f"{name}.py"
    return Row(study, name, name.replace("_", " "), config, file=file)


def add_named(rows: list[Row], configs: Sequence[str]) -> None:
    """Rows of configs that the user named.

    Raises:
        ConfigError: no such file, or none of a study's folder.
    """
    for config in configs:
        path = Path(config)
        if not path.is_file() or path.absolute().parent.name not in STUDIES:
            raise ConfigError(
                f"--configs {config}: a config in a folder called like a study, such as "
                f"configs/ablation/{STUDIES[0]}/mine.py"
            )
        study = path.absolute().parent.name
        known = [row for row in rows if (row.study, row.name) == (study, path.stem)]
        if known:
            known[0].file = path.absolute()
        else:
            rows.append(own_row(study, path.stem, config, path.absolute()))


def collect(places: Sequence[str], rows: list[Row]) -> list[str]:
    """Put what was run into the rows; of several runs of a set the latest counts.

    Returns:
        Remarks for people: what was passed over.
    """
    remarks = []
    for file, content in find_reports(places):
        row = row_of(content["config"]["file"], rows)
        if row is None:
            remarks.append(f"{file}: {content['config']['file']} is no row of a study")
            continue
        for name, found in content["sets"].items():
            numbers = found["metrics"]
            metrics: dict[str, dict[str, float]] = {}
            for subset, (metric, keys) in product(["", *found.get("subsets", {})], METRICS.items()):
                for key in keys:
                    key = key.replace("/", f"/{subset}/") if subset else key
                    if numbers.get(key) is not None:
                        metrics.setdefault(subset, {})[metric] = numbers[key]
            dataset = PAPER_SETS[name][0] if name in PAPER_SETS else name
            if name == row.name or name == Path(content["config"]["file"]).stem:
                dataset = OWN_SET
            run = Run(file, content["config"]["file"], metrics, content.get("started", ""))
            run.reasons = reasons_against(row, name, content)
            before = row.runs.get(dataset)
            if before is None or run.started >= before.started:
                row.runs[dataset] = run
            if before is not None:
                older = before if row.runs[dataset] is run else run
                remarks.append(f"{older.file}: older than {row.runs[dataset].file}, passed over")
    return remarks


def reasons_against(row: Row, name: str, content: dict[str, Any]) -> list[str]:
    """Why a result on the set ``name`` cannot stand beside the paper's."""
    found = content["sets"][name]
    reasons = []
    if content["random_weights"]:
        reasons.append("random weights")
    if name not in PAPER_SETS:
        reasons.append("not a set of the paper's table")
    elif found["images"] != PAPER_SETS[name][1]:
        reasons.append(f"{found['images']} images of {PAPER_SETS[name][1]:,}")
    if _ablation_config(row) is None:
        reasons.append("no config of this row is known: name it with --configs")
    elif not same_model(row, content["config"]):
        reasons.append("another model or image size than the row's config in configs/ablation")
    iteration = re.search(r"iter_(\d+)\.", (content["checkpoint"] or {}).get("file", ""))
    if iteration and int(iteration[1]) < full_schedule(row):
        reasons.append(f"trained for {int(iteration[1]):,} of {full_schedule(row):,} iterations")
    return reasons


def same_model(row: Row, tested: dict[str, Any]) -> bool:
    """Whether a result was made with the model and the test pipeline of the row's config.

    Where frozen weights lie and which list names the training's classes may differ.
    """
    config = _ablation_config(row)
    if config is None:
        return False
    expected = dict(model=config.model.to_dict(), test_pipeline=config.test_pipeline)
    ours = {key: _comparable(tested.get(key)) for key in expected}
    return ours == {key: _comparable(value) for key, value in expected.items()}


def full_schedule(row: Row) -> int:
    """Iterations that the row's config trains for."""
    config = _ablation_config(row)
    return 0 if config is None else config.train_cfg.max_iters


def _ablation_config(row: Row) -> Any:
    from mmengine.config import Config

    path = row.file
    known = _CONFIGS.get(path)
    if known is None and path is not None and path.is_file():
        known = _CONFIGS[path] = Config.fromfile(path, import_custom_modules=False)
    return known


_CONFIGS: dict[Path, Any] = {}


def _comparable(value: Any) -> Any:
    """As after a way through JSON, without what may differ."""
    if isinstance(value, dict):
        left_out = ("weights", "train_vocabulary", "use_checkpoint", "max_tiles_per_batch")
        return {key: _comparable(v) for key, v in value.items() if key not in left_out}
    if isinstance(value, (list, tuple)):
        return [_comparable(item) for item in value]
    return value
