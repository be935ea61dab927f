"""Rows of the ablations, with the paper's numbers and our results.

A config is a program. Only the package's configs, and those that the user names, are loaded, never
one that a results file names.
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
# Metric -> keys in the JSON files of tools/test.py; a dataset has at most one of them.
METRICS = {
    "PQ": ("panoptic/PQ",),
    "mAP": ("instance/AP", "lvis/AP"),
    "mIoU": ("semantic/mIoU",),
}
# Name of a dataset in tools/test.py -> its name in the paper and its number of images.
PAPER_SETS = {"ade20k": ("ADE20K", 2000), "coco": ("COCO", 5000)}
OWN_SET = "the config's own dataset"
NOT_RUN, NOT_IN_PAPER = "not run", "-"


@dataclass
class Run:
    """Result of one JSON file on one dataset.

    Attributes:
        file: The JSON file.
        config: Config file of the model.
        metrics: Subset of classes ("" for all) -> metric of ``METRICS`` -> percent.
        started: Start of the run in ISO format, which sorts by time.
        reasons: Reasons why the numbers are not comparable with the paper's; empty if they are.
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
        study: Name of the study.
        name: Name of the config without suffix.
        title: Title in tables.
        config: Config file relative to the repository, or as a JSON file names it.
        facts: Further facts, such as the pre-training.
        file: The config file if it may be loaded, which means that it belongs to the package or
            that the user named it.
        paper: The paper's numbers: dataset (the paper's name) -> metric -> percent.
        runs: Our results by dataset.
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
        """Return our number in percent, or None.

        Args:
            dataset: Name of the dataset.
            metric: Metric of ``METRICS``.
            subset: Subset of classes; "" for all classes.
        """
        run = self.runs.get(dataset)
        return None if run is None else run.metrics.get(subset, {}).get(metric)

    def ours(self, dataset: str, metric: str, subset: str = "") -> str:
        """Format our number as a cell, see :meth:`number`."""
        number = self.number(dataset, metric, subset)
        return NOT_RUN if number is None else f"{number:.1f}"

    def theirs(self, dataset: str, metric: str) -> str:
        """Format the paper's number as a cell."""
        number = self.paper.get(dataset, {}).get(metric)
        return NOT_IN_PAPER if number is None else f"{number:.1f}"


def _root() -> Path:
    """Return the folder that contains the package's ``configs``."""
    from odise_mm.config.finding import own_config_folders  # here, for a quick --help

    return own_config_folders()[0].parent


def read_rows() -> list[Row]:
    """Read all rows with the paper's numbers, in the order of the metafile."""
    import yaml

    root, rows = _root(), []
    metafile = root / "configs" / "ablation" / "metafile.yml"
    for model in yaml.safe_load(metafile.read_text(encoding="utf-8"))["Models"]:
        metadata = model["Metadata"]
        row = Row(
            study=metadata["Study"],
            name=Path(model["Config"]).stem,
            title=metadata["Row"],
            config=model["Config"],
            facts=metadata.get("Pre-training", ""),
            file=root / model["Config"],
        )
        for result in model.get("Results", ()):
            row.paper.setdefault(result["Dataset"], {}).update(result["Metrics"])
        rows.append(row)
    return rows


def row_of(config: str, rows: list[Row]) -> Row | None:
    """Find the row of a config, by study and name, or else by a name that only one row has.

    A config in a study's folder that matches no row gets a new row.

    Args:
        config: Config file, as a JSON file names it.
        rows: All rows; a new one is appended.

    Returns:
        The row, or None if the config belongs to no study.
    """
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
    """Make a row that the metafile does not list.

    Args:
        study: Name of the study.
        name: Name of the config without suffix.
        config: Config file, as a JSON file names it.
        file: Config file, as the user named it. Otherwise the package's config of this name, if
            it exists, is used.
    """
    if file is None and re.fullmatch(r"\w[\w-]*", name):
        file = _root() / "configs" / "ablation" / study / f"{name}.py"
    return Row(study, name, name.replace("_", " "), config, file=file)


def add_named(rows: list[Row], configs: Sequence[str]) -> None:
    """Add rows for configs that the user named, or set the config of their existing rows.

    Args:
        rows: All rows; changed in place.
        configs: Config files.

    Raises:
        ConfigError: A file does not exist, or its folder is not named like a study.
    """
    for config in configs:
        path = Path(config)
        if not path.is_file() or path.absolute().parent.name not in STUDIES:
            raise ConfigError(
                f"--configs {config}: must be a config file in a folder named like a study, such "
                f"as configs/ablation/{STUDIES[0]}/mine.py"
            )
        study = path.absolute().parent.name
        known = [row for row in rows if (row.study, row.name) == (study, path.stem)]
        if known:
            known[0].file = path.absolute()
        else:
            rows.append(own_row(study, path.stem, config, path.absolute()))


def collect(places: Sequence[str], rows: list[Row]) -> list[str]:
    """Collect our results into the rows; of several runs on a dataset the latest counts.

    Args:
        places: JSON files of ``tools/test.py``, or folders that contain them.
        rows: All rows; changed in place.

    Returns:
        Remarks about results that were skipped.
    """
    remarks = []
    for file, content in find_reports(places):
        row = row_of(content["config"]["file"], rows)
        if row is None:
            remarks.append(f"{file}: {content['config']['file']} is not a row of a study")
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
                dataset = own_set(content["config"]["file"])
            run = Run(file, content["config"]["file"], metrics, content.get("started", ""))
            run.reasons = reasons_against(row, name, content)
            before = row.runs.get(dataset)
            if before is None or run.started >= before.started:
                row.runs[dataset] = run
            if before is not None:
                older = before if row.runs[dataset] is run else run
                remarks.append(f"{older.file}: skipped, {row.runs[dataset].file} is newer")
    return remarks


def own_set(config: str) -> str:
    """Return the name in tables of the dataset that a config itself tests on.

    Configs of a study on another dataset are in ``configs/DATASET/ablation/STUDY/``.
    """
    parts = Path(config).parts
    if parts[-5:-4] == ("configs",) and parts[-3] == "ablation":
        return {"toy": "toy world"}.get(parts[-4], parts[-4])
    return OWN_SET


def reasons_against(row: Row, name: str, content: dict[str, Any]) -> list[str]:
    """List the reasons why a result is not comparable with the paper's.

    Args:
        row: Row of the result.
        name: Name of the dataset in ``tools/test.py``.
        content: Content of the JSON file.
    """
    found = content["sets"][name]
    reasons = []
    if content["random_weights"]:
        reasons.append("random weights")
    if name not in PAPER_SETS:
        reasons.append("not a dataset of the paper's table")
    elif found["images"] != PAPER_SETS[name][1]:
        reasons.append(f"{found['images']} images of {PAPER_SETS[name][1]:,}")
    if _ablation_config(row) is None:
        reasons.append("this row has no known config: name it with --configs")
    elif not same_model(row, content["config"]):
        reasons.append("model or image size differ from the row's config in configs/ablation")
    iteration = re.search(r"iter_(\d+)\.", (content["checkpoint"] or {}).get("file", ""))
    if iteration and int(iteration[1]) < full_schedule(row):
        reasons.append(f"trained for {int(iteration[1]):,} of {full_schedule(row):,} iterations")
    return reasons


def same_model(row: Row, tested: dict[str, Any]) -> bool:
    """Return whether a result was made with the model and test pipeline of the row's config.

    Settings that do not change the comparison, such as paths of weights, may differ.

    Args:
        row: Row of the result.
        tested: Entry ``config`` of the JSON file.
    """
    config = _ablation_config(row)
    if config is None:
        return False
    expected = dict(model=config.model.to_dict(), test_pipeline=config.test_pipeline)
    ours = {key: _comparable(tested.get(key)) for key in expected}
    return ours == {key: _comparable(value) for key, value in expected.items()}


def full_schedule(row: Row) -> int:
    """Return the iterations that the row's config trains for; 0 without a config."""
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
    """Convert to JSON types, without the settings that may differ."""
    if isinstance(value, dict):
        left_out = ("weights", "train_vocabulary", "use_checkpoint", "max_tiles_per_batch")
        return {key: _comparable(v) for key, v in value.items() if key not in left_out}
    if isinstance(value, (list, tuple)):
        return [_comparable(item) for item in value]
    return value
