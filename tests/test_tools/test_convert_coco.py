"""tools/dataset_converters/coco.py, end to end on tiny versions of COCO's archives."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odise_mm.annotations.panoptic_io import read_panoptic_png, write_panoptic_png
from odise_mm.converters import coco as converter
from odise_mm.registry import DATASETS
from odise_mm.utils.files import LOCK_NAME
from tests.support.small_coco import SmallCoco, write_small_coco

CAPTIONS = {
    7: ["A cat on a big green lawn.", "Two dogs running"],
    3: ["Running fast!"],
    25: ["a group of dogs and the blue sky"],
}


def write_archives(root: Path, split: str = "train") -> SmallCoco:
    """Write the content of the folder after unpacking the four archives."""
    made = write_small_coco(root, split)
    folder = made.json.with_suffix("")
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"{folder.name}/{path.name}")
            archive.writestr(f"__MACOSX/{folder.name}/._{path.name}", b"no image")
    shutil.rmtree(folder)
    images = made.read()["images"]
    texts = [(i, text) for i, captions in CAPTIONS.items() for text in captions]
    captions = [dict(id=n, image_id=i, caption=text) for n, (i, text) in enumerate(texts)]
    boxes = [dict(id=1, image_id=7, category_id=17, bbox=[3, 4, 10, 10], area=100, iscrowd=0)]
    for name, entries in (("captions", captions), ("instances", boxes)):
        content = dict(images=images, annotations=entries, categories=[])
        (root / f"annotations/{name}_{split}2017.json").write_text(json.dumps(content))
    return made


@pytest.fixture
def archives(tmp_path: Path) -> SmallCoco:
    return write_archives(tmp_path / "coco", "val")


def convert(archives: SmallCoco, *options: str) -> int:
    return converter.main([str(archives.root), "--workers", "1", "--tagger", "textblob", *options])


def phrases_file(archives: SmallCoco) -> Path:
    return archives.root / f"annotations/phrases_{archives.split}2017.json"


def fails(archives: SmallCoco, capsys: pytest.CaptureFixture, *options: str) -> str:
    """Run a converter that must fail, and return its last line."""
    with pytest.raises(SystemExit) as end:
        convert(archives, *options)
    assert end.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_both_splits(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    splits = [write_archives(tmp_path, split) for split in ("train", "val")]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert convert(splits[0], "--splits", "train", "val") == 0
    output = capsys.readouterr().out
    assert "train2017: 3 images; the complete dataset has 118,287" in output
    assert "val2017: 3 images; the complete dataset has 5,000" in output
    assert all(path.read_bytes() == content for path, content in before.items())
    written = {
        path for path in tmp_path.rglob("*") if path.is_file() and path.name != LOCK_NAME
    } - set(before)
    expected = {made.png(i) for made in splits for i in CAPTIONS}
    assert written == expected | {phrases_file(made) for made in splits}, "the journal is removed"
    for made in splits:
        for image_id, ids in made.maps.items():
            assert np.array_equal(read_panoptic_png(made.png(image_id)), ids)
        content = json.loads(phrases_file(made).read_text())
        assert content["info"]["tagger"].startswith("textblob ")
        assert content["info"]["grammar"] == "both"
        assert content["phrases"] == {
            "7": [["cat", "big green lawn"], ["dogs"]],
            "3": [[]],
            "25": [["group", "dogs", "blue sky", "group of dogs"]],
        }
        phrases = f"annotations/phrases_{made.split}2017.json"
        dataset = DATASETS.build(made.config(phrases_file=phrases))
        assert dataset.get_data_info(0)["captions_phrases"] == content["phrases"]["7"]


def test_finished_work_is_not_repeated(archives: SmallCoco) -> None:
    convert(archives)
    files = [*(archives.png(i) for i in CAPTIONS), phrases_file(archives)]
    times = [path.stat().st_mtime_ns for path in files]
    archives.png(3).write_bytes(archives.png(3).read_bytes()[:-20])  # a truncated copy
    convert(archives)
    changed = [path for path, t in zip(files, times, strict=True) if path.stat().st_mtime_ns != t]
    assert changed == [archives.png(3)]
    convert(archives, "--verify-only")
    convert(archives, "--grammar", "runs")  # another grammar needs new phrases
    content = json.loads(phrases_file(archives).read_text())
    assert content["phrases"]["25"] == [["group", "dogs", "blue sky"]]


def test_phrases_continue_after_an_interruption(archives: SmallCoco) -> None:
    asked: list[str] = []

    def extract(caption: str) -> list[str]:
        asked.append(caption)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return [caption.split()[0]]

    arguments = (archives.root, "val", extract, "by hand", "first word")
    with pytest.raises(KeyboardInterrupt):
        converter.write_phrases(*arguments)
    assert not phrases_file(archives).exists(), "existing files are complete"
    converter.write_phrases(*arguments)
    assert asked == [*CAPTIONS[7], *CAPTIONS[3], *CAPTIONS[3], *CAPTIONS[25]]
    content = json.loads(phrases_file(archives).read_text())
    assert content["phrases"] == {"7": [["A"], ["Two"]], "3": [["Running"]], "25": [["a"]]}
    converter.write_phrases(*arguments)
    assert len(asked) == 5


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_bad_files_are_named(archives: SmallCoco, capsys: pytest.CaptureFixture) -> None:
    """Break one file after the other, check the message, and repair it."""
    convert(archives)
    capsys.readouterr()
    archive = archives.json.with_suffix(".zip")
    archive.rename(archive.with_suffix(".away"))
    image, png = archives.image(3), archives.png(25)
    for path, spoil, message in [
        (image, Path.unlink, f"{image}: no such file; 1 of the 3"),
        (image, lambda p: p.write_bytes(b"?"), f"{image}: not a readable image"),
        (image, lambda p: Image.new("RGB", (30, 41)).save(p), "30 x 41 pixels, but 30 x"),
        (png, Path.unlink, f"{png}: no such file"),
        (png, lambda p: p.write_bytes(b"?"), f"{png}: not a readable panoptic PNG"),
        (png, lambda p: write_panoptic_png(p, archives.maps[25][:5]), f"{png}: 33 x 5 pixels"),
        (png, lambda p: write_panoptic_png(p, archives.maps[25] + 1), f"{png}: the JSON lacks"),
        (
            png,
            lambda p: write_panoptic_png(p, archives.maps[25] * (archives.maps[25] != 95_004)),
            f"{png}: the PNG lacks segment 95004",
        ),
        (
            archives.json,
            lambda p: p.write_text("{}"),
            f"{archives.json}: not panoptic annotations in COCO's format",
        ),
        (archives.json, lambda p: p.write_text("{"), f"{archives.json}: not JSON"),
        (archives.json, Path.unlink, "panoptic_annotations_trainval2017.zip"),
    ]:
        good = path.read_bytes()
        spoil(path)
        output = fails(archives, capsys)
        assert output.startswith("error: ") and message in output, output
        path.write_bytes(good)
    assert convert(archives, "--verify-only") == 0


def test_bad_captions_and_instances_raise(
    archives: SmallCoco, capsys: pytest.CaptureFixture
) -> None:
    captions = archives.root / "annotations/captions_val2017.json"
    instances = archives.root / "annotations/instances_val2017.json"
    for path, change, message in [
        (
            captions,
            lambda c: c["annotations"][1].update(image_id=8),
            "1 belongs to image id 8",
        ),
        (captions, lambda c: c["annotations"][1].pop("caption"), "annotation 1 has no `caption`"),
        (captions, lambda c: c.pop("images"), "not captions in COCO's format"),
        (
            captions,
            lambda c: (c["images"].pop(0), c["annotations"].__delitem__(slice(2))),
            "phrases_val2017.json: 1 images of panoptic_val2017.json are missing (the first: 7)",
        ),
        (
            instances,
            lambda c: c["images"].pop(0),
            f"{instances}: annotation 1 belongs to image id 7,",
        ),
        (
            instances,
            lambda c: (c["images"].pop(0), c["annotations"].clear()),
            f"{instances}: image id 7 is missing",
        ),
        (instances, lambda c: c["annotations"][0].pop("bbox"), "annotation 1 has no `bbox`"),
    ]:
        good = path.read_text()
        edit(path, change)
        assert message in fails(archives, capsys)
        path.write_text(good)
    instances.unlink()
    assert "no such file; unpack annotations_trainval2017.zip" in fails(archives, capsys)


def test_missing_or_damaged_archives_raise(
    archives: SmallCoco, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    archive = archives.json.with_suffix(".zip")
    good = archive.read_bytes()
    archive.write_bytes(good[: len(good) // 2])
    assert f"{archive}: damaged" in fails(archives, capsys)
    archive.unlink()
    assert "panoptic_val2017: no such folder; unpack" in fails(archives, capsys)
    shutil.rmtree(archives.root / "val2017")
    assert "val2017: no such folder; unpack val2017.zip" in fails(archives, capsys)
    shutil.rmtree(archives.root)
    assert f"{archives.root}: no such folder" in fails(archives, capsys)


def test_verification_of_a_sample_and_of_all_files(
    archives: SmallCoco, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(archives)
    monkeypatch.setattr(converter, "SAMPLE", 1)
    archives.png(3).write_bytes(b"?")  # the second annotation of three
    assert convert(archives, "--verify-only") == 0
    assert "PNG files (one of 3 read)" in capsys.readouterr().out
    assert str(archives.png(3)) in fails(archives, capsys, "--verify-only", "--verify", "all")
