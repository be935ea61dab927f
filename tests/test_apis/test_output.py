"""Folders of results: replaced as a whole, resumable, and protected from other files and runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odise_mm.annotations.panoptic_io import ids_to_rgb, read_coco_panoptic
from odise_mm.apis import OpenVocabInferencer
from odise_mm.errors import OutputError, PanopticFileError
from odise_mm.utils.files import FolderLock
from tests.support.fake_segmentor import CONFIG

ONLY_PANOPTIC = {"model.test_cfg.semantic": False, "model.test_cfg.instance": False}


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "fake.py").write_text(CONFIG)
    return str(tmp_path / "fake.py")


@pytest.fixture
def inferencer(config: str) -> OpenVocabInferencer:
    return OpenVocabInferencer(config, device="cpu", cfg_options=ONLY_PANOPTIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(5):
        Image.new("RGB", (20 + index, 16), (50 * index, 90, 200)).save(folder / f"p{index}.png")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of all files except the lock."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.name != ".odise_mm.lock"
    }


def part_of_a_run(inferencer: OpenVocabInferencer, images: object, out: Path, count: int, **kwargs):
    """Interrupt a run after ``count`` results, and return these."""
    run = inferencer.stream(images, out_dir=out, **kwargs)
    found = [next(run) for _ in range(count)]
    run.close()
    return found


# --- one run after another ----------------------------------------------------------------------


def test_repeated_run_gives_the_same_files(inferencer, photos, tmp_path) -> None:
    inferencer(photos, out_dir=tmp_path / "out")
    first = contents(tmp_path / "out")
    assert len(first) == 1 + 2 * 5 and "panoptic.json" in first
    inferencer(photos, out_dir=tmp_path / "out")
    assert contents(tmp_path / "out") == first


def test_another_run_replaces_only_our_files(inferencer, photos, tmp_path) -> None:
    out = tmp_path / "out"
    inferencer([photos / "p0.png", photos / "p1.png"], out_dir=out)
    (out / "notes.txt").write_text("mine")
    (out / "vis" / "mine.jpg").write_bytes(b"mine")
    shutil.copy(photos / "p0.png", out / "panoptic" / "mine.png")
    inferencer([photos / "p1.png", photos / "p2.png"], texts="bird; fish", out_dir=out)
    assert sorted(contents(out)) == [
        "notes.txt",
        "panoptic.json",
        "panoptic/mine.png",
        "panoptic/p1.png",
        "panoptic/p2.png",
        "vis/mine.jpg",
        "vis/p1.jpg",
        "vis/p2.jpg",
    ]
    assert {s.name for r in read_coco_panoptic(out / "panoptic.json") for s in r.segments} == {
        "bird",
        "fish",
    }


def test_a_run_without_drawings_removes_earlier_drawings(inferencer, photos, tmp_path) -> None:
    out = tmp_path / "out"
    inferencer(photos, out_dir=out)
    inferencer([photos / "p0.png"], out_dir=out, draw=False)
    assert set(contents(out)) == {"panoptic.json", "panoptic/p0.png"}


def test_a_run_without_results_keeps_earlier_results(inferencer, photos, tmp_path) -> None:
    out = tmp_path / "out"
    inferencer(photos, out_dir=out)
    before = contents(out)
    inferencer([tmp_path / "missing.jpg"] * 2, out_dir=out)
    assert contents(out) == before


def test_a_failure_to_write_the_json_file_keeps_the_earlier_one(
    inferencer, photos, tmp_path, monkeypatch
) -> None:
    out = tmp_path / "out"
    inferencer(photos, out_dir=out)
    before = (out / "panoptic.json").read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("odise_mm.annotations.panoptic_io.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        inferencer(photos, texts="bird; fish", out_dir=out)
    monkeypatch.undo()
    assert (out / "panoptic.json").read_bytes() == before
    # The run can be resumed without processing an image again.
    inferencer.model.batches.clear()
    inferencer(photos, texts="bird; fish", out_dir=out, resume=True)
    assert not inferencer.model.batches
    assert read_coco_panoptic(out / "panoptic.json")[0].segments[0].name == "bird"


# --- an interrupted run -------------------------------------------------------------------------


def test_earlier_results_are_kept_until_a_run_is_complete(inferencer, photos, tmp_path) -> None:
    out = tmp_path / "out"
    inferencer([photos / "p0.png", photos / "p4.png"], out_dir=out)
    before = contents(out)
    images = [photos / "p1.png", photos / "p2.png"]
    for kwargs in ({}, dict(resume=True)):
        part_of_a_run(inferencer, images, out, 1, **kwargs)
        after = contents(out)
        assert {name: after.get(name) for name in before} == before
        assert set(after) - set(before) == {
            "panoptic.journal",
            "panoptic/p1.png",
            "vis/p1.jpg",
        }
    inferencer(images, out_dir=out, resume=True)
    assert {Path(name).stem for name in contents(out)} == {"p1", "p2", "panoptic"}
    assert len(read_coco_panoptic(out / "panoptic.json")) == 2


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_interrupted_run_is_resumed(inferencer, photos, tmp_path, batch_size) -> None:
    whole = inferencer(photos, out_dir=tmp_path / "whole", return_vis=True)
    part_of_a_run(inferencer, photos, tmp_path / "out", 2)
    assert len(read_coco_panoptic(tmp_path / "out" / "panoptic.json")) == 2
    inferencer.model.batches.clear()
    again = inferencer(
        photos,
        out_dir=tmp_path / "out",
        resume=True,
        batch_size=batch_size,
        return_vis=True,
    )
    assert sum(map(len, inferencer.model.batches)) == 3
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    for one, other in zip(whole, again, strict=True):
        assert one.segments == other.segments and one.class_names == other.class_names
        assert np.array_equal(one.panoptic, other.panoptic)
        assert np.array_equal(one.visualization, other.visualization)
        assert (one.image_path, one.width, one.height) == (
            other.image_path,
            other.width,
            other.height,
        )
        assert other.random_weights and set(one.files) == set(other.files)


def test_after_a_kill_the_next_run_writes_the_json_file(inferencer, photos, tmp_path) -> None:
    inferencer(photos, out_dir=tmp_path / "whole")
    out = tmp_path / "out"
    child = os.fork()
    if not child:
        run = inferencer.stream(photos, out_dir=out, progress=False)
        for _ in range(3):
            next(run)
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert not (out / "panoptic.json").exists()
    with pytest.raises(PanopticFileError, match="is incomplete; run its command again to continue"):
        read_coco_panoptic(out / "panoptic.json")
    with (out / "panoptic.journal").open("a") as file:
        file.write('{"position": 3, "sou')  # like a kill in the middle of a line
    inferencer.model.batches.clear()
    inferencer(photos, out_dir=out, resume=True)
    assert len(inferencer.model.batches) == 2
    assert contents(out) == contents(tmp_path / "whole")


def test_damaged_or_changed_images_are_processed_again(inferencer, photos, tmp_path) -> None:
    out = tmp_path / "out"
    part_of_a_run(inferencer, photos, out, 4)
    (out / "panoptic" / "p0.png").unlink()
    (out / "vis" / "p1.jpg").write_bytes(b"")
    other = np.full((16, 22), 2, np.int32)
    Image.fromarray(ids_to_rgb(other)).save(out / "panoptic" / "p2.png")
    Image.new("RGB", (9, 9)).save(photos / "p3.png")
    inferencer.model.batches.clear()
    with pytest.raises(OutputError, match="p2.png: already exists"):
        inferencer(photos, out_dir=out, resume=True)
    (out / "panoptic" / "p2.png").unlink()
    inferencer(photos, out_dir=out, resume=True)
    assert len(inferencer.model.batches) == 5
    inferencer(photos, out_dir=tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(texts="bird"), r"different settings: names \(cat; dog, \w+; now bird, \w+\)"),
        (dict(fill="mean"), r"images_drawn \(yes; now yes, in mean colors\)"),
        (dict(draw=False), r"different settings: images_drawn \(yes; now no\)"),
        (dict(images="p0.png"), r"different settings: images \(5 from .*p0.png, \w+; now 1 from"),
    ],
)
def test_a_run_with_other_settings_is_not_resumed(
    inferencer, photos, tmp_path, change, message
) -> None:
    out = tmp_path / "out"
    part_of_a_run(inferencer, photos, out, 2)
    before = contents(out)
    images = photos / change.pop("images", ".")
    with pytest.raises(OutputError, match=message):
        inferencer.stream(images, out_dir=out, resume=True, **change)
    assert contents(out) == before
    inferencer(images, out_dir=out, overwrite=True, **change)  # starts over
    assert "panoptic.journal" not in contents(out)
    assert len(read_coco_panoptic(out / "panoptic.json")) == (1 if "p0" in str(images) else 5)


def test_changes_of_the_models_settings_are_detected(photos, config, tmp_path) -> None:
    out = tmp_path / "out"
    options = dict(ONLY_PANOPTIC, **{"model.fail_from": 7})
    part_of_a_run(OpenVocabInferencer(config, device="cpu"), photos, out, 2)
    other = OpenVocabInferencer(config, device="cpu", cfg_options=options)
    with pytest.raises(OutputError, match="different settings: config"):
        other.stream(photos, out_dir=out, resume=True)


def test_failed_images_keep_their_position_when_a_run_is_resumed(
    inferencer, photos, tmp_path
) -> None:
    images = [photos / "p0.png", photos / "none.png", photos / "p1.png", photos / "p2.png"]
    inferencer(images, out_dir=tmp_path / "whole")
    part_of_a_run(inferencer, images, tmp_path / "out", 3)
    results = inferencer(images, out_dir=tmp_path / "out", resume=True)
    assert [r.ok for r in results] == [True, False, True, True]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_names_keep_their_folders(inferencer, photos, tmp_path) -> None:
    """In all ways to give the images, also when a run is resumed, and when it is replaced."""
    shutil.copytree(photos, tmp_path / "more")
    images = [photos, tmp_path / "more"]
    inferencer(images, out_dir=tmp_path / "whole")
    part_of_a_run(inferencer, images, tmp_path / "out", 7)
    inferencer(images, out_dir=tmp_path / "out", resume=True)
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "out") == whole
    assert {"panoptic/photos/p4.png", "vis/photos/p4.jpg", "panoptic/more/p4.png"} <= whole.keys()
    names = [result.image_name for result in read_coco_panoptic(tmp_path / "whole/panoptic.json")]
    assert names == [f"{folder}/p{i}.png" for folder in ("photos", "more") for i in range(5)]
    inferencer([*sorted(photos.iterdir()), tmp_path / "more"], out_dir=tmp_path / "files")
    assert contents(tmp_path / "files") == whole
    pattern = str(tmp_path / "m*/**/p*.png")
    inferencer(pattern, out_dir=tmp_path / "whole")
    left = {name for name in contents(tmp_path / "whole") if "/" in name}
    assert left == {f"{kind}/more/p{i}.{end}" for kind, end in KINDS for i in range(5)}
    assert not (tmp_path / "whole/vis/photos").exists()


KINDS = (("panoptic", "png"), ("vis", "jpg"))


def test_equal_names_of_one_folder_stay_distinct(inferencer, photos, tmp_path) -> None:
    (photos / "P1.bmp").write_bytes((photos / "p1.png").read_bytes())
    inferencer(photos, out_dir=tmp_path / "out")
    assert "panoptic/p1_2.png" in contents(tmp_path / "out")
    inferencer(iter([photos / "p1.png", photos / "p2.png"]), out_dir=tmp_path / "stream")
    assert "panoptic/p1.png" in contents(tmp_path / "stream")  # folders are not known beforehand


def test_folders_with_names_of_outputs(inferencer, photos, tmp_path) -> None:
    shutil.copytree(photos, photos / "p1.png.png")
    inferencer([photos, photos / "p1.png.png"], out_dir=tmp_path / "out")
    written = contents(tmp_path / "out")
    assert {"panoptic/p1.png", "panoptic/p1.png.png_/p1.png"} <= written.keys()


# --- index and maps -----------------------------------------------------------------------------


def test_maps_of_another_run_are_detected(inferencer, photos, tmp_path) -> None:
    inferencer(photos, out_dir=tmp_path / "one")
    for path in photos.iterdir():
        Image.new("RGB", (30, 30)).save(path)
    inferencer(photos, out_dir=tmp_path / "two")
    shutil.copy(tmp_path / "one/panoptic/p1.png", tmp_path / "two/panoptic/p1.png")
    with pytest.raises(PanopticFileError, match=r"annotations\[1\] \(p1.png\) does not match the"):
        read_coco_panoptic(tmp_path / "two" / "panoptic.json")


def test_changed_maps_with_equal_areas_are_detected(inferencer, photos, tmp_path) -> None:
    inferencer(photos, out_dir=tmp_path / "out")
    path = tmp_path / "out" / "panoptic" / "p0.png"
    with Image.open(path) as image:
        turned = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned.save(path)
    with pytest.raises(PanopticFileError, match="does not match the map"):
        read_coco_panoptic(tmp_path / "out" / "panoptic.json")


# --- protection of other files ------------------------------------------------------------------


def test_one_run_at_a_time(inferencer, photos, tmp_path) -> None:
    out = tmp_path / "out"
    with FolderLock(out, "a test"), pytest.raises(OutputError, match=r"in use by .*\(a test\)"):
        inferencer.stream(photos, out_dir=out)
    first = inferencer.stream(photos, out_dir=out)
    second = inferencer.stream(photos, out_dir=out)
    next(first)
    with pytest.raises(OutputError, match=f"in use by process {os.getpid()} "):
        next(second)
    assert len(list(first)) == 4
    assert len(read_coco_panoptic(out / "panoptic.json")) == 5


@pytest.mark.parametrize("part", ["vis", "panoptic"])
def test_images_are_not_replaced_by_their_results(inferencer, tmp_path, part) -> None:
    folder = tmp_path / "trip" / part
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "a.jpg")
    Image.new("RGB", (8, 8), "red").save(folder / "b.png")
    before = contents(folder)
    with pytest.raises(OutputError, match="would replace an input"):
        inferencer.stream(folder, out_dir=tmp_path / "trip")
    with pytest.raises(OutputError, match="would replace an input"):
        inferencer.stream(folder, out_dir=tmp_path / "trip", overwrite=True)
    with pytest.raises(OutputError, match="would replace an input"):  # not known beforehand
        list(inferencer.stream(iter([folder]), out_dir=tmp_path / "trip", overwrite=True))
    after = contents(folder)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("kind", ["symlink", "hard link", "folder"])
def test_links_to_images_are_not_replaced(inferencer, photos, tmp_path, kind) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if kind == "folder":
        (out / "panoptic").symlink_to(photos)
    else:
        (out / "panoptic").mkdir()
        link = (out / "panoptic" / "p3.png").symlink_to if kind == "symlink" else None
        target = photos / "p3.png"
        link(target) if link else os.link(target, out / "panoptic" / "p3.png")
    before = contents(photos)
    with pytest.raises(OutputError, match="would replace an input"):
        inferencer.stream(photos, out_dir=out, overwrite=True)
    assert contents(photos) == before


def test_the_other_files_of_a_call_are_not_replaced(config, photos, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    names = out / "panoptic.json"
    names.write_text('[{"id": 1, "name": "cat", "isthing": 1}]')
    inferencer = OpenVocabInferencer(config, device="cpu")
    with pytest.raises(OutputError, match="panoptic.json: would replace an input"):
        inferencer.stream(photos, vocabulary=str(names), out_dir=out, overwrite=True)
    os.link(config, out / "panoptic.journal")
    names.unlink()
    with pytest.raises(OutputError, match="panoptic.journal: would replace an input"):
        inferencer.stream(photos, out_dir=out)


def test_foreign_files_are_replaced_only_with_overwrite(inferencer, photos, tmp_path) -> None:
    for name in ("panoptic.json", "panoptic/p1.png", "vis/p2.jpg"):
        out = tmp_path / name.replace("/", "_")
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text('{"annotations": [], "images": []}')
        with pytest.raises(OutputError, match="was not written by this program"):
            inferencer.stream(photos, out_dir=out)
        assert set(contents(out)) == {name}
        inferencer(photos, out_dir=out, overwrite=True)
        assert len(read_coco_panoptic(out / "panoptic.json")) == 5


@pytest.mark.parametrize("name", ["panoptic.json", "panoptic.journal"])
def test_folders_in_place_of_files_are_detected_early(inferencer, photos, tmp_path, name) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(OutputError, match=f"{name}: is a folder"):
        inferencer.stream(photos, out_dir=tmp_path / "out")


@pytest.mark.parametrize("name", [".", "panoptic", "vis"])
def test_files_in_place_of_folders_are_detected_early(inferencer, photos, tmp_path, name) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    with pytest.raises(OutputError, match="is not a folder"):
        inferencer.stream(photos, out_dir=tmp_path / "out")


# --- names --------------------------------------------------------------------------------------


def test_images_with_unusual_names(inferencer, tmp_path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    names = [
        b"..jpg",
        b"a" * 251 + b".jpg",
        b"caf\xe9.jpg",
        b"con.jpg",
        b"line\nbreak.jpg",
        b"A.jpg",
        b"a.png",
    ]
    paths = [os.path.join(os.fsencode(folder), name) for name in names]
    for path in paths:
        Image.new("RGB", (8, 8)).save(os.fsdecode(path), format="PNG")
    out = tmp_path / "out"
    results = inferencer([os.fsdecode(path) for path in paths], out_dir=out)
    assert all(result.ok for result in results)
    json.loads((out / "panoptic.json").read_bytes().decode("utf-8"))
    back = read_coco_panoptic(out / "panoptic.json")
    assert [os.fsencode(result.image_name) for result in back] == names
    written = {path for result in results for path in result.files.values()}
    assert len(written) == 2 * len(names) + 1
    assert all(os.path.isfile(path) for path in written)


def test_temporary_files_of_a_killed_run_are_removed(inferencer, photos, tmp_path) -> None:
    out = tmp_path / "out"
    names = ["panoptic/.p0.png.0123abcd.tmp", "vis/.p0.jpg.0123abcd.tmp", "panoptic/.mine.tmp"]
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    inferencer(photos, out_dir=out)
    assert [name for name in names if (out / name).exists()] == ["panoptic/.mine.tmp"]
