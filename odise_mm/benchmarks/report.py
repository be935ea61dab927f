"""Results of a test run, as tables and as JSON and CSV files.

Only the tables round numbers.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from odise_mm.utils.display import printable
from odise_mm.utils.files import write_json, write_text
from odise_mm.version import __version__
from odise_mm.vocabulary import Vocabulary

# Heading -> keys of its metrics; a dataset has at most one of them.
COLUMNS: dict[str, tuple[str, ...]] = {
    "PQ": ("panoptic/PQ",),
    "SQ": ("panoptic/SQ",),
    "RQ": ("panoptic/RQ",),
    "PQ th": ("panoptic/PQ_th",),
    "SQ th": ("panoptic/SQ_th",),
    "RQ th": ("panoptic/RQ_th",),
    "PQ st": ("panoptic/PQ_st",),
    "SQ st": ("panoptic/SQ_st",),
    "RQ st": ("panoptic/RQ_st",),
    "mAP": ("instance/AP", "lvis/AP"),
    "mIoU": ("semantic/mIoU",),
    "mAP rare": ("lvis/APr",),
    "mAP common": ("lvis/APc",),
    "mAP frequent": ("lvis/APf",),
    "AR@100": ("proposals/AR@100",),
}
_PACKAGES = (
    "torch", "torchvision", "mmengine", "mmdet", "mmsegmentation", "mmcv", "mmcv-lite",
    "onedl-mmengine", "onedl-mmdetection", "onedl-mmsegmentation", "onedl-mmcv",
    "diffusers", "open_clip_torch", "pycocotools", "numpy", "pillow",
)  # fmt: skip


@dataclass
class SetResult:
    """Results on one test set.

    Args:
        name: Name of the test set, such as "ade20k".
        metrics: Results in percent, by "prefix/name".
        per_class: Prefix -> class (named as in the dataset) -> metric -> percent.
        is_thing: Whether each class is a thing, in the order of the vocabulary.
        images: Number of images, over all processes.
        limit: Number of images that the run was limited to; None for all.
        vocabulary: See :func:`describe_vocabulary`.
        seconds: Duration of the run on this test set, metrics included.
        subsets: Classes of each subset that is also measured, see :class:`DatasetMetric`.
        failed: Failures: metric -> reason, or hook -> reason.
    """

    name: str
    metrics: dict[str, float]
    per_class: dict[str, dict[str, dict[str, float]]]
    is_thing: dict[str, bool]
    images: int
    limit: int | None
    vocabulary: dict[str, Any]
    seconds: float
    subsets: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class Report:
    """Results of a run on several test sets.

    Args:
        run: Facts that hold for all test sets: config, checkpoint, precision, versions, ...
        planned: Names of the test sets of the run, in order.
        random_weights: Whether the model has random weights, so that the numbers are meaningless.
        results: Results of the finished test sets.
    """

    run: dict[str, Any]
    planned: Sequence[str]
    random_weights: bool = False
    results: list[SetResult] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """Planned test sets without a result."""
        done = {result.name for result in self.results}
        return [name for name in self.planned if name not in done]

    @property
    def failures(self) -> list[str]:
        """Test set, name and reason of every failed metric and hook."""
        return [
            f"{result.name}, {metric}: {why}"
            for result in self.results
            for metric, why in result.failed.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types, in full precision; numbers that don't exist are None."""
        return _finite(
            dict(
                random_weights=self.random_weights,
                **self.run,
                done=[result.name for result in self.results],
                not_done=self.missing,
                sets={result.name: asdict(result) for result in self.results},
            )
        )

    def write(self, path: str | os.PathLike) -> None:
        """Write a ``.json`` file, or a ``.csv`` file of (set, class, kind, metric, percent).

        An existing file is replaced only when the new one is complete.

        Args:
            path: File to write.

        Raises:
            OSError: The file cannot be written.
            ValueError: The suffix is neither ``.json`` nor ``.csv``.
        """
        path = Path(path)
        if path.suffix == ".json":
            write_json(path, self.to_dict(), indent=1)
        elif path.suffix == ".csv":
            write_text(path, self._csv())
        else:
            raise ValueError(f"{path}: results must be written as .json or .csv")

    def _csv(self) -> str:
        stream = io.StringIO()
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(("set", "class", "kind", "metric", "percent"))
        for result in self.results:
            for key, value in result.metrics.items():
                rows.writerow((result.name, "", "", key, _exact(value)))
            for prefix, classes in result.per_class.items():
                for name, values in classes.items():
                    for key, value in values.items():
                        row = (name, _kind(result, name), f"{prefix}/{key}", _exact(value))
                        rows.writerow((result.name, *row))
        return stream.getvalue()

    def table(self) -> Table:
        """Make a table with one row per test set, without empty columns."""
        headings = [h for h in COLUMNS if any(_value(r, h) is not None for r in self.results)]
        table = _new_table("Results in percent")
        for heading in ("images", *headings):
            table.add_column(_text(heading), justify="right")
        for result in self.results:
            images = str(result.images)
            if result.limit is not None:
                images = f"first {images}"
            cells = [_two_digits(_value(result, heading)) for heading in headings]
            table.add_row(_text(result.name), images, *cells)
        notes = []
        if any(result.limit is not None for result in self.results):
            notes.append("limited to the first images of each dataset: not benchmark numbers")
        if self.random_weights:
            notes.append("random weights: these numbers are meaningless")
        if self.missing:
            notes.append(f"not done: {', '.join(self.missing)}")
        notes += [f"failed: {failure}" for failure in self.failures]
        if notes:
            table.caption = Text("\n".join(map(printable, notes)), style="black on yellow")
        return table

    def subset_table(self) -> Table | None:
        """Make a table with one row per test set and subset; None without subsets."""
        rows = [(result, subset) for result in self.results for subset in result.subsets]
        if not rows:
            return None
        numbers = {h: [_value(result, h, subset) for result, subset in rows] for h in COLUMNS}
        numbers = {h: column for h, column in numbers.items() if any(map(_is_known, column))}
        table = _new_table("Subsets of classes, in percent")
        table.add_column("subset")
        for heading in ("classes", *numbers):
            table.add_column(_text(heading), justify="right")
        for (result, subset), *values in zip(rows, *numbers.values(), strict=True):
            count = str(len(result.subsets[subset]))
            table.add_row(_text(result.name), _text(subset), count, *map(_two_digits, values))
        return table

    def class_tables(self) -> list[Table]:
        """Make a table per test set, with one row per class and its kind (thing or stuff)."""
        return [_class_table(result) for result in self.results]


def describe_vocabulary(
    vocabulary: Vocabulary, source: str, label_file: str | os.PathLike | None = None
) -> dict[str, Any]:
    """Describe a vocabulary, so that a result can be traced to its class names.

    Args:
        vocabulary: The vocabulary in use.
        source: Name of the built-in vocabulary, or file, that defines the classes.
        label_file: File of names that replaced the synonyms.

    Returns:
        ``source``, ``classes`` (their number), ``label_file``, ``sha256`` (of these files) and
        ``content_sha256`` (of the names in use).
    """
    rows = zip(vocabulary.synonyms, vocabulary.is_thing, vocabulary.source_names, strict=True)
    content = "\n".join(repr(row) for row in rows)
    described: dict[str, Any] = dict(
        source=source,
        classes=len(vocabulary),
        label_file=None if label_file is None else str(label_file),
        content_sha256=hashlib.sha256(content.encode()).hexdigest(),
    )
    files = [file for file in (source, label_file) if file is not None and os.path.isfile(file)]
    described["sha256"] = {str(file): sha256_of(file) for file in files}
    return described


def sha256_of(file: str | os.PathLike) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def software_versions() -> dict[str, str]:
    """Return the versions of this package, Python and the libraries that results depend on."""
    found = {"odise_mm": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # OpenMMLab or its fork, mmcv or mmcv-lite
            continue
    return found


def _text(name: str) -> Text:
    """Wrap a text without interpreting markup or terminal escapes."""
    return Text(printable(name))


def _new_table(title: str) -> Table:
    table = Table(
        title=_text(title), title_justify="left", title_style="bold", caption_justify="left"
    )
    table.add_column("", no_wrap=True)
    return table


def _class_table(result: SetResult) -> Table:
    table = _new_table(f"{result.name}: classes, in percent")
    table.add_column("kind")
    columns = [
        (prefix, key)
        for prefix, classes in result.per_class.items()
        for key in dict.fromkeys(key for values in classes.values() for key in values)
    ]
    for _, key in columns:
        table.add_column(_text(key), justify="right")
    absent = 0
    for name in dict.fromkeys([*result.is_thing, *_classes(result)]):
        values = [result.per_class[prefix].get(name, {}).get(key) for prefix, key in columns]
        if not any(map(_is_known, values)):
            absent += 1
            continue
        table.add_row(_text(name), _kind(result, name), *map(_two_digits, values))
    if absent:
        table.caption = f"{absent} more classes occur neither in the dataset nor in the results"
    return table


def _classes(result: SetResult) -> list[str]:
    return [name for classes in result.per_class.values() for name in classes]


def _kind(result: SetResult, name: str) -> str:
    if name not in result.is_thing:
        return ""
    return "thing" if result.is_thing[name] else "stuff"


def _value(result: SetResult, heading: str, subset: str | None = None) -> float | None:
    keys = COLUMNS[heading]
    if subset is not None:
        keys = tuple(key.replace("/", f"/{subset}/") for key in keys)
    found = [result.metrics[key] for key in keys if key in result.metrics]
    return found[0] if found else None


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _two_digits(value: float | None) -> str:
    return f"{value:.2f}" if _is_known(value) else "-"


def _exact(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else ""


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite, which JSON does not have, by None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float):  # numpy's float64 too
        return float(value) if math.isfinite(value) else None
    return value
