"""Sheet of scenes and shipped files: choice of scenes, verdicts, drawing, and the programs."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from odise_mm.annotations.panoptic_io import read_coco_panoptic
from odise_mm.apis import OpenVocabInferencer
from odise_mm.checkpoints.safe_loading import load_state_dict
from odise_mm.errors import CheckpointError, DatasetError
from odise_mm.structures import Segment, SegmentationResult
from projects.toy_world import sheet, ship
from projects.toy_world.names import names_of
from projects.toy_world.sheet import Row, Verdict
from projects.toy_world.world import scene

NOVEL = {str(name) for name in names_of("novel")}
BASE_NAME, OTHER_BASE_NAME = [str(name) for name in names_of("base")][:2]
NOVEL_NAME = min(NOVEL)


def result(ids: np.ndarray, *names: str) -> SegmentationResult:
    """Return segments 1, 2, ... of a map; all except "sky" are things."""
    segments = [
        Segment(i, i, name, 0.9, int((ids == i).sum()), name != "sky")
        for i, name in enumerate(names, 1)
    ]
    return SegmentationResult(height=len(ids), width=len(ids[0]), panoptic=ids, segments=segments)


def halves(size: int = 40, at: int = 20) -> np.ndarray:
    """Return a map with 1 at the left and 2 at the right."""
    ids = np.full((size, size), 2, np.int32)
    ids[:, :at] = 1
    return ids


# --- choice and verdicts ------------------------------------------------------------------------


def test_choice_of_scenes(toy_data: Path) -> None:
    truths = read_coco_panoptic(toy_data / "annotations" / "panoptic_val2017.json")
    drawn = [scene((5, i), "val") for i in range(len(truths))]
    expected = []
    for i, made in enumerate(drawn):
        things = [s.name for s in made.segments if s.name.is_thing]
        if len(things) >= 3 and any(name.is_novel for name in things):
            expected.append(i)
    assert len(expected) >= 3
    assert sheet.choose(truths, NOVEL, 3) == expected[:3]
    with pytest.raises(DatasetError, match=rf"^{len(expected)} of 30 scenes .* fewer than 31"):
        sheet.choose(truths, NOVEL, 31)


def test_verdicts() -> None:
    truth = result(halves(), BASE_NAME, "sky")
    # two thirds of the left half, and the right half with the rest: IoU 0.67 and 0.74
    found = result(halves(at=14), BASE_NAME, OTHER_BASE_NAME)
    assert sheet.judge(found, truth) == {1: Verdict.RIGHT, 2: Verdict.WRONG}
    # an IoU of 0.5 is too low
    assert sheet.judge(result(halves(at=10), BASE_NAME), truth) == {1: Verdict.LOOSE}


def test_pixels_without_ground_truth_are_ignored() -> None:
    ids = halves()
    ids[5:] *= ids[5:] == 1  # the right half has ground truth only in its first rows
    truth = result(ids, "sky", BASE_NAME)
    assert sheet.judge(result(halves(), "sky", BASE_NAME), truth)[2] is Verdict.RIGHT


def test_counts_of_things() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    truth = result(halves(), NOVEL_NAME, BASE_NAME)
    right = Row(image, truth, truth, [])
    wrong = Row(image, truth, result(halves(), BASE_NAME, BASE_NAME), [])
    stuff = Row(image, result(halves(), "sky", BASE_NAME), result(halves(), "sky"), [])
    counts = sheet.count([right, wrong, stuff], NOVEL)
    assert counts == {"novel": (1, 2), "base": (2, 3)}


# --- drawing ------------------------------------------------------------------------------------


def test_wrong_and_novel_names_are_marked() -> None:
    ids = np.repeat(halves(128, 64), 1, 0)
    ids[:40] += 2
    truth = result(ids, NOVEL_NAME, BASE_NAME, "sky", BASE_NAME)
    found = result(ids, NOVEL_NAME, NOVEL_NAME, "sky")
    found.panoptic = np.where(ids == 3, np.arange(128) % 3 + 2, ids)  # breaks up the sky
    found.panoptic[found.panoptic == 4] = 0
    flat = np.full((128, 128, 3), 90, np.uint8)
    figure = sheet.draw([Row(flat, truth, found, [ids, ids])], NOVEL)
    image_axis, truth_axis, found_axis, *feature_axes = figure.axes
    assert [axis.get_title() for axis in figure.axes] == list(sheet._TITLES)
    assert not image_axis.texts and not feature_axes[0].texts

    def written(axis) -> dict[str, tuple]:
        return {
            text.get_text().replace("\n", " "): (
                to_rgb(text.get_color()),
                text.get_bbox_patch().get_facecolor()[:3],
            )
            for text in axis.texts
        }

    assert set(written(truth_axis)) == {f"{NOVEL_NAME}*", BASE_NAME, "sky"}
    labels = written(found_axis)
    assert set(labels) == {f"{NOVEL_NAME}*", "(sky)"}
    papers = [text.get_bbox_patch().get_facecolor()[:3] for text in found_axis.texts]
    assert papers.count(to_rgb(sheet._RED)) == 1 and papers.count(to_rgb("white")) == 1
    assert written(truth_axis)[f"{NOVEL_NAME}*"] == (to_rgb(sheet._GREEN), to_rgb("white"))
    assert labels["(sky)"][0] == to_rgb(sheet._FAINT)


def test_names_are_inside_the_image_and_do_not_overlap(toy_data: Path) -> None:
    truths = read_coco_panoptic(toy_data / "annotations" / "panoptic_val2017.json")
    overlaps = names = 0
    for truth in truths:
        places = sheet._Places()
        for segment in sorted(truth.segments, key=lambda s: s.area):
            places.find(truth.mask(segment), sheet.label(segment, segment.name in NOVEL))
        boxes = np.array(places._taken)
        assert boxes.min() >= 0 and boxes.max() <= 128
        low, high = boxes[:, None, :2], boxes[:, None, 2:]
        sides = np.minimum(high, high.swapaxes(0, 1)) - np.maximum(low, low.swapaxes(0, 1))
        overlaps += ((sides > 1).all(-1).sum() - len(boxes)) // 2
        names += len(boxes)
    assert overlaps <= 0.02 * names


# --- programs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[OpenVocabInferencer, Path]:
    """Return a model, and its training checkpoint."""
    inferencer = OpenVocabInferencer(str(ship.CONFIG), device="cpu")
    path = tmp_path_factory.mktemp("trained") / "iter_3.pth"
    content = dict(state_dict=inferencer.model.state_dict(), optimizer={"state": torch.ones(9)})
    torch.save(content, path)
    return inferencer, path


def test_shipped_file_has_the_trained_part_in_half_precision(
    trained: tuple, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    inferencer, path = trained
    out = tmp_path / "weights" / "small.safetensors"
    assert ship.main([str(path), str(out)]) == 0
    state = inferencer.model.state_dict()
    shipped = load_state_dict(out)
    assert shipped.keys() == state.keys()
    for key, value in state.items():
        torch.testing.assert_close(shipped[key].float(), value, rtol=2**-11, atol=2**-25)
    numbers = sum(value.numel() for value in state.values())
    assert f"{numbers:,} numbers" in capsys.readouterr().out
    assert out.stat().st_size < 2 * numbers + 50_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.popitem(), "does not fit .*1 missing"),
        (lambda s: s.update({next(iter(s)): next(iter(s.values())) + 1e5}), "finite in float16"),
    ],
)
def test_invalid_checkpoints_raise(trained: tuple, tmp_path: Path, change, message: str) -> None:
    state = dict(trained[0].model.state_dict())
    change(state)
    torch.save({"state_dict": state}, tmp_path / "iter_1.pth")
    out = tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match=message):
        ship.ship(str(tmp_path / "iter_1.pth"), str(out), str(ship.CONFIG))
    assert not out.exists()


def test_sheet_program(
    trained: tuple, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "new" / "sheet.png"
    options = ["--data-root", str(toy_data), "--rows", "2", "--device", "cpu", "--out", str(out)]
    assert sheet.main([str(trained[1]), *options]) == 0
    printed = capsys.readouterr().out
    assert f"wrote {out}" in printed and "novel things of the sheet: " in printed
    with Image.open(out) as image:
        image.load()
        assert image.width == 1650 and image.height == round(150 * (2 * 2.2 + 0.5))


def test_rows_of_the_sheet(trained: tuple, toy_data: Path) -> None:
    inferencer, path = trained
    args = argparse.Namespace(
        checkpoint=str(path), config=str(ship.CONFIG), data_root=toy_data, rows=1, device="cpu"
    )
    (row,) = sheet.make_rows(args, NOVEL)
    truths = read_coco_panoptic(toy_data / "annotations" / "panoptic_val2017.json")
    (index,) = sheet.choose(truths, NOVEL, 1)
    drawn = scene((5, index), "val")
    assert np.array_equal(row.truth.panoptic > 0, drawn.panoptic > 0)
    assert np.abs(row.image.astype(int) - drawn.image).mean() < 4  # JPEG, RGB
    assert len(row.found.class_names) == len(names_of("all"))
    for labels in row.clusters:
        assert labels.shape == (128, 128) and len(np.unique(labels)) == len(row.truth.segments)
        blocks = labels.reshape(16, 8, 16, 8).swapaxes(1, 2)
        assert (blocks == blocks[:, :, :1, :1]).all()  # stride 8
    assert not np.array_equal(*row.clusters)
    tower = sheet.clip_features(inferencer).backbone.tower
    assert tower is inferencer.model.clip.visual


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data-root", "nowhere"],
            "nowhere/annotations/panoptic_val2017.json: no such file; draw",
        ),
        (["no.safetensors"], "no weights file no.safetensors"),
        (["--rows", "31"], "fewer than 31 rows"),
    ],
)
def test_mistakes_raise_one_message(
    toy_data: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        sheet.main(["--data-root", str(toy_data), "--device", "cpu", *arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "error: " in error and message in error


def test_wrong_suffixes_raise(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        sheet.parse_args(["--out", "sheet.gif"])
    with pytest.raises(SystemExit):
        ship.parse_args(["iter_1.pth", "out.pth"])
    assert "must end in .png or .jpg" in capsys.readouterr().err


def test_vocabulary_and_annotations_use_the_same_names() -> None:
    """Verdicts compare names."""
    from odise_mm.vocabulary import Vocabulary

    assert set(Vocabulary.load(str(sheet.VOCABULARY)).names) == {str(n) for n in names_of("all")}
    segment = Segment(1, 0, "polka-dot green triangle", 0.5, 9, True)
    assert sheet.label(segment, True) == "polka-dot\ngreen\ntriangle*"
    assert sheet.label(replace(segment, name="sky"), False, Verdict.LOOSE) == "(sky)"
