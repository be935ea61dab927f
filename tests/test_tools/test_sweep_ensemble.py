"""Saved predictions, and the sweep over the ensemble's exponents without a model."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from PIL import Image

from odise_mm.analysis import saving
from odise_mm.analysis.ensemble_sweep import resized_masks, sweep
from odise_mm.analysis.predictions import Prediction, PredictionFolder, predict_each_classifier
from odise_mm.analysis.sweep_results import TASKS, Sweep, Value, draw, make_table
from odise_mm.cli import test as test_tool
from odise_mm.models import GeometricEnsemble, OpenVocabSegmentor
from odise_mm.models.classifiers.base import ClassPrediction
from odise_mm.models.heads.mask2former_head import Frame, MaskPrediction
from odise_mm.models.postprocess import TEST_CFG, resize_masks
from odise_mm.models.segmentors.results import SegmentedImages
from odise_mm.vocabulary import Vocabulary
from tests.support import golden_families, parts
from tests.support.small_test_set import write_project
from tools.analysis_tools import save_predictions, sweep_ensemble

ALPHA, BETA = 0.4, 0.9


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, tiny model with two classifiers, and predictions on three images in fp16 and fp32."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder, {"three": (20, 12, 30)})
    (folder / "seen.txt").write_text("thing: dog\nstuff: sky\n")  # the dataset's cat is unseen
    cfg = Config.fromfile(folder / "model.py")
    cfg.custom_imports = dict(imports=["odise_mm.models"])
    cfg.model = parts.segmentor_config()
    cfg.model.ensemble.update(alpha=ALPHA, beta=BETA, train_vocabulary="seen.txt")
    cfg.model.test_cfg.overlap_threshold = 0.0
    cfg.dump(folder / "tiny.py")
    torch.save(dict(state_dict=parts.segmentor().state_dict()), folder / "tiny.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # The ground truth is the result with other exponents, as the metrics would be 0 otherwise.
        found_by_test("model.ensemble.alpha=0.1", "model.ensemble.beta=0.3", dump="dump")
        shutil.copytree("dump/three", "data/three", dirs_exist_ok=True)
        for masks in ("fp16", "fp32"):
            assert save("--out", masks, "--masks", masks) == 0
    return folder


def save(*arguments: str) -> int:
    return save_predictions.main(["tiny.py", "tiny.pth", "--datasets", "three", *arguments])


def found_by_test(*options: str, dump: str | None = None) -> dict[str, float]:
    """Return the metrics of tools/test.py."""
    arguments = ["tiny.py", "tiny.pth", "--datasets", "three", "--out", "out.json"]
    arguments += ["--cfg-options", *options] if options else []
    assert test_tool.main([*arguments, *(["--dump", dump] if dump else [])]) == 0
    return json.loads(Path("out.json").read_text())["sets"]["three"]["metrics"]


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(OpenVocabSegmentor, "__init__", refuse)


def by_pair(result: Sweep) -> dict[tuple[float, float], Value]:
    return {(value.alpha, value.beta): value for value in result.values}


def test_swept_values_are_those_of_the_test_tool(here: Path, monkeypatch) -> None:
    """Equal in float32, for the config's exponents, other exponents and each classifier alone."""
    expected = {
        (ALPHA, BETA): found_by_test(),
        (0.25, 0.5): found_by_test("model.ensemble.alpha=0.25", "model.ensemble.beta=0.5"),
        (1.0, 1.0): found_by_test("model.ensemble.alpha=1.0", "model.ensemble.beta=1.0"),
    }
    cfg = Config.fromfile("tiny.py")
    cfg.model.classifiers = cfg.model.classifiers[:1]
    cfg.dump("one.py")
    assert test_tool.main(["one.py", "tiny.pth", "--datasets", "three", "--out", "one.json"]) == 0
    expected[0.0, 0.0] = json.loads(Path("one.json").read_text())["sets"]["three"]["metrics"]
    monkeypatch.setattr(OpenVocabSegmentor, "__init__", None)  # no model is built from here on
    values = by_pair(sweep("fp32/three", [0.25], [0.5], list(TASKS)))
    assert set(values) == set(expected)
    for pair, numbers in expected.items():
        assert values[pair].numbers == numbers, pair
    # the comparison would prove nothing with equal numbers
    for key in ("panoptic/PQ", "semantic/mIoU"):
        assert len({numbers[key] for numbers in expected.values()}) >= 3, key
    assert values[ALPHA, BETA].own and not values[0.25, 0.5].own
    assert values[0.0, 0.0].label == "without CLIP" and values[1.0, 1.0].label == "CLIP only"


def test_values_of_fc_clip_are_those_of_the_test_tool(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CLIP is read from the checkpoint, and masks without a position of its map are saved."""
    monkeypatch.chdir(project)
    cfg = Config.fromfile("model.py")
    cfg.custom_imports = dict(imports=["odise_mm.models"])
    cfg.model = golden_families.tiny_config("fcclip").model
    cfg.model.clip.weights = "missing.safetensors"
    cfg.model.ensemble.update(valid_masks_only=True, train_vocabulary="seen.txt")
    cfg.model.test_cfg = dict(overlap_threshold=0.0)
    cfg.dump("fcclip.py")
    golden_families.write_checkpoint(tmp_path / "fcclip.pth", "fcclip")
    arguments = ["fcclip.py", str(tmp_path / "fcclip.pth"), "--datasets", "three", "--limit", "1"]
    assert test_tool.main([*arguments, "--dump", str(tmp_path), "--out", "fcclip.json"]) == 0
    found = json.loads(Path("fcclip.json").read_text())["sets"]["three"]["metrics"]
    saved = [*arguments, "--out", str(tmp_path), "--masks", "fp32"]
    assert save_predictions.main(saved) == 0
    values = sweep(str(tmp_path / "three"), [], [], list(TASKS)).values
    (own,) = (value for value in values if value.own)
    assert own.numbers == found
    clip = PredictionFolder(tmp_path / "three").read(0).class_predictions[1]
    assert clip.valid.any() and not clip.valid.all()


def test_half_precision_masks_hardly_change_the_numbers(here: Path, no_model) -> None:
    exact, rounded = (
        by_pair(sweep(f"{masks}/three", [0.5], [0.5], list(TASKS))) for masks in ("fp32", "fp16")
    )
    for pair, value in exact.items():
        for key, number in value.numbers.items():
            assert rounded[pair].numbers[key] == pytest.approx(number, abs=0.2), key
    sizes = [sum(f.stat().st_size for f in Path(m).rglob("*.npz")) for m in ("fp16", "fp32")]
    assert sizes[0] < 0.65 * sizes[1]


def test_files_of_a_sweep(here: Path, no_model, capsys: pytest.CaptureFixture) -> None:
    arguments = ["fp16/three", "--alpha", "0", "0.5", "--beta", "1", "--out", "swept"]
    assert sweep_ensemble.main(arguments) == 0
    shown = capsys.readouterr().out
    with open("swept/sweep.csv") as stream:
        rows = list(csv.DictReader(stream))
    pairs = [(float(row["alpha"]), float(row["beta"])) for row in rows]
    assert pairs == [(0, 0), (1, 1), (ALPHA, BETA), (0, 1), (0.5, 1)]
    assert [row["classifiers"] for row in rows] == ["without CLIP", "CLIP only"] + ["both"] * 3
    assert [row["config's own"] for row in rows] == ["no", "no", "yes", "no", "no"]
    text = Path("swept/sweep.md").read_text()
    for row in rows:
        assert f"{float(row['panoptic/PQ']):.2f}" in shown
        assert f"{float(row['semantic/mIoU']):.2f}" in text
    assert "weights tiny.pth" in shown and "meaningless" not in text
    with Image.open("swept/sweep.png") as figure:
        assert figure.width > 400 and len(set(figure.convert("L").getdata())) > 20


def test_subsets_defined_after_saving(here: Path, capsys: pytest.CaptureFixture) -> None:
    """No image is run again, and the numbers equal those of the test tool."""
    key = "test_dataloader.dataset.subsets"
    options = [f"{key}.seen=['sky']", f"{key}.new=['cat']"]
    shutil.copytree("fp32", "subsets")
    assert save("--out", "subsets", "--masks", "fp32", "--cfg-options", *options) == 0
    assert "0 of them are new" in capsys.readouterr().out
    result = sweep("subsets/three", [0.25], [0.5], list(TASKS))
    expected = found_by_test(*options)
    assert by_pair(result)[ALPHA, BETA].numbers == expected
    assert expected["panoptic/new/PQ"] != expected["panoptic/seen/PQ"]
    capsys.readouterr()
    arguments = ["subsets/three", "--alpha", "0.25", "--beta", "0.5", "--format", "markdown"]
    assert sweep_ensemble.main([*arguments, "--out", "swept_subsets"]) == 0
    header, _, *rows = [li for li in capsys.readouterr().out.splitlines() if li.startswith("|")]
    columns = header.strip("| ").split(" | ")[3:]
    assert columns == [
        "PQ", "mAP", "mIoU", "PQ seen", "mIoU seen", "PQ new", "mAP new", "mIoU new",
    ]  # fmt: skip
    (own,) = [row.strip("| ").split(" | ")[3:] for row in rows if "*" in row]
    shown = {name: cell.removesuffix(" (best)") for name, cell in zip(columns, own, strict=True)}
    assert shown["PQ new"] == f"{expected['panoptic/new/PQ']:.2f}"
    assert shown["mIoU seen"] == f"{expected['semantic/seen/mIoU']:.2f}"
    with Image.open("swept_subsets/sweep.png") as figure, Image.open(draw_main(result)) as main:
        assert figure.width == main.width and figure.height > 2 * main.height


def draw_main(result: Sweep) -> Path:
    """Draw the same sweep without subsets."""
    path = Path("main.png")
    draw(Sweep(result.name, result.values, result.notes), path)
    return path


def test_a_subset_without_a_number_for_some_values(tmp_path: Path) -> None:
    """One pair finds a class nowhere, another pair finds it wrongly."""
    values = [
        Value(0.0, 0.0, numbers={"panoptic/PQ": 5.0, "panoptic/new/PQ": None}),
        Value(1.0, 1.0, numbers={"panoptic/PQ": 4.0, "panoptic/new/PQ": 0.0}),
        Value(0.5, 1.0, numbers={"panoptic/PQ": 3.0, "panoptic/new/PQ": 7.0}),
    ]
    result = Sweep("set", values, [], ("new",))
    table = make_table(result)
    assert [row[3:] for row in table.rows] == [
        ["5.00 (best)", "-"], ["4.00", "0.00"], ["3.00", "7.00 (best)"],
    ]  # fmt: skip
    draw(result, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 1000


def test_only_the_tasks_asked_for(here: Path, no_model) -> None:
    result = sweep("fp16/three", [0.5], [0.5], ["semantic"])
    assert {key.split("/")[0] for key in result.values[0].numbers} == {"semantic"}


def test_saving_continues_where_it_stopped(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert save("--out", "again", "--limit", "2") == 0
    files = sorted(Path("again/three").glob("*.npz"))
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    assert len(files) == 2
    assert save("--out", "again") == 0
    printed = capsys.readouterr().out
    assert "3 images" in printed and "1 of them are new" in printed
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before
    for file in sorted(Path("fp16/three").glob("*.npz")):
        assert (Path("again/three") / file.name).read_bytes() == file.read_bytes()


def test_predictions_are_read_as_they_were_written(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = 9 * torch.randn(5, 16, 24, generator=generator)
    masks[0, 0, 0] = 1e6  # beyond float16
    class_predictions = [
        ClassPrediction(
            torch.randn(1, 5, 7, generator=generator), torch.rand(1, 5, generator=generator)
        ),
        ClassPrediction(
            torch.randn(1, 5, 7, generator=generator),
            valid=torch.tensor([[True, False, True, True, False]]),
        ),
    ]
    metainfo = dict(
        img_id=3, img_path="ä.jpg", ori_shape=(60, 90), scale_factor=(np.float64(1.5), 1.5),
        segments_info=[dict(id=7, isthing=True)],
    )  # fmt: skip
    folder = PredictionFolder(tmp_path)
    for index, kind in enumerate(("fp32", "fp16")):
        size = folder.write(index, Prediction(metainfo, masks, class_predictions), kind)
        assert size == folder.file(index).stat().st_size
        back = folder.read(index)
        assert back.metainfo == metainfo and isinstance(back.metainfo["ori_shape"], tuple)
        for ours, theirs in zip(back.class_predictions, class_predictions, strict=True):
            assert torch.equal(ours.logits, theirs.logits)
        assert torch.equal(back.class_predictions[0].p_void, class_predictions[0].p_void)
        assert back.class_predictions[1].p_void is None
        assert back.class_predictions[0].valid is None
        assert torch.equal(back.class_predictions[1].valid, class_predictions[1].valid)
        expected = masks if kind == "fp32" else masks.clamp(max=65504).half().float()
        assert torch.equal(back.masks, expected)
    assert folder.missing(4) == [2, 3]


def test_masks_that_cover_another_area_than_the_padded_image() -> None:
    """As those of mask sources: the saved sizes are those that the masks are resized with."""
    frame = Frame((32, 48), (30, 45))
    prediction = MaskPrediction(torch.randn(1, 2, 8, 12), torch.zeros(1, 2, 4), frames=[frame])
    own = ClassPrediction(torch.zeros(1, 2, 3), torch.zeros(1, 2))
    vocabulary = Vocabulary.parse("a; b; c")
    sample = DetDataSample(
        metainfo=dict(img_shape=(64, 90), pad_shape=(64, 96), ori_shape=(20, 30))
    )
    model = SimpleNamespace(
        data_preprocessor=lambda batch, _: batch,
        segment=lambda *_: [SegmentedImages([0], prediction, [own], vocabulary)],
        probabilities=lambda found: None,
    )
    (saved,) = predict_each_classifier(model, dict(inputs=None, data_samples=[sample]))
    assert saved.metainfo["ori_shape"] == (20, 30)
    resized = resized_masks(saved, TEST_CFG)
    assert torch.equal(resized, resize_masks(prediction.masks[0], *frame, (20, 30)))


def test_single_classifiers_are_the_corners_of_the_grid() -> None:
    """Equation 10 gives the first prediction for w = 0 and the second for w = 1."""
    vocabulary = parts.MODELS.build(parts.segmentor_config()).vocabulary
    generator = torch.Generator().manual_seed(1)
    count = len(vocabulary)
    own, clip = (50 * torch.randn(1, 4, count, generator=generator) for _ in range(2))
    void = torch.rand(1, 4, generator=generator)
    both = [ClassPrediction(own, void), ClassPrediction(clip)]
    first = GeometricEnsemble(alpha=0.0, beta=0.0)(both, vocabulary)
    assert torch.equal(first, GeometricEnsemble()(both[:1], vocabulary))
    second = GeometricEnsemble(alpha=1.0, beta=1.0)(both, vocabulary)
    torch.testing.assert_close(second[..., :-1], clip.softmax(-1) * (1 - void[..., None]))


def fails(capsys: pytest.CaptureFixture, tool, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        tool.main(list(arguments))
    assert end.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_mistakes_with_folders(here: Path, no_model, capsys: pytest.CaptureFixture) -> None:
    def error(folder: str, *more: str) -> str:
        return fails(capsys, sweep_ensemble, folder, *more)

    assert re.search("no .*nowhere/set.json.*save_predictions.py", error("nowhere"))
    assert re.search("no .*fp16/set.json.*of one test set", error("fp16"))
    folder = Path("broken/three")
    folder.mkdir(parents=True)
    for file in Path("fp16/three").iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "0000001.npz").write_bytes(b"cut off")
    assert re.search("0000001.npz is damaged", error("broken/three"))
    (folder / "0000001.npz").unlink()
    assert re.search("has only 2 of 3 images.*number 1.*continues", error("broken/three"))
    described = json.loads((folder / "set.json").read_text())
    for change, message in (
        (dict(format=99), "format 99.*reads 2"),
        (dict(classifiers=["OpenVocabClassifier"], images=1), "ensemble needs two"),
    ):
        (folder / "set.json").write_text(json.dumps({**described, **change}))
        assert re.search(message, error("broken/three"))
    (folder / "set.json").write_text("{")
    assert re.search("set.json is damaged", error("broken/three"))


def test_no_mixing_of_runs(here: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["tiny.py", "tiny.pth", "--datasets", "three", "--out", "fp16"]
    error = fails(capsys, save_predictions, *arguments, "--masks", "fp32")
    assert "fp16/three holds predictions of another run (different: masks)" in error
    error = fails(capsys, save_predictions, *arguments, "--cfg-options", "model.tile_size=128")
    assert "another run (different: model)" in error


def test_full_disk_is_reported_at_the_first_image(
    here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), dict(free=1000))
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: usage)
    error = fails(
        capsys, save_predictions, "tiny.py", "tiny.pth", "--datasets", "three", "--out", "full"
    )
    assert re.search("full/three would take about .* GB left", error)
    assert len(list(Path("full/three").glob("*.npz"))) == 1


@pytest.mark.parametrize("value", ["-0.1", "1.1", "half"])
def test_exponents_are_between_0_and_1(value: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        sweep_ensemble.parse_args(["folder", "--alpha", value])
    assert end.value.code == 2 and "--alpha" in capsys.readouterr().err
