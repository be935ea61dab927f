"""Reports: tables, JSON and CSV files, descriptions of vocabularies and versions."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from pathlib import Path
from typing import TextIO

import pytest
from rich.console import Console

from odise_mm.benchmarks.report import (
    Report,
    SetResult,
    describe_vocabulary,
    software_versions,
)
from odise_mm.vocabulary import Vocabulary

VOCABULARY = Vocabulary.parse("cat; dog", "sky")


def result(name: str = "ade20k", **changes) -> SetResult:
    values = dict(
        name=name,
        metrics={
            "panoptic/PQ": 22.623456789,
            "panoptic/PQ_th": float("nan"),
            "semantic/mIoU": 29.996,
        },
        per_class={
            "panoptic": {"cat": {"PQ": 10.123456, "SQ": 70.0}, "sky": {"PQ": float("nan")}},
            "semantic": {"cat": {"IoU": 33.336}, "dog": {"IoU": 1.0}, "sky": {"IoU": 2.0}},
        },
        is_thing=dict(zip(VOCABULARY.source_names, VOCABULARY.is_thing, strict=True)),
        images=2000,
        limit=None,
        vocabulary=describe_vocabulary(VOCABULARY, "typed"),
        seconds=12.5,
    )
    return SetResult(**(values | changes))


def shown(renderable) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    console.print(renderable)
    return console.export_text()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")]


def test_table_has_two_digits_and_only_measured_columns() -> None:
    report = Report({}, ["ade20k", "voc21"])
    report.results = [result(), result("voc21", metrics={"semantic/mIoU": 84.6}, images=1449)]
    lines = [cells(line) for line in shown(report.table()).splitlines()]
    assert ["", "images", "PQ", "PQ th", "mIoU"] in lines
    assert ["ade20k", "2000", "22.62", "-", "30.00"] in lines
    assert ["voc21", "1449", "-", "-", "84.60"] in lines
    assert "benchmark" not in shown(report.table())


def test_lvis_and_instance_ap_share_a_column() -> None:
    report = Report({}, ["coco", "lvis", "uvo"])
    report.results = [
        result("coco", metrics={"instance/AP": 46.0}),
        result("lvis", metrics={"lvis/AP": 15.4, "lvis/APr": 19.4}),
        result("uvo", metrics={"proposals/AR@100": 57.7}),
    ]
    lines = [cells(line) for line in shown(report.table()).splitlines()]
    assert ["", "images", "mAP", "mAP rare", "AR@100"] in lines
    assert ["lvis", "2000", "15.40", "19.40", "-"] in lines


def test_limit_random_weights_and_missing_sets_are_noted() -> None:
    report = Report({}, ["ade20k", "pc59"], random_weights=True)
    report.results = [result(limit=5, images=5)]
    text = shown(report.table())
    assert "first 5" in text and "not benchmark numbers" in text
    assert "meaningless" in text and "not done: pc59" in text


def test_classes_with_their_kinds() -> None:
    report = Report({}, ["ade20k"])
    report.results = [result()]
    (table,) = report.class_tables()
    lines = [cells(line) for line in shown(table).splitlines()]
    assert ["", "kind", "PQ", "SQ", "IoU"] in lines
    assert ["cat", "thing", "10.12", "70.00", "33.34"] in lines
    assert ["dog", "thing", "-", "-", "1.00"] in lines
    assert ["sky", "stuff", "-", "-", "2.00"] in lines


def test_classes_without_a_number_are_counted_only() -> None:
    report = Report({}, ["ade20k"])
    report.results = [result(per_class={"panoptic": {"cat": {"PQ": 1.0}, "sky": {"PQ": math.nan}}})]
    text = shown(report.class_tables()[0])
    assert "cat" in text and "sky" not in text and "dog" not in text
    assert "2 more classes occur neither in the dataset nor in the results" in " ".join(
        text.split()
    )


SUBSETS = dict(
    metrics={
        "panoptic/PQ": 22.6,
        "panoptic/PQ_th": 20.0,
        "panoptic/seen/PQ": 30.256,
        "panoptic/new/PQ": 12.0,
        "lvis/seen/AP": 9.5,
        "lvis/new/AP": math.nan,
        "semantic/seen/mIoU": math.nan,
        "semantic/new/mIoU": math.nan,
    },
    subsets=dict(seen=["cat", "sky"], new=["dog"]),
)


def test_subsets_of_classes_have_a_row_each() -> None:
    report = Report({}, ["ade20k", "coco", "lvis"])
    report.results = [
        result(**SUBSETS),
        result("coco"),
        result("lvis", metrics={"panoptic/new/PQ": 7.0, "panoptic/old/PQ": 1.0},
               subsets=dict(new=["dog", "cat", "sky"])),
    ]  # fmt: skip
    text = shown(report.subset_table())
    lines = [cells(line) for line in text.splitlines()]
    assert "Subsets of classes, in percent" in text
    assert ["", "subset", "classes", "PQ", "mAP"] in lines  # nothing fills mIoU
    rows = [line for line in lines if line[0] in ("ade20k", "coco", "lvis")]
    assert rows == [
        ["ade20k", "seen", "2", "30.26", "9.50"],
        ["ade20k", "new", "1", "12.00", "-"],
        ["lvis", "new", "3", "7.00", "-"],
    ]
    main = [cells(line) for line in shown(report.table()).splitlines()]
    assert ["ade20k", "2000", "22.60", "20.00", "-"] in main


def test_without_subsets_there_is_no_table_of_them() -> None:
    assert Report({}, ["ade20k"], results=[result()]).subset_table() is None


def test_files_have_the_subsets_numbers_and_classes(tmp_path: Path) -> None:
    report = Report({}, ["ade20k"], results=[result(**SUBSETS)])
    report.write(tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())["sets"]["ade20k"]
    assert found["subsets"] == dict(seen=["cat", "sky"], new=["dog"])
    assert found["metrics"]["panoptic/seen/PQ"] == 30.256
    assert found["metrics"]["lvis/new/AP"] is None
    report.write(tmp_path / "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    whole = {row["metric"]: row["percent"] for row in rows if not row["class"]}
    assert whole["panoptic/new/PQ"] == "12.0" and whole["semantic/new/mIoU"] == ""


def test_names_are_text_not_markup() -> None:
    report = Report({}, ["x"])
    strange = {"[bold]": {"IoU": 1.0}}
    report.results = [result("x", per_class={"semantic": strange}, is_thing={"[bold]": True})]
    assert "[bold]" in shown(report.class_tables()[0])


def test_json_has_every_digit_and_no_nan(tmp_path: Path) -> None:
    report = Report({"precision": "bf16"}, ["ade20k", "voc21"])
    report.results = [result()]
    report.write(tmp_path / "sub" / "out.json")

    def refuse(text: str) -> None:
        raise AssertionError(text)

    text = (tmp_path / "sub" / "out.json").read_text()
    read = json.loads(text, parse_constant=refuse)
    assert read["precision"] == "bf16" and not read["random_weights"]
    assert read["done"] == ["ade20k"] and read["not_done"] == ["voc21"]
    found = read["sets"]["ade20k"]
    assert found["metrics"]["panoptic/PQ"] == 22.623456789
    assert found["metrics"]["panoptic/PQ_th"] is None
    assert found["per_class"]["panoptic"]["cat"]["PQ"] == 10.123456
    assert found["is_thing"] == {"cat": True, "dog": True, "sky": False}
    assert found["images"] == 2000 and found["limit"] is None


def test_csv_has_every_digit(tmp_path: Path) -> None:
    report = Report({}, ["ade20k"])
    report.results = [result()]
    report.write(tmp_path / "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    whole = {row["metric"]: row["percent"] for row in rows if not row["class"]}
    assert whole == {
        "panoptic/PQ": "22.623456789",
        "panoptic/PQ_th": "",
        "semantic/mIoU": "29.996",
    }
    of_classes = {(r["class"], r["kind"], r["metric"]): r["percent"] for r in rows if r["class"]}
    assert of_classes["cat", "thing", "panoptic/PQ"] == "10.123456"
    assert of_classes["sky", "stuff", "panoptic/PQ"] == ""
    assert len(rows) == 3 + 3 + 3


def test_failed_write_keeps_the_previous_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.json"
    Report({}, ["ade20k"]).write(path)
    before = path.read_text()

    def full(content: object, stream: TextIO, **kwargs: object) -> None:
        stream.write("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    report = Report({}, ["ade20k"], results=[result()])
    with pytest.raises(OSError, match="No space"):
        report.write(path)
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def test_other_suffixes_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out\.txt: .*\.json or \.csv"):
        Report({}, []).write(tmp_path / "out.txt")


def test_describe_vocabulary(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("0:cat,kitty\n1:dog\n")
    found = describe_vocabulary(Vocabulary.load(labels), "ade20k", labels)
    assert found["source"] == "ade20k" and found["classes"] == 2
    assert found["sha256"] == {str(labels): hashlib.sha256(labels.read_bytes()).hexdigest()}
    # content_sha256 depends only on the names, and changes with every synonym.
    typed = describe_vocabulary(Vocabulary.parse("cat, kitty; dog"), "typed")
    assert typed["content_sha256"] == found["content_sha256"] and not typed["sha256"]
    other = describe_vocabulary(Vocabulary.parse("cat, kitty; dog, puppy"), "typed")
    assert other["content_sha256"] != found["content_sha256"]


def test_software_versions() -> None:
    import torch

    found = software_versions()
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert {"odise_mm", "python", "numpy"} <= set(found)
    stacks = {"mmengine", "mmdet"}, {"onedl-mmengine", "onedl-mmdetection"}
    assert any(stack <= set(found) for stack in stacks)
