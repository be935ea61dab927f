"""The written dataset is reproducible and valid, and the package can read it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks
from pycocotools.coco import COCO

from odise_mm.annotations.panoptic_io import read_panoptic_png
from odise_mm.converters import coco
from odise_mm.converters.claims import MADE
from odise_mm.converters.verification import verify_instances, verify_panoptic
from odise_mm.datasets import PanopticDataset
from odise_mm.datasets.seeding import SeededIndex
from projects.toy_world import generate, show
from projects.toy_world.captions import plural
from projects.toy_world.names import (
    NAMES,
    NEW_NAMES,
    NOVEL_THINGS,
    vocabulary,
    vocabulary_file,
)
from projects.toy_world.tests.conftest import TRAIN, VAL, WEB
from projects.toy_world.world import scene


def content(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != MADE
    }


def read(root: Path, name: str) -> dict:
    return json.loads((root / f"annotations/{name}2017.json").read_text(encoding="utf-8"))


def write(root: Path, *options: str) -> None:
    assert generate.main([str(root), *options]) == 0


def test_two_processes_write_the_same_bytes(toy_data: Path, tmp_path: Path) -> None:
    options = dict(split="train", number=TRAIN, seed=5, novel_in_train=True)
    generate.write_split(tmp_path, options, workers=2)
    two, one = content(tmp_path), content(toy_data)
    assert len(two) == 2 * TRAIN + 3  # and no journal
    assert two == {path: one[path] for path in two}


def test_small_dataset_is_the_beginning_of_a_large_one(toy_data: Path, tmp_path: Path) -> None:
    write(tmp_path, "--splits", "val", "--number", "3", "--seed", "5", "--workers", "1")
    small, large = content(tmp_path), content(toy_data)
    image_files = [path for path in small if not path.endswith(".json")]
    assert len(image_files) == 6 and all(small[path] == large[path] for path in image_files)
    write(tmp_path / "other", "--splits", "val", "--number", "3", "--seed", "6", "--workers", "1")
    assert content(tmp_path / "other")[image_files[0]] != small[image_files[0]]


def test_interrupted_run_continues(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    options = ["--splits", "val", "--number", str(VAL), "--seed", "5", "--workers", "1"]
    draw = generate.draw
    drawn: list[int] = []

    def until_the_disk_is_full(item):
        drawn.append(item.data[1])
        if len(drawn) == 11:
            raise OSError("no space left")
        return draw(item)

    monkeypatch.setattr(generate, "draw", until_the_disk_is_full)
    with pytest.raises(SystemExit) as stopped:
        generate.main([str(tmp_path), *options])
    assert stopped.value.code == 2
    assert "000000000011.jpg: no space left" in capsys.readouterr().err
    write(tmp_path, *options)
    assert drawn[11:] == list(range(10, VAL))  # the ten finished scenes are not drawn again
    expected = content(toy_data)
    assert all(expected[path] == digest for path, digest in content(tmp_path).items())
    write(tmp_path, *options)
    assert len(drawn) == 11 + VAL - 10


def test_other_options_raise_until_the_old_split_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    options = ["--splits", "val", "--number", "4", "--workers", "1"]
    write(tmp_path, *options)
    with pytest.raises(SystemExit) as stopped:
        generate.main([str(tmp_path), *options, "--seed", "3"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "captions_val2017.json" in error and "seed 0 instead of 3" in error
    # after removing that file, nothing of the old split is left, not even its phrases
    (tmp_path / "annotations/captions_val2017.json").unlink()
    write(tmp_path, *options, "--seed", "3")
    write(tmp_path / "fresh", *options, "--seed", "3")
    fresh = content(tmp_path / "fresh")
    assert {path: content(tmp_path)[path] for path in fresh} == fresh


def test_new_names_are_listed_on_request(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--splits", "val", "--number", "4", "--workers", "1"]
    write(tmp_path, *options, "--new-share", "0.5")
    content = json.loads((tmp_path / "annotations/panoptic_val2017.json").read_text())
    listed = {category["id"] for category in content["categories"]}
    shown = {s["category_id"] for image in content["annotations"] for s in image["segments_info"]}
    assert len(listed) == len(NAMES) + len(NEW_NAMES) and shown <= listed
    assert any(category > len(NAMES) for category in shown)
    with pytest.raises(SystemExit):
        generate.main([str(tmp_path / "train"), "--splits", "train", "--new-share", "0.5"])
    assert "--new-share is for the split 'val'" in capsys.readouterr().err


def write_foreign_files(root: Path, split: str = "val") -> None:
    """Write annotations and images in COCO's layout, without captions."""
    for name in ("panoptic", "instances", "phrases"):
        path = root / f"annotations/{name}_{split}2017.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"precious": true}')
    for folder in (f"{split}2017", f"annotations/panoptic_{split}2017"):
        (root / folder).mkdir()
        (root / folder / "000000000001.jpg").write_text("precious")
        (root / folder / "000000000001.png").write_text("precious")


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        generate.main([*arguments, "--number", "2", "--workers", "1"])
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_foreign_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_foreign_files(tmp_path)
    before = content(tmp_path)
    for split in ("val", "train", "web"):
        line = refused(capsys, str(tmp_path), "--splits", split)
        assert "contains files that this program did not write" in line
    assert content(tmp_path) == before and not (tmp_path / MADE).exists()


@pytest.mark.parametrize("gone", [(), ("panoptic", "instances", "phrases")])
def test_foreign_split_beside_an_own_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, gone: tuple[str, ...]
) -> None:
    """Also if only its images exist."""
    write(tmp_path, "--splits", "web", "--number", "2", "--workers", "1")
    write_foreign_files(tmp_path)
    for name in gone:
        (tmp_path / f"annotations/{name}_val2017.json").unlink()
    before = content(tmp_path)
    line = refused(capsys, str(tmp_path), "--splits", "val")
    assert "val2017" in line and "was not written by this program" in line
    assert content(tmp_path) == before
    # the own split can be drawn again after removing its captions
    (tmp_path / "annotations/captions_web2017.json").unlink()
    write(tmp_path, "--splits", "web", "--number", "2", "--workers", "1", "--seed", "4")


def test_folder_without_record_is_recognized_by_its_captions(tmp_path: Path) -> None:
    options = ["--number", "2", "--workers", "1", "--splits"]
    write(tmp_path, *options, "web")
    before = content(tmp_path)
    (tmp_path / MADE).unlink()
    write(tmp_path, *options, "web")
    assert content(tmp_path) == before
    write(tmp_path, *options, "val")
    assert (tmp_path / MADE).exists() and before.items() < content(tmp_path).items()


def test_unfinished_work_of_other_options_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupt seed 1, let seed 2 overwrite its files, and run seed 1 again."""
    options = ["--splits", "val", "--number", "4", "--workers", "1", "--seed"]
    draw = generate.draw

    def until_two(item):
        if item.data[1] == 2:
            raise OSError("stopped")
        return draw(item)

    monkeypatch.setattr(generate, "draw", until_two)
    for seed in ("1", "2"):
        with pytest.raises(SystemExit):
            generate.main([str(tmp_path), *options, seed])
    monkeypatch.undo()
    write(tmp_path, *options, "1")
    write(tmp_path / "fresh", *options, "1")
    fresh = content(tmp_path / "fresh")
    assert {path: content(tmp_path)[path] for path in fresh} == fresh


@pytest.mark.parametrize("split", ["train", "val"])
def test_files_are_valid_coco(toy_data: Path, split: str) -> None:
    """Run the package's checks, and compare with the drawn scenes."""
    number = dict(train=TRAIN, val=VAL)[split]
    path = toy_data / f"annotations/panoptic_{split}2017.json"
    images = toy_data / f"{split}2017"
    assert verify_panoptic(path, path.with_suffix(""), images).images == number
    things = verify_instances(toy_data / f"annotations/instances_{split}2017.json", images)
    panoptic = read(toy_data, f"panoptic_{split}")
    is_thing = {c["id"]: c["isthing"] for c in panoptic["categories"]}
    segments = [s for a in panoptic["annotations"] for s in a["segments_info"]]
    assert things.segments == sum(is_thing[s["category_id"]] for s in segments)
    assert not any(s["iscrowd"] for s in segments)
    for index in (0, number - 1):
        made = scene((5, index), split)
        stem = f"{index + 1:012d}"
        stored_ids = read_panoptic_png(path.with_suffix("") / f"{stem}.png")
        assert np.array_equal(stored_ids, made.panoptic)
        stored = np.asarray(Image.open(images / f"{stem}.jpg")).astype(int)
        assert np.abs(stored - made.image).mean() < 4  # JPEG


def test_pycocotools_reads_instances_and_captions(
    toy_data: Path, capsys: pytest.CaptureFixture
) -> None:
    instances = COCO(toy_data / "annotations/instances_val2017.json")
    captions = COCO(toy_data / "annotations/captions_val2017.json")
    for i in instances.getImgIds():
        ids = read_panoptic_png(toy_data / f"annotations/panoptic_val2017/{i:012d}.png")
        for annotation in instances.loadAnns(instances.getAnnIds(imgIds=i)):
            mask = instances.annToMask(annotation).astype(bool)
            assert mask.sum() == annotation["area"]
            assert list(masks.toBbox(annotation["segmentation"])) == annotation["bbox"]
            assert len(np.unique(ids[mask])) == 1
            assert np.array_equal(mask, ids == ids[mask][0])
        assert len(captions.getAnnIds(imgIds=i)) == 5
    names = {c["id"]: c["name"] for c in instances.loadCats(instances.getCatIds())}
    assert names == {name.category: str(name) for name in NAMES if name.is_thing}


def test_no_file_of_the_training_split_has_a_novel_name(toy_data: Path) -> None:
    novel = {text for name in NOVEL_THINGS for text in name.synonyms}
    novel |= {plural(text) for text in novel}
    categories = {name.category for name in NOVEL_THINGS}
    for kind in ("panoptic", "instances"):
        found = read(toy_data, f"{kind}_train")
        assert not categories & {c["id"] for c in found["categories"]}
        assert not novel & {c["name"] for c in found["categories"]}
    segments = [
        s for a in read(toy_data, "panoptic_train")["annotations"] for s in a["segments_info"]
    ]
    assert not categories & {s["category_id"] for s in segments}
    annotations = read(toy_data, "instances_train")["annotations"]
    assert not categories & {a["category_id"] for a in annotations}
    captions = [a["caption"].lower() for a in read(toy_data, "captions_train")["annotations"]]
    phrases = [p for i in read(toy_data, "phrases_train")["phrases"].values() for c in i for p in c]
    assert len(captions) == 5 * TRAIN and len(phrases) > 5 * TRAIN
    for text in captions + phrases:
        padded = f" {text.rstrip('.').replace(',', '')} "
        assert not any(f" {name} " in padded for name in novel), text
    # the other split has novel names, so the test would find them
    others = [a["caption"].lower() for a in read(toy_data, "captions_val")["annotations"]]
    assert any(f" {name} " in f" {text} " for text in others for name in novel)
    void = [
        (read_panoptic_png(path) == 0).any()
        for path in (toy_data / "annotations/panoptic_train2017").iterdir()
    ]
    assert any(void) and not all(void)


def test_training_without_novel_things_has_no_void(tmp_path: Path) -> None:
    write(tmp_path, "--splits", "train", "--number", "40", "--no-novel-in-train", "--workers", "1")
    for path in (tmp_path / "annotations/panoptic_train2017").iterdir():
        assert read_panoptic_png(path).all()


def test_web_has_images_and_captions_with_all_names(toy_data: Path) -> None:
    captions = read(toy_data, "captions_web")
    assert len(captions["images"]) == WEB and len(captions["annotations"]) == 5 * WEB
    assert len(list((toy_data / "web2017").iterdir())) == WEB
    assert not list((toy_data / "annotations").glob("panoptic_web*"))


@pytest.mark.parametrize(("split", "subset"), [("train", "base"), ("val", "all")])
def test_dataset_loads_like_coco(toy_data: Path, split: str, subset: str) -> None:
    dataset = PanopticDataset(
        vocabulary=str(vocabulary_file(subset)),
        data_root=str(toy_data),
        ann_file=f"annotations/panoptic_{split}2017.json",
        data_prefix=dict(img=f"{split}2017/", seg=f"annotations/panoptic_{split}2017/"),
        phrases_file=f"annotations/phrases_{split}2017.json",
        captions_file=f"annotations/captions_{split}2017.json",
        pipeline=[
            dict(type="LoadImage"),
            dict(type="LoadPanopticMap"),
            dict(type="PanopticMapToMasks"),
            dict(type="DrawWords", num_words=8),
        ],
    )
    assert len(dataset) == dict(train=TRAIN, val=VAL)[split]
    names = vocabulary(subset).names
    for index in range(10):
        item = dataset[SeededIndex(index, 1)]
        segments = [s for s in scene((5, index), split).segments]
        found = sorted(
            (names[label], int(mask.sum()))
            for label, mask in zip(item["gt_bboxes_labels"], item["gt_masks"].masks, strict=True)
        )
        assert found == sorted((str(s.name), s.area) for s in segments)
        assert len(item["words"]) == 8 and item["caption"] in item["captions"]


def test_coco_converter_accepts_it(toy_data: Path) -> None:
    arguments = [str(toy_data), "--splits", "train", "val", "--verify", "all", "--workers", "1"]
    before = content(toy_data)
    assert coco.main([*arguments, "--verify-only"]) == 0
    assert content(toy_data) == before


def test_verification_finds_a_missing_image(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--splits", "web", "--number", "3", "--workers", "1"]
    write(tmp_path, *options)
    (tmp_path / "web2017/000000000002.jpg").unlink()
    with pytest.raises(SystemExit):
        generate.main([str(tmp_path), *options, "--verify-only"])
    assert "000000000002.jpg: no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        generate.main([str(tmp_path), "--splits", "val", "--verify-only"])
    assert "without --verify-only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "-1"], "must be at least 0"),
        (["--splits", "train", "val", "web", "--number", "1", "2"], "takes 1 or 3 numbers"),
        (["--number", "0"], "must be at least 1"),
        (["--splits", "test"], "invalid choice"),
    ],
)
def test_wrong_options_raise(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        generate.main([str(tmp_path), *options])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("ending", "kind"), [("png", "PNG"), ("jpg", "JPEG")])
def test_suffix_of_a_sheet_sets_its_format(ending: str, kind: str, tmp_path: Path) -> None:
    out = tmp_path / f"new/sheet.{ending}"
    assert show.main(["--number", "5", "--split", "train", "--out", str(out)]) == 0
    with Image.open(out) as image:
        assert image.format == kind and min(image.size) > 300


def test_sheets_of_other_formats_raise(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        show.main(["--number", "1", "--out", str(tmp_path / "sheet.gif")])
    assert stopped.value.code == 2
    assert "must end in .png or .jpg" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_sheet_draws_each_segment_in_one_color() -> None:
    made = scene((0, 0), "train")
    shown = show.colored(made)
    for segment in made.segments:
        assert len(np.unique(shown[made.panoptic == segment.id], axis=0)) == 1
