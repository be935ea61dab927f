"""tools/test.py from the command line: test sets, files, errors, one and two processes."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mmengine.runner.runner
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from PIL import Image
from pycocotools.coco import COCO

from odise_mm.annotations.panoptic_io import read_coco_panoptic
from odise_mm.benchmarks import running
from odise_mm.benchmarks.sets import FC_CLIP_LABEL_FILES, make_benchmark_sets
from odise_mm.cli import test as tool
from odise_mm.config.changing import complete_config
from odise_mm.config.finding import load_config
from odise_mm.datasets.class_names import resolve_vocabulary
from odise_mm.engine.image_scores import ImageScoresHook
from odise_mm.errors import DatasetError
from odise_mm.utils.files import FolderLock
from odise_mm.vocabulary import Vocabulary
from tests.support import parts
from tests.support.fake_segmentor import FakeSegmentor
from tests.support.small_test_set import (
    HEIGHT,
    SET_CONFIG,
    WIDTH,
    HalvesSegmentor,
    write_project,
    write_set,
)

ROOT = Path(__file__).resolve().parents[2]
# Borders between cat and sky. The model's is at 20, so the cat's IoU is 1, .8, 20/28, .4, .5.
FIVE = (20, 16, 28, 8, 10)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_project(tmp_path, {"five": FIVE, "one": (20,)})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, out: str = "out.json") -> dict:
    assert tool.main(["model.py", "none", *arguments, "--out", out]) == 0
    return json.loads(Path(out).read_text())


def fails(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """Run the tool with a mistake and return its error message."""
    with pytest.raises(SystemExit) as end:
        tool.main(list(arguments))
    assert end.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_numbers_equal_those_computed_by_hand(project: Path, capsys: pytest.CaptureFixture) -> None:
    found = run("--datasets", "five", "one", "--per-class")
    assert found["done"] == ["five", "one"] and found["not_done"] == []
    one, five = found["sets"]["one"], found["sets"]["five"]
    for key in ("panoptic/PQ", "panoptic/SQ", "panoptic/RQ", "semantic/mIoU", "instance/AP"):
        assert one["metrics"][key] == pytest.approx(100)
    cat = [min(20, b) / max(20, b) for b in FIVE]
    sky = [min(20, 40 - b) / max(20, 40 - b) for b in FIVE]
    for name, ious in (("cat", cat), ("sky", sky)):
        matched = [iou for iou in ious if iou > 0.5]
        pq = 100 * sum(matched) / len(ious)  # each miss is one false positive and one negative
        assert five["per_class"]["panoptic"][name]["PQ"] == pytest.approx(pq)
    mean = np.mean([five["per_class"]["panoptic"][name]["PQ"] for name in ("cat", "sky")])
    assert five["metrics"]["panoptic/PQ"] == pytest.approx(mean)
    inside = sum(min(20, b) for b in FIVE)
    cat_iou = 100 * inside / (sum(FIVE) + 20 * len(FIVE) - inside)
    assert five["per_class"]["semantic"]["cat"]["IoU"] == pytest.approx(cat_iou)
    assert five["is_thing"] == {"cat": True, "sky": False}
    assert five["images"] == 5 and five["limit"] is None and five["seconds"] > 0
    assert five["vocabulary"]["source"] == "data/five/names.txt" and five["vocabulary"]["sha256"]
    assert found["precision"] == "fp32" and found["processes"] == 1 and found["device"] == "cpu"
    assert found["random_weights"] is True and found["checkpoint"] is None
    assert found["config"]["file"].endswith("model.py") and "torch" in found["versions"]
    shown = capsys.readouterr().out
    pq = f"{five['metrics']['panoptic/PQ']:.2f}"
    assert pq in shown and "meaningless" in shown and "five: classes" in shown
    assert "wrote out.json" in shown


def test_scores_of_images(project: Path) -> None:
    """The model's border is at 20. The image with the border at 8 is the worst."""
    run("--datasets", "five", "--image-scores", "scores", "--worst", "2")
    folder = Path("scores/five")
    images = json.loads((folder / "images.json").read_text())
    assert [Path(image["image"]).stem for image in images] == ["003", "004", "002", "001", "000"]
    pq = [50 * 20 / 32, 50 * 20 / 30, 50 * (20 / 28 + 12 / 20), 50 * (16 / 20 + 20 / 24), 100]
    assert [image["score"] for image in images] == pytest.approx(pq)
    counts = [tuple(image[key] for key in ("matched", "missed", "wrong")) for image in images]
    assert counts == [(1, 1, 1), (1, 1, 1), (2, 0, 0), (2, 0, 0), (2, 0, 0)]
    with open(folder / "images.csv", newline="") as stream:
        assert [float(row["PQ"]) for row in csv.DictReader(stream)] == pytest.approx(pq)
    with open(folder / "classes.csv", newline="") as stream:
        rows = {row["class"]: row for row in csv.DictReader(stream)}
    assert rows["cat"]["kind"] == "thing" and rows["sky"]["kind"] == "stuff"
    assert {row["images"] for row in rows.values()} == {"5"}
    assert float(rows["cat"]["semantic/IoU"]) == pytest.approx(100 * 74 / (82 + 100 - 74))
    # Pixels of the cat that the model calls sky, and the reverse.
    area = [line.split(",") for line in (folder / "confusion_pixels.csv").read_text().split()]
    cat, sky = area[-3][-3:], area[-2][-3:]
    right = [sum(min(20, b) for b in FIVE), sum(min(20, 40 - b) for b in FIVE)]
    wrong = [sum(max(0, b - 20) for b in FIVE), sum(max(0, 20 - b) for b in FIVE)]
    assert list(map(int, cat)) == [HEIGHT * right[0], HEIGHT * wrong[0], 0]
    assert list(map(int, sky)) == [HEIGHT * wrong[1], HEIGHT * right[1], 0]
    drawn = sorted(path.name for path in (folder / "worst").iterdir())
    assert drawn == ["001_003.jpg", "002_004.jpg"]
    # Most of each segment is found as its own class.
    assert "cat,sky,0,0.0000" in (folder / "confusions.csv").read_text()
    assert (folder / "suggestions.txt").read_text() == ""


def test_failing_scores_do_not_end_the_test(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    add = ImageScoresHook._add_panoptic

    def failing(self: ImageScoresHook, index: int, sample: dict) -> None:
        if index == 2:
            raise DatasetError("it is damaged")
        add(self, index, sample)

    monkeypatch.setattr(ImageScoresHook, "_add_panoptic", failing)
    arguments = ["--datasets", "five", "--image-scores", "scores", "--out", "out.json"]
    line = fails(capsys, "model.py", "none", *arguments)
    assert "002.png has no scores (it is damaged)" in line
    found = json.loads(Path("out.json").read_text())["sets"]["five"]
    assert found["images"] == 5 and found["metrics"]["panoptic/PQ"] > 0
    assert list(found["failed"]) == ["ImageScoresHook"]
    assert not list(Path("scores").rglob("*.csv"))


def test_limit_is_noted(project: Path, capsys: pytest.CaptureFixture) -> None:
    found = run("--datasets", "five", "--limit", "2")["sets"]["five"]
    assert found["images"] == 2 and found["limit"] == 2
    assert found["metrics"]["panoptic/PQ"] == pytest.approx((100 + (80 + 100 * 20 / 24) / 2) / 2)
    shown = capsys.readouterr().out
    assert "first 2" in shown and "not benchmark numbers" in shown


WRAPPED = """
part = test_dataloader["dataset"]
other = dict(part, data_root="data/one/", vocabulary="data/one/names.txt")
test_dataloader["dataset"] = {}
"""


def write_wrapped(project: Path, dataset: str) -> None:
    text = Path("model.py").read_text() + SET_CONFIG.format(name="five") + WRAPPED.format(dataset)
    Path("model_wrapped.py").write_text(text)


def run_wrapped(project: Path, dataset: str, *arguments: str) -> dict:
    write_wrapped(project, dataset)
    assert tool.main(["model_wrapped.py", "none", "--out", "wrapped.json", *arguments]) == 0
    (found,) = json.loads(Path("wrapped.json").read_text())["sets"].values()
    return found


JOINED = 'dict(type="ConcatDataset", datasets=[part, other])'


@pytest.mark.parametrize("scope", ["", "mmdet."])
def test_joined_sets_are_tested_as_one(project: Path, scope: str) -> None:
    """Both datasets have an image with id 10; ties of scores are ordered by id."""
    write_set(project / "data/six", (FIVE[0], 20, *FIVE[1:]))
    (project / "configs/_base_/datasets/six.py").write_text(SET_CONFIG.format(name="six"))
    expected = run("--datasets", "six")["sets"]["six"]
    joined = JOINED.replace("Concat", f"{scope}Concat")
    found = run_wrapped(project, joined, "--dump", "dump", "--show-dir", "show")
    assert found["metrics"] == pytest.approx(expected["metrics"], nan_ok=True)
    assert found["per_class"].keys() == expected["per_class"].keys() and found["images"] == 6
    assert found["vocabulary"]["source"] == "data/five/names.txt"
    assert len(list((project / "show").rglob("*.jpg"))) == 6
    (dump,) = (project / "dump").glob("[!.]*")
    content = json.loads((dump / "panoptic.json").read_text())
    assert [image["id"] for image in content["images"]] == list(range(6))
    assert {category["id"] for category in content["categories"]} == {1, 5}
    assert len({one["file_name"] for one in content["annotations"]}) == 6
    assert {one["image_id"] for one in json.loads((dump / "instances.json").read_text())} == set(
        range(6)
    )


def test_wrapped_sets_nested_and_limited(project: Path, capsys: pytest.CaptureFixture) -> None:
    five = run("--datasets", "five")["sets"]["five"]
    twice = run_wrapped(project, 'dict(type="RepeatDataset", times=2, dataset=part)')
    assert twice["images"] == 10
    for key in ("panoptic/PQ", "semantic/mIoU"):
        assert twice["metrics"][key] == pytest.approx(five["metrics"][key])
    assert twice["metrics"]["instance/AP"] > 0
    nested = f'dict(type="RepeatDataset", times=1, dataset={JOINED})'
    found = run_wrapped(project, nested, "--limit", "2", "--cfg-options", "work_dir=w")
    assert found["metrics"] == run("--datasets", "five", "--limit", "2")["sets"]["five"]["metrics"]
    assert found["images"] == found["limit"] == 2
    write_wrapped(project, 'dict(type="RepeatDataset", times=2, dataset=part)')
    line = fails(capsys, "model_wrapped.py", "none", "--dump", "dump2")
    assert "the dataset repeats images" in line


def test_wrapped_sets_are_checked_before_testing(
    project: Path, capsys: pytest.CaptureFixture
) -> None:
    write_wrapped(project, JOINED)
    Path("data/one/names.txt").write_text("thing: cat\nstuff: sky\n")
    line = fails(capsys, "model_wrapped.py", "none")
    assert "data/one/panoptic.json: cannot be concatenated with data/five/panoptic.json" in line
    assert "class 1 (sky) is 'sky,blue sky' there, 'sky' here" in line
    Path("data/one/panoptic.json").unlink()
    assert "no file data/one/panoptic.json" in fails(capsys, "model_wrapped.py", "none")


@pytest.mark.parametrize("more", ["", "test_dataloader['dataset']['subsets'] = dict(a=['sky'])\n"])
def test_config_s_own_set_has_the_config_s_name(project: Path, more: str) -> None:
    text = Path("model.py").read_text() + SET_CONFIG.format(name="one") + more
    Path("model_one.py").write_text(text)
    assert tool.main(["model_one.py", "none", "--out", "out.json"]) == 0
    found = json.loads(Path("out.json").read_text())
    # Configs in the working directory are not loaded, so their names are not found.
    assert found["done"] == ["model_one"]
    assert found["sets"]["model_one"]["subsets"] == (dict(a=["sky"]) if more else {})


def test_subsets_of_classes(project: Path, capsys: pytest.CaptureFixture) -> None:
    """Subsets come from a file or a list; a subset of all classes gives the overall numbers."""
    (project / "data/five/novel.txt").write_text("thing: cat\n")
    key = "test_dataloader.dataset.subsets"
    options = [f"{key}.novel=novel.txt", f"{key}.both=['sky', 'cat']", f"{key}.stuff=['sky']"]
    found = run("--datasets", "five", "--cfg-options", *options)["sets"]["five"]
    assert found["subsets"] == dict(novel=["cat"], both=["cat", "sky"], stuff=["sky"])
    metrics, classes = found["metrics"], found["per_class"]
    for subset, name in (("novel", "cat"), ("stuff", "sky")):
        for number in ("PQ", "SQ", "RQ"):
            expected = classes["panoptic"][name][number]
            assert metrics[f"panoptic/{subset}/{number}"] == pytest.approx(expected)
        assert metrics[f"semantic/{subset}/mIoU"] == pytest.approx(classes["semantic"][name]["IoU"])
    cat = [min(20, b) / max(20, b) for b in FIVE]
    pq = 100 * sum(iou for iou in cat if iou > 0.5) / len(cat)
    assert metrics["panoptic/novel/PQ"] == pytest.approx(pq)
    assert metrics["instance/novel/AP"] == pytest.approx(metrics["instance/AP"])
    assert metrics["instance/stuff/AP"] is None
    for number in ("panoptic/PQ", "semantic/mIoU", "instance/AP"):
        assert metrics[number.replace("/", "/both/")] == pytest.approx(metrics[number])
    shown = capsys.readouterr().out
    main, _, subsets = shown.partition("Subsets of classes, in percent")
    assert f"{metrics['panoptic/PQ']:.2f}" in main
    (row,) = [line for line in subsets.splitlines() if "novel" in line]
    for number in ("panoptic/novel/PQ", "instance/novel/AP", "semantic/novel/mIoU"):
        assert f"{metrics[number]:.2f}" in row
    plain = run("--datasets", "five")["sets"]["five"]
    assert plain["metrics"] == {k: v for k, v in metrics.items() if k.count("/") == 1}
    assert "Subsets" not in capsys.readouterr().out


def instances(project: Path, **changes: dict) -> str:
    """Write the cats of the set "five" as instances, with changed entries of ``images``."""
    content = json.loads((project / "data/five/panoptic.json").read_text())
    annotations = [
        dict(
            id=place + 1,
            image_id=image["id"],
            category_id=1,
            segmentation=[[0, 0, border, 0, border, HEIGHT, 0, HEIGHT]],
            area=border * HEIGHT,
            bbox=[0, 0, border, HEIGHT],
        )
        for place, (image, border) in enumerate(zip(content["images"], FIVE, strict=True))
    ]
    for place, change in changes.items():
        content["images"][int(place[1:])].update(change)
    cats = [dict(id=1, name="cat")]
    path = project / "data/five/instances.json"
    path.write_text(json.dumps(dict(images=content["images"], annotations=annotations,
                                    categories=cats)))  # fmt: skip
    return f"test_evaluator.2.ann_file={path}"


def test_a_metric_that_fails_leaves_the_others_numbers(
    project: Path, capsys: pytest.CaptureFixture
) -> None:
    whole = run("--datasets", "five", "one", "--cfg-options", instances(project))
    # The wrong size of the fourth image is detected only when the image is tested.
    option = instances(project, i3=dict(height=HEIGHT + 1))
    text = (project / "configs/_base_/datasets/five.py").read_text()
    path = option.partition("=")[2]
    config = text.replace('type="InstanceAP"', f'type="InstanceAP", ann_file="{path}"')
    (project / "configs/_base_/datasets/five.py").write_text(config)
    capsys.readouterr()
    message = fails(capsys, "model.py", "none", "--datasets", "five", "one", "--out", "part.json")
    assert (
        "five, InstanceAP: " in message and "image id 13: the ground truth has 25 x 40" in message
    )
    found = json.loads(Path("part.json").read_text())
    assert found["done"] == ["five", "one"] and list(found["sets"]["five"]["failed"]) == [
        "InstanceAP"
    ]
    kept = {k: v for k, v in whole["sets"]["five"]["metrics"].items() if "instance" not in k}
    assert found["sets"]["five"]["metrics"] == kept and len(kept) > 5
    assert found["sets"]["one"]["metrics"] == whole["sets"]["one"]["metrics"]


def test_annotations_that_do_not_fit_are_refused_before_the_first_image(
    project: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = instances(project).partition("=")[2]
    content = json.loads(Path(path).read_text())
    content["annotations"][4]["segmentation"] = [[0, 0, "9", 0, 9, 9]]
    Path(path).write_text(json.dumps(content))
    monkeypatch.setattr(HalvesSegmentor, "forward", None)
    options = ["--cfg-options", f"test_evaluator.2.ann_file={path}"]
    message = fails(capsys, "model.py", "none", "--datasets", "five", *options)
    assert "annotation 5 of image 14: a ring of its mask has" in message and '"9"' in message


def test_data_elsewhere(project: Path) -> None:
    (project / "data").rename(project / "disk")
    found = run("--datasets", "one", "--data-root", "disk")
    assert found["sets"]["one"]["vocabulary"]["source"] == "disk/one/names.txt"


def test_result_files(project: Path) -> None:
    run("--datasets", "five", "--dump", "dump", "--show-dir", "show", "--show-interval", "2")
    names = [f"{index:03d}" for index in range(5)]
    folder = project / "dump" / "five"
    assert not list(folder.glob(".*"))
    results = read_coco_panoptic(folder / "panoptic.json")
    assert [r.image_name for r in results] == [f"{name}.png" for name in names]
    assert {segment.name for segment in results[0].segments} == {"cat", "sky"}
    content = json.loads((folder / "panoptic.json").read_text())
    assert [image["id"] for image in content["images"]] == [10, 11, 12, 13, 14]
    assert [category["id"] for category in content["categories"]] == [1, 5]
    assert "meaningless" in content["info"]["notice"]
    half = np.zeros((HEIGHT, WIDTH), int)
    half[:, WIDTH // 2 :] = 1
    for name, result in zip(names, results, strict=True):
        assert np.array_equal(result.panoptic > 1, half)
        semantic = np.asarray(Image.open(folder / "semantic" / f"{name}.png"))
        assert np.array_equal(semantic, half)
    truth = dict(
        images=content["images"], categories=content["categories"], annotations=[], info={}
    )
    (project / "truth.json").write_text(json.dumps(truth))
    instances = COCO("truth.json").loadRes(str(folder / "instances.json"))
    assert len(instances.anns) == 5
    assert np.array_equal(instances.annToMask(instances.anns[1]), 1 - half)
    assert instances.anns[1]["category_id"] == 1 and instances.anns[1]["score"] == 0.5
    assert sorted(p.name for p in (project / "show" / "five").iterdir()) == [
        "000.jpg", "002.jpg", "004.jpg",
    ]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    paths = [path for path in paths if path.name != ".odise_mm.lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_interrupted_dump_keeps_the_previous_one(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--datasets", "five", "--dump", "dump"]
    run(*arguments)
    before = contents(project / "dump" / "five")
    for name in ("000.png", "001.png"):  # changes the results
        Image.new("RGB", (WIDTH, HEIGHT)).save(project / "data/five/images" / name)
    with monkeypatch.context() as patch:
        patch.setattr(FakeSegmentor, "_predict", fail_at(3, FakeSegmentor._predict))
        with pytest.raises(RuntimeError, match="the end"):
            tool.main(["model.py", "none", *arguments])
    assert contents(project / "dump" / "five") == before
    (project / "dump/five/panoptic/stale.png").write_bytes(b"of a run before")
    run(*arguments, "--limit", "4")
    after = contents(project / "dump" / "five")
    assert len(after) == 2 * 4 + 2 and "panoptic/004.png" not in after
    assert [p.name for p in (project / "dump").iterdir() if "unfinished" in p.name] == []
    assert len(read_coco_panoptic(project / "dump/five/panoptic.json")) == 4


def fail_at(count: int, method):
    """Wrap a method so that its call number ``count`` fails."""
    calls = iter(range(1, count))

    def counted(*args):
        if next(calls, None) is None:
            raise RuntimeError("the end")
        return method(*args)

    return counted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--dump", "data"],
            r"data/five: contains panoptic and panoptic.json, which no test run wrote",
        ),
        (["--dump", "data/five/names.txt"], r"names.txt is not a folder"),
        (["--show-dir", "model.py"], "model.py is not a folder"),
        (["--out", "data/five/panoptic.json"], "panoptic.json: would replace an input"),
        (["--out", "link.json"], "link.json: would replace an input"),
        (["--out", "folder.json"], "folder.json: is a folder"),
    ],
)
def test_outputs_never_land_on_inputs(
    arguments: list[str],
    message: str,
    project: Path,
    capsys: pytest.CaptureFixture,
    nothing_is_built: None,
) -> None:
    (project / "link.json").symlink_to(project / "data/five/panoptic.json")
    (project / "folder.json").mkdir()
    before = contents(project / "data")
    error = fails(capsys, "model.py", "none", "--datasets", "five", *arguments)
    assert re.search(message, error), error
    assert contents(project / "data") == before


def test_drawings_do_not_overwrite_other_images(
    project: Path, capsys: pytest.CaptureFixture
) -> None:
    (project / "show/one").mkdir(parents=True)
    Image.new("RGB", (5, 5)).save(project / "show/one/000.jpg")
    before = contents(project / "show")
    arguments = ["model.py", "none", "--datasets", "one", "--show-dir", "show"]
    assert "000.jpg: already exists" in fails(capsys, *arguments)
    assert contents(project / "show/one") == {"000.jpg": before["one/000.jpg"]}
    (project / "show/one/000.jpg").unlink()
    for _ in range(2):  # drawings may be replaced
        assert tool.main(arguments) == 0


def test_a_dump_has_one_writer(project: Path, capsys: pytest.CaptureFixture) -> None:
    with FolderLock(project / "dump", "another test"):
        error = fails(capsys, "model.py", "none", "--datasets", "one", "--dump", "dump")
    assert "dump: in use by process" in error and "(another test)" in error


def test_log_has_only_the_numbers_of_its_set(project: Path) -> None:
    with (project / "configs/_base_/datasets/one.py").open("a") as file:
        file.write('test_evaluator = [dict(type="SemanticIoU")]\n')
    found = run("--datasets", "five", "one", "--work-dir", "work")
    assert {key.split("/")[0] for key in found["sets"]["one"]["metrics"]} == {"semantic"}
    (log,) = (project / "work").glob("*/*.log")
    five, one = (line for line in log.read_text().splitlines() if "semantic/mIoU" in line)
    assert "panoptic/PQ: 62.39" in five
    assert "panoptic/PQ" not in one and "semantic/mIoU: 100" in one


def test_two_runs_in_one_second_have_separate_logs(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(time=lambda: 1e9, localtime=time.localtime, strftime=time.strftime)
    monkeypatch.setattr(mmengine.runner.runner, "time", clock)
    for name in ("five", "one"):
        run("--datasets", name, "--work-dir", name)
    for name in ("five", "one"):
        (log,) = (project / name).glob("*/*.log")
        assert "semantic/mIoU" in log.read_text()


def test_an_interruption_loses_no_finished_set(
    project: Path, capsys: pytest.CaptureFixture
) -> None:
    (project / "data/one/panoptic/000.png").write_bytes(b"cut off")
    error = fails(
        capsys, "model.py", "none", "--datasets", "five", "one", "--out", "out.json"
    )  # fmt: skip
    assert "000.png" in error
    found = json.loads(Path("out.json").read_text())
    assert found["done"] == ["five"] and found["not_done"] == ["one"]
    assert found["sets"]["five"]["metrics"]["panoptic/PQ"] > 0


def test_ctrl_c_reports_the_finished_sets(
    project: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = running.run_set

    def interrupted(runner, test_set, limit):
        if test_set.name == "one":
            raise KeyboardInterrupt
        return walk(runner, test_set, limit)

    monkeypatch.setattr(running, "run_set", interrupted)
    arguments = ["model.py", "none", "--datasets", "five", "one", "--out", "out.csv"]
    assert tool.main(arguments) == tool.INTERRUPTED
    captured = capsys.readouterr()
    assert "not done: one" in captured.out and "interrupted" in captured.err
    assert "five,,,panoptic/PQ," in Path("out.csv").read_text()


def label_files(project: Path) -> None:
    (project / "labels").mkdir()
    (project / "labels" / "one.txt").write_text("0:invalid_class_id\n1:cat,kitty\n2:sky\n")
    (project / "labels" / "coco_panoptic_with_prompt_eng.txt").write_text("1:cat\n2:dog\n")
    with (project / "model.py").open("a") as file:
        file.write('model.update(ensemble=dict(train_vocabulary="coco"))\n')


def test_label_files_replace_the_names_of_test_and_training(project: Path) -> None:
    label_files(project)
    found = run("--datasets", "one", "--label-files", "labels")
    described = found["sets"]["one"]["vocabulary"]
    assert described["source"] == "data/one/names.txt"
    assert described["label_file"] == "labels/one.txt"
    assert set(described["sha256"]) == {"data/one/names.txt", "labels/one.txt"}
    assert found["train_vocabulary"]["source"] == "labels/coco_panoptic_with_prompt_eng.txt"
    assert found["train_vocabulary"]["classes"] == 2
    plain = run("--datasets", "one")
    content = plain["sets"]["one"]["vocabulary"]["content_sha256"]
    assert content != described["content_sha256"]
    assert plain["train_vocabulary"]["source"] == "coco"
    assert plain["train_vocabulary"]["classes"] == 133


def test_sets_without_classes_need_no_label_file(project: Path) -> None:
    label_files(project)
    (uvo,) = make_benchmark_sets(load_config("odise_tiny"), ["uvo"], label_files="labels")
    assert "label_file" not in uvo.dataset
    assert uvo.cfg.model.ensemble.train_vocabulary == "labels/coco_panoptic_with_prompt_eng.txt"


def test_sizes_of_images_are_those_of_the_method_and_the_set() -> None:
    def scales(config: str, names: list[str] | None, **changes: Any) -> list[tuple[int, int]]:
        cfg = load_config(config)
        cfg.merge_from_dict(changes)
        sets = make_benchmark_sets(cfg, names)
        pipelines = [complete_config(each.cfg).test_dataloader.dataset.pipeline for each in sets]
        return [tuple(pipeline[1].scale) for pipeline in pipelines]

    large, small = (2560, 1024), (1333, 800)
    names = ["ade20k", "cityscapes", "coco", "mapillary", "pc59"]
    for config in ("fcclip_coco", "ovrcoat_convnext_l", "fcclip_cityscapes"):
        assert scales(config, names) == [small, large, small, large, small], config
    assert scales("odise_coco_label", names[:2]) == [large] * 2
    assert scales("fcclip_mapillary", None) == [large] and scales("fcclip_coco", None) == [small]
    # a size that the user chose is kept
    own = {"test_pipeline.1.scale": (640, 480)}
    assert scales("fcclip_coco", ["cityscapes", "pc59"], **own) == [(640, 480)] * 2


def test_one_label_file_for_one_set(project: Path) -> None:
    label_files(project)
    file = project / "labels/one.txt"
    (one,) = make_benchmark_sets(load_config("model.py"), ["one"], label_files=file)
    one.check()
    assert one.dataset["label_file"] == str(file)
    assert one.cfg.model.ensemble.train_vocabulary == "coco"
    with pytest.raises(DatasetError, match="one label file for 2 test sets; pass a folder"):
        make_benchmark_sets(load_config("model.py"), ["one", "five"], label_files=file)


@pytest.mark.parametrize("name", sorted(FC_CLIP_LABEL_FILES))
def test_label_files_of_fc_clip_are_found_by_their_names(name: str, tmp_path: Path) -> None:
    (tmp_path / "coco_panoptic_with_prompt_eng.txt").write_text("1:cat\n")
    file = tmp_path / FC_CLIP_LABEL_FILES[name]
    built_in = dict(pc59="pascal_context59", voc20="voc21").get(name, name)
    names = ["first"] if name == "pc459" else Vocabulary.load(built_in).source_names
    start = 0 if name == "voc20" else 1
    file.write_text("".join(f"{i}:{text},more\n" for i, text in enumerate(names, start)))
    cfg = load_config("fcclip_ade20k")
    (found,) = make_benchmark_sets(cfg, [name], label_files=tmp_path)
    assert found.dataset["label_file"] == str(file)
    if name != "pc459":  # its classes are in the prepared data
        vocabulary, _ = resolve_vocabulary(found.dataset["vocabulary"], str(file))
        assert vocabulary.names == tuple(names[name == "voc20" :])
        assert all(group[-1] == "more" for group in vocabulary.synonyms)
        own = Vocabulary.load(found.dataset["vocabulary"])
        assert vocabulary.is_thing == own.is_thing


@pytest.fixture
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    from odise_mm.engine.runner import OpenVocabRunner

    monkeypatch.setattr(OpenVocabRunner, "from_cfg", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datasets", "one", "two"], "unknown test set 'two'; available: .*five.*one"),
        ([], "model.py: the config has no test set; choose some with --datasets"),
        (["--datasets", "one", "--data-root", "disk"], "one: no file disk/one.*--data-root"),
        (["--datasets", "one", "five", "--label-files", "labels"], "no label file for five"),
        (["--datasets", "one", "--label-files", "wrong"], "has 1 classes.*2"),
        (
            ["--datasets", "one", "--label-files", "swapped"],
            "one: 2 of 2 classes have no name in common with .*class 0 is 'cat' in .* and 'sky' in",
        ),
        (
            ["--datasets", "one", "--cfg-options", "test_dataloader.dataset.subsets.novel=['cta']"],
            "subset 'novel': 'cta' not among .* did you mean cat?",
        ),
        (["--datasets", "one", "--precision", "fp16"], "fp16 is for GPUs"),
        (["--datasets", "one", "--out", "model.py/out.json"], "model.py"),
        (["--datasets", "one", "--cfg-options", "model.type.x=1"], "cannot set model.type.x"),
    ],
)
def test_mistakes_end_in_one_line_before_anything_is_built(
    arguments: list[str],
    message: str,
    project: Path,
    capsys: pytest.CaptureFixture,
    nothing_is_built: None,
) -> None:
    label_files(project)
    for folder, names in (("wrong", "1:cat\n"), ("swapped", "1:sky\n2:cat\n")):
        (project / folder).mkdir()
        (project / folder / "one.txt").write_text(names)
        (project / folder / "coco.txt").write_text("1:cat\n")
    error = fails(capsys, "model.py", "none", *arguments)
    assert re.search(message, error), error


@pytest.mark.parametrize(
    ("config", "checkpoint", "message"),
    [
        ("model.py", "nope.pth", "no weights file nope.pth"),
        ("odise_coco_label", "none", "CHECKPOINT is `none`, but .*odise_coco_label"),
    ],
)
def test_missing_weights_raise(
    config: str,
    checkpoint: str,
    message: str,
    project: Path,
    capsys: pytest.CaptureFixture,
    nothing_is_built: None,
) -> None:
    error = fails(capsys, config, checkpoint, "--datasets", "one")
    assert re.search(message, error), error


def write_tiny(path: Path, **changes) -> None:
    """Write the config of a real, tiny model."""
    cfg = Config.fromfile("model.py")
    cfg.custom_imports = dict(imports=["odise_mm.models"])
    cfg.model = parts.segmentor_config(**changes)
    cfg.dump(path)


def test_training_checkpoint_is_loaded_strictly(
    project: Path, capsys: pytest.CaptureFixture
) -> None:
    write_tiny(project / "label.py", tile_size=64)
    model = parts.segmentor()
    hub = MessageHub("training")
    hub.update_scalar("train/loss", 1.5)
    state = dict(
        meta=dict(iter=2, seed=0),
        state_dict=model.state_dict(),
        message_hub=hub.state_dict(),
        optimizer=dict(state={}, param_groups=[dict(lr=1e-4)]),
    )
    torch.save(state, "iter_2.pth")
    arguments = ["iter_2.pth", "--datasets", "one", "--out", "out.json"]
    assert tool.main(["label.py", *arguments]) == 0
    found = json.loads(Path("out.json").read_text())
    assert found["random_weights"] is False and "meaningless" not in capsys.readouterr().out
    sha256 = hashlib.sha256(Path("iter_2.pth").read_bytes()).hexdigest()
    assert found["checkpoint"] == dict(file="iter_2.pth", sha256=sha256)
    assert found["train_vocabulary"]["source"] == "coco"
    assert set(found["sets"]["one"]["per_class"]["semantic"]) == {"cat", "sky"}

    error = fails(capsys, "model.py", *arguments)
    assert "iter_2.pth does not match this config: 1 missing (first: scale)" in error


def launch(project: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the tool in two processes, as tools/dist_test.sh does."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        str(ROOT / "tools/test.py"), "model.py", "none", "--launcher", "pytorch", *arguments,
    ]  # fmt: skip
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def test_two_processes_give_the_same_results(project: Path) -> None:
    """Five images do not divide evenly, and one image is too few for two processes."""
    arguments = ["--datasets", "five", "one"]
    more = ["--image-scores", "scores", "--worst", "3"]
    alone = run(*arguments, "--dump", "dump_1", *more)
    Path("scores").rename("scores_1")
    done = launch(project, *arguments, "--dump", "dump_2", "--out", "two.json", *more)
    together = json.loads((project / "two.json").read_text())
    assert together["processes"] == 2
    assert together["done"] == ["five"] and together["not_done"] == ["one"]
    for key in ("metrics", "per_class", "images"):
        assert together["sets"]["five"][key] == alone["sets"]["five"][key], key
    files = sorted(p.relative_to("dump_1") for p in Path("dump_1/five").rglob("*") if p.is_file())
    assert len(files) == 2 * 5 + 2
    for file in files:
        assert (Path("dump_1") / file).read_bytes() == (Path("dump_2") / file).read_bytes(), file
    written = sorted(p for p in Path("scores/five").rglob("*") if p.is_file())
    assert len(written) == 9 + 3
    for file in written:
        assert file.read_bytes() == ("scores_1" / file.relative_to("scores")).read_bytes(), file
    errors = {line for line in done.stderr.splitlines() if line.startswith("error: ")}
    assert errors == {
        "error: 2 processes for 1 images to evaluate: start at most as many processes as "
        "there are images"
    }
    assert done.returncode != 0 and "Traceback" not in done.stderr.partition("error: ")[0]
