"""Tables of the ablations: our results, the paper's numbers and notes."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from mmengine.config import Config
from PIL import Image

from odise_mm.benchmarks import ablation_tables
from odise_mm.benchmarks.ablations import STUDIES, Row, Run
from odise_mm.cli import test as test_tool
from tests.support.small_test_set import write_project
from tools.analysis_tools import ablation_table as tool

ROOT = Path(__file__).resolve().parents[2]
REPRESENTATION = ("--studies", "representation")
FULL = {"ade20k": 2000, "coco": 5000}


def report(row: str, sets: dict[str, dict[str, float]], **changes: Any) -> dict[str, Any]:
    """Return the report of tools/test.py for a row, as after full training and testing."""
    file = f"configs/ablation/{row}.py"
    config = Config.fromfile(ROOT / file, import_custom_modules=False)
    content = dict(
        random_weights=False,
        config=dict(
            file=f"/somewhere/{file}",
            model=config.model.to_dict(),
            test_pipeline=[dict(step) for step in config.test_pipeline],
        ),
        checkpoint=dict(file="iter_92188.pth"),
        started="2030-01-01",
        sets={n: dict(metrics=m, images=FULL.get(n, 3), limit=None) for n, m in sets.items()},
    )
    return json.loads(json.dumps({**content, **changes}))


def numbers(pq: float, ap: float | None = None, iou: float | None = None) -> dict[str, float]:
    found = {"panoptic/PQ": pq, "instance/AP": ap, "semantic/mIoU": iou}
    return {key: value for key, value in found.items() if value is not None}


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def make(folder: Path, *arguments: str) -> tuple[dict[str, list[str]], list[dict[str, str]], str]:
    """Return the markdown rows by title, the CSV lines, and the markdown text."""
    out = folder / "out"
    assert tool.main([str(folder / "work"), "--out", str(out), *arguments]) == 0
    text = (out / "ablations.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    with (out / "ablations.csv").open() as stream:
        return {row[0]: row[1:] for row in rows}, list(csv.DictReader(stream)), text


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_without_results(work: Path) -> None:
    rows, lines, text = make(work.parent, "--studies", *STUDIES)
    assert {line["ours"] for line in lines} == {"not run"}
    assert rows["CLIP (H)"][1:] == [
        "not run",
        "21.2 / 10.8 / 28.1",
        "not run",
        "41.0 / 27.9 / 52.1",
    ]
    assert rows["Both (ODISE)"] == ["not run", "not run"]  # the paper has no numbers
    assert "pipeline numbers" not in text
    configs = {str(p.relative_to(ROOT)) for p in (ROOT / "configs/ablation").glob("*/*.py")}
    assert {line["config"] for line in lines} == configs
    for study in STUDIES:
        with Image.open(work.parent / "out" / f"{study}.png") as figure:
            assert figure.width > 600


def test_by_default_the_studies_with_results_are_shown(work: Path) -> None:
    write(work / "a.json", report("steps/t0", {"coco": numbers(30.0)}))
    write(work / "b.json", report("captioner/empty", {"coco": numbers(20.0)}))
    rows, lines, text = make(work.parent)
    assert re.findall("Ablation of the (.*?):", text) == ["captioner", "steps"]
    assert {line["study"] for line in lines} == {"captioner", "steps"}
    assert rows["t = 0 (ODISE)"][0].startswith("30.0") and "CLIP (H)" not in rows
    written = {file.name for file in (work.parent / "out").iterdir()}
    assert written == {"ablations.md", "ablations.csv", "captioner.png", "steps.png"}


def test_without_results_and_studies_nothing_is_written(
    work: Path, capsys: pytest.CaptureFixture
) -> None:
    content = report("steps/t0", {"coco": numbers(30.0)})
    content["config"]["file"] = "/home/me/configs/odise/odise_coco_label.py"
    write(work / "a.json", content)
    for places, where in (([str(work)], f"in {work}"), ([], "without a WORK_DIR")):
        with pytest.raises(SystemExit) as end:
            tool.main([*places, "--out", str(work.parent / "out")])
        assert end.value.code == 2
        *remarks, line = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: no results of ablations {where}: make some with ")
        assert line.endswith(
            "run_study.py, or see the paper's numbers with --studies representation"
        )
        assert len(remarks) == len(places)
        assert all("is not a row of a study" in remark for remark in remarks)
    assert not (work.parent / "out").exists()


def test_the_paper_s_numbers_are_those_of_the_metafile(work: Path) -> None:
    models = yaml.safe_load((ROOT / "configs/ablation/metafile.yml").read_text())["Models"]
    expected = {
        (model["Config"], result["Dataset"], metric): value
        for model in models
        for result in model.get("Results", ())
        for metric, value in result["Metrics"].items()
    }
    assert len(expected) == (12 + 4) * 6
    _, lines, _ = make(work.parent, "--studies", *STUDIES)
    found = {
        (line["config"], line["dataset"], line["metric"]): float(line["paper"])
        for line in lines
        if line["paper"] != "-"
    }
    assert found == expected


def test_a_complete_result_stands_beside_the_paper_s(work: Path) -> None:
    sets = {"ade20k": numbers(21.04, 10.0, 27.96), "coco": numbers(40.0, 26.26)}
    write(work / "clip_h/test/1/results.json", report("representation/clip_h", sets))
    rows, lines, text = make(work.parent, *REPRESENTATION, "--note", "Trained elsewhere.")
    assert rows["CLIP (H)"][1:] == [
        "21.0 / 10.0 / 28.0", "21.2 / 10.8 / 28.1", "40.0 / 26.3 / not run", "41.0 / 27.9 / 52.1",
    ]  # fmt: skip
    assert rows["CLIP (L)"][1] == "not run"
    ours = {(x["row"], x["dataset"], x["metric"]): x["ours"] for x in lines}
    assert ours["CLIP (H)", "ADE20K", "PQ"] == "21.04"
    assert ours["CLIP (H)", "COCO", "mIoU"] == "not run"
    assert {line["not comparable"] for line in lines} == {""}
    assert "pipeline numbers" not in text and "- Trained elsewhere." in text


def test_subsets_of_classes_have_columns_where_there_are_some(work: Path) -> None:
    found = {**numbers(40.0, 26.3, 47.2), "panoptic/new/PQ": 12.34, "instance/new/AP": 5.0}
    content = report("representation/clip_h", {"coco": found, "ade20k": numbers(21.0)})
    content["sets"]["coco"]["subsets"] = dict(new=["cat"], empty=["dog"])
    write(work / "h.json", content)
    write(work / "l.json", report("representation/clip_l", {"coco": numbers(30.0, 20.0, 40.0)}))
    rows, lines, _ = make(work.parent, *REPRESENTATION)
    assert rows["representation"][1:] == [
        "ADE20K, ours", "ADE20K, paper", "COCO, ours", "COCO, new, ours", "COCO, paper",
    ]  # fmt: skip
    assert rows["CLIP (H)"][3:5] == ["40.0 / 26.3 / 47.2", "12.3 / 5.0 / not run"]
    assert rows["CLIP (L)"][3:5] == ["30.0 / 20.0 / 40.0", "not run"]
    ours = {(x["row"], x["subset"], x["metric"]): x for x in lines if x["dataset"] == "COCO"}
    assert ours["CLIP (H)", "new", "PQ"]["ours"] == "12.34"
    assert ours["CLIP (H)", "new", "PQ"]["paper"] == "-"
    assert ours["CLIP (H)", "", "PQ"]["paper"] == "41.0"
    assert {x["subset"] for x in lines if x["dataset"] == "ADE20K"} == {""}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(random_weights=True, checkpoint=None), "random weights"),
        (dict(checkpoint=dict(file="work_dirs/x/iter_200.pth")), "trained for 200 of 92,188"),
        (dict(images=12), "12 images of 2,000"),
        (dict(model=dict(tile_size=64)), "model or image size differ from the row's config"),
        (dict(scale=[640, 256]), "model or image size differ"),
    ],
)
def test_results_that_are_not_comparable_are_marked(
    change: dict[str, Any], reason: str, work: Path
) -> None:
    content = report("representation/clip_h", {"ade20k": numbers(1.0, 2.0, 3.0)})
    content["sets"]["ade20k"]["images"] = change.pop("images", 2000)
    content["config"]["model"].update(change.pop("model", {}))
    content["config"]["test_pipeline"][1]["scale"] = change.pop(
        "scale", content["config"]["test_pipeline"][1]["scale"]
    )
    write(work / "results.json", {**content, **change})
    rows, lines, text = make(work.parent, *REPRESENTATION)
    assert rows["CLIP (H)"][1] == "1.0 / 2.0 / 3.0 *"
    assert re.search("pipeline numbers.*must not be compared", text)
    assert re.search(rf"- {reason}.*: clip_h on ADE20K\.", text)
    reasons = {
        x["not comparable"] for x in lines if x["row"] == "CLIP (H)" and x["ours"] != "not run"
    }
    (found,) = reasons
    assert re.match(reason, found)


def test_other_weights_files_are_the_same_model(work: Path) -> None:
    content = report("representation/clip_h", {"coco": numbers(1.0)})
    content["config"]["model"]["clip"]["weights"] = "/disk/ViT-L-14-336px.pt"
    content["config"]["model"]["ensemble"]["train_vocabulary"] = "labels/coco.txt"
    write(work / "results.json", content)
    rows, _, text = make(work.parent, *REPRESENTATION)
    assert rows["CLIP (H)"][1] == "1.0 / not run / not run" and "pipeline" not in text


def test_the_latest_of_several_runs_counts(work: Path, capsys: pytest.CaptureFixture) -> None:
    for name, day, pq in (("a", 3, 33.0), ("b", 5, 55.0), ("c", 1, 11.0)):
        content = report("steps/t0", {"coco": numbers(pq)}, started=f"2030-01-0{day}")
        write(work / name / "results.json", content)
    write(work / "other.json", dict(some="thing"))
    (work / "log.json").write_text('{"a": 1}\n{"b": 2}\n')
    rows, _, _ = make(work.parent, "--studies", "steps")
    assert rows["t = 0 (ODISE)"] == ["55.0 / not run / not run"]
    remarks = capsys.readouterr().err
    assert len(re.findall("skipped, .*b/results.json is newer", remarks)) == 2
    assert "1 of 7 rows have results" in remarks


def test_configs_outside_the_metafile(work: Path, capsys: pytest.CaptureFixture) -> None:
    """A config in a study's folder gets a new row; any other config is skipped."""
    content = report("captioner/empty", {"coco": numbers(9.0)})
    content["config"]["file"] = "/home/me/configs/ablation/captioner/my_captioner.py"
    write(work / "a.json", content)
    content["config"]["file"] = "/home/me/configs/odise/odise_coco_label.py"
    write(work / "b.json", content)
    rows, _, text = make(work.parent, "--studies", "captioner")
    assert rows["my captioner"] == ["9.0 / not run / not run *", "-"]
    assert "CLIP (H)" not in rows and "this row has no known config" in text
    assert "odise_coco_label.py is not a row of a study" in capsys.readouterr().err


def test_from_a_test_run_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real file of tools/test.py, for a tiny model in a folder named like a study."""
    write_project(tmp_path, {"five": (20, 16)})
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "configs/toy/ablation/representation"
    folder.mkdir(parents=True)
    text = (tmp_path / "configs/_base_/datasets/five.py").read_text()
    (folder / "clip_h.py").write_text((tmp_path / "model.py").read_text() + text)
    (tmp_path / "configs/_base_/datasets/five.py").unlink()
    arguments = [str(folder / "clip_h.py"), "none", "--out", "work/clip_h/results.json"]
    assert test_tool.main(arguments) == 0
    found = json.loads(Path("work/clip_h/results.json").read_text())["sets"]["clip_h"]["metrics"]
    assert found["panoptic/PQ"] > 50
    rows, lines, text = make(tmp_path, *REPRESENTATION)
    expected = [f"{found[key]:.1f}" for key in ("panoptic/PQ", "instance/AP", "semantic/mIoU")]
    assert rows["CLIP (H)"][1:] == [" / ".join(expected) + " *"]
    assert rows["representation"][1:] == ["toy world, ours"]
    assert rows["CLIP (L)"][-1] == "not run"
    for reason in ("random weights", "not a dataset of the paper's table", "model or image size"):
        assert re.search(rf"- {reason}.*clip_h on toy world", text)
    ours = {line["metric"]: line["ours"] for line in lines if line["ours"] != "not run"}
    assert float(ours["PQ"]) == found["panoptic/PQ"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere", None, "no file or folder .*nowhere; pass work directories"),
        ("x.json", "{", "x.json is damaged"),
        ("x.json", "[1, 2]", "x.json was not written by tools/test.py"),
        ("deep/results.json", "{", "results.json is damaged"),
    ],
)
def test_mistakes_end_in_one_line(
    name: str, content: str | None, message: str, work: Path, capsys: pytest.CaptureFixture
) -> None:
    path = work / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    with pytest.raises(SystemExit) as end:
        tool.main([str(path if path.parent == work else work), "--out", str(work / "out")])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and re.search(message, line)


def test_plots_show_subsets_with_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = {"": dict(PQ=0.0), "base": dict(PQ=0.0), "novel": dict(PQ=0.0)}
    good = {"": dict(PQ=30.0), "base": dict(PQ=34.5), "novel": dict(PQ=12.0)}
    figures: list = []
    monkeypatch.setattr(
        ablation_tables, "write_figure", lambda path, figure, **_: figures.append(figure)
    )
    for metrics in (zeros, good):
        rows = [Row("steps", "a", "a", "a.py"), Row("steps", "b", "not run", "b.py")]
        rows[0].runs["toy world"] = Run(Path("a.json"), "a.py", metrics, "", ["another dataset"])
        ablation_tables.draw("steps", rows, Path("steps.png"))
    for figure, metrics in zip(figures, (zeros, good), strict=True):
        axes = figure.axes[0]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["a"]
        expected = {f"{found['PQ']:.1f} *" for found in metrics.values()}
        assert {text.get_text() for text in axes.texts} == expected
        left, right = axes.get_xlim()
        least = min(found["PQ"] for found in metrics.values())
        assert -2 < left <= least and right - left > 10
        shown = {text.get_text() for text in figure.legends[0].get_texts()}
        assert shown == {"ours, all classes", "ours, base", "ours, novel"}
