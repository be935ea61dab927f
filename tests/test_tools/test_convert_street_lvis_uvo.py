"""Converters of Cityscapes, Mapillary Vistas, LVIS and UVO, end to end on tiny archives.

The results are compared pixel by pixel with the data that the archives were made from. Other tests
stop at a bad file and continue, or modify files after the conversion.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from pycocotools.coco import COCO

import odise_mm.evaluation  # noqa: F401  (fills the registry)
from odise_mm.annotations.panoptic_io import read_panoptic_png
from odise_mm.converters import cityscapes, lvis, mapillary, uvo
from odise_mm.converters.claims import MADE
from odise_mm.registry import DATASETS, METRICS
from odise_mm.vocabulary import Vocabulary
from tests.support import tiny_street_lvis_uvo as raw

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "tests" / "data" / "cityscapes_panoptic.json"
NAMES = ("cityscapes", "mapillary", "lvis", "uvo")


def load(path: Path) -> dict:
    return json.loads(path.read_text())


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = load(path)
    change(content)
    path.write_text(json.dumps(content))


def draw(path: Path, change: Callable[[np.ndarray], None]) -> None:
    """Change the pixels of a PNG file."""
    pixels = raw.read_pixels(path).copy()
    change(pixels)
    Image.fromarray(pixels).save(path)


def fails(main: Callable, capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Run a converter that must fail, and return its error line without the newline."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == 2
    (line,) = [n for n in capsys.readouterr().err.splitlines() if n.startswith("error: ")]
    return line


def dataset(name: str, data: Path, pipeline: list | None = None) -> object:
    """Build the test dataset of a config, with ``data`` instead of ``data/``."""
    config = Config.fromfile(ROOT / "configs" / "_base_" / "datasets" / f"{name}.py")
    settings = config.test_dataloader.dataset
    settings.data_root = str(data) + settings.data_root.removeprefix("data")
    return DATASETS.build(dict(settings, pipeline=pipeline or []))


# --- Cityscapes ---------------------------------------------------------------------------------


def test_cityscapes_equals_cityscapesscripts(tmp_path: Path) -> None:
    root = raw.prepare("cityscapes", tmp_path).root
    recorded, made = load(RECORDED), load(root / "annotations" / "panoptic_val.json")
    categories = [[c["id"], c["name"], c["isthing"]] for c in made["categories"]]
    assert categories == recorded["categories"] and len(categories) == 19
    assert len(made["annotations"]) == len(recorded["images"]) == 3
    for annotation in made["annotations"]:
        name = Path(annotation["file_name"]).name.removesuffix("_gtFine_panoptic.png")
        wanted = recorded["images"][name]
        assert annotation["segments_info"] == wanted["segments_info"]
        pixels = raw.read_pixels(root / "annotations" / "panoptic_val" / annotation["file_name"])
        assert list(pixels.shape) == wanted["shape"]
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == wanted["sha256"]


def test_cityscapes_pixel_by_pixel(tmp_path: Path) -> None:
    truth = raw.prepare("cityscapes", tmp_path)
    data = dataset("cityscapes", tmp_path)
    masks = COCO(str(truth.root / "annotations" / "instances_val.json"))
    vocabulary = Vocabulary.load("cityscapes")
    assert [c.name for c in cityscapes.CLASSES] == list(vocabulary.source_names)
    assert [c.is_thing for c in cityscapes.CLASSES] == list(vocabulary.is_thing)
    index_of = {c.id: i for i, c in enumerate(cityscapes.CLASSES)}
    assert len(data) == 3
    crowds = 0
    for index, (name, ids) in enumerate(sorted(truth.instances.items())):
        info = data.get_data_info(index)
        labels = truth.labels[name]
        assert Path(info["img_path"]) == truth.images[name]
        assert (info["height"], info["width"]) == ids.shape
        semantic = raw.read_pixels(Path(info["sem_seg_path"]))
        assert np.array_equal(semantic, np.vectorize(lambda v: index_of.get(v, 255))(labels))
        panoptic = read_panoptic_png(info["seg_map_path"])
        evaluated = {int(v) for v in np.unique(ids) if labels[ids == v][0] in index_of}
        assert np.array_equal(panoptic, np.where(np.isin(ids, list(evaluated)), ids, 0))
        assert {s["id"] for s in info["segments_info"]} == evaluated
        for segment in info["segments_info"]:
            label = index_of[labels[ids == segment["id"]][0]]
            assert segment["label"] == label and segment["is_thing"] == (label >= 11)
            assert segment["is_crowd"] == (label >= 11 and segment["id"] < 1000)
            crowds += segment["is_crowd"]
        things = {v for v in evaluated if index_of[labels[ids == v][0]] >= 11}
        found = masks.loadAnns(masks.getAnnIds(info["img_id"]))
        assert len(found) == len(things)
        for annotation in found:
            mask = masks.annToMask(annotation).astype(bool)
            (number,) = np.unique(ids[mask])
            assert np.array_equal(mask, ids == number)
            assert annotation["category_id"] == labels[mask][0]
            assert annotation["iscrowd"] == (number < 1000)
            things.remove(int(number))
        assert not things
    assert crowds == 2


def test_cityscapes_train_split_and_a_second_run(tmp_path: Path) -> None:
    root = raw.prepare("cityscapes", tmp_path).root
    written = (p for p in root.rglob("*") if p.is_file() and p.name != MADE)
    before = {p: p.stat().st_mtime_ns for p in written}
    cityscapes.main([str(root), "--splits", "train", "val", "--workers", "1"])
    assert len(load(root / "annotations" / "panoptic_train.json")["images"]) == 1
    assert before and all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert not list(root.rglob("*.journal")) and not list(root.rglob("*.tmp"))
    damaged = next(root.glob("annotations/panoptic_val/lindau/*.png"))
    good = damaged.read_bytes()
    damaged.unlink()
    cityscapes.main([str(root), "--workers", "1"])
    assert damaged.read_bytes() == good


def test_cityscapes_stops_at_a_bad_file_and_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = raw.write_raw_cityscapes(tmp_path)
    bad = next(truth.root.glob("gtFine/val/lindau/*instanceIds.png"))
    content = bad.read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    run = [str(truth.root), "--workers", "1"]
    assert str(bad) in fails(cityscapes.main, capsys, *run)
    assert not (truth.root / "annotations" / "panoptic_val.json").exists()
    assert len(list(truth.root.glob("annotations/panoptic_val/*/*.png"))) == 2
    bad.write_bytes(content)
    seen, convert = [], cityscapes._convert
    monkeypatch.setattr(
        cityscapes, "_convert", lambda item: (seen.append(item.source), convert(item))[1]
    )
    cityscapes.main(run)
    assert seen == [bad]
    interrupted = {p.name: p.read_bytes() for p in truth.root.glob("annotations/**/*.*")}
    again = raw.prepare("cityscapes", tmp_path / "other").root
    assert interrupted == {p.name: p.read_bytes() for p in again.glob("annotations/**/*.*")}


def test_cityscapes_wrong_source_files_raise(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = raw.write_raw_cityscapes(tmp_path).root
    labels = next(root.glob("gtFine/val/lindau/*labelIds.png"))
    good = labels.read_bytes()
    draw(labels, lambda pixels: pixels.fill(77))
    message = fails(cityscapes.main, capsys, root, "--workers", 1)
    assert f"{labels}: unknown label 77; Cityscapes has 0 to 33" in message
    Image.new("L", (3, 3)).save(labels)
    assert f"{labels}: 3 x 3 pixels, but its image" in fails(cityscapes.main, capsys, root)
    labels.write_bytes(good)
    labels.with_name(labels.name.replace("label", "instance")).unlink()
    assert "instanceIds.png: no such label map" in fails(
        cityscapes.main, capsys, root, "--workers", 1
    )
    (root / "leftImg8bit").rename(root / "elsewhere")
    assert "leftImg8bit_trainvaltest.zip" in fails(cityscapes.main, capsys, root)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("annotations/panoptic_val/lindau/*.png", lambda p: p.fill(7), "JSON lacks segment"),
        ("gtFine/val/lindau/*TrainIds.png", lambda p: p.fill(40), "class index 40, value 40"),
        ("gtFine/val/lindau/*TrainIds.png", lambda p: p.fill(3), "its pixels differ from"),
        ("gtFine/val/lindau/*instanceIds.png", lambda p: p.fill(7), "its pixels differ from"),
    ],
)
def test_cityscapes_modified_images_raise(
    tmp_path: Path, capsys: pytest.CaptureFixture, file: str, change: Callable, message: str
) -> None:
    root = raw.prepare("cityscapes", tmp_path).root
    (path,) = root.glob(file)
    draw(path, change)
    line = fails(cityscapes.main, capsys, root, "--verify-only", "--workers", 1)
    assert message in line and "lindau_000000_000019" in line


def drop_mask(content: dict) -> None:
    content["annotations"].pop()


def move_mask(content: dict) -> None:
    content["annotations"][0]["bbox"][0] += 1


def drop_image(content: dict) -> None:
    gone = content["images"].pop()["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != gone]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("instances_val.json", drop_mask, "8 masks in 3 images, but panoptic_val.json has 9 in 3"),
        ("instances_val.json", move_mask, "its box does not match its mask"),
        ("panoptic_val.json", drop_image, "2 images, but leftImg8bit/val has 3"),
    ],
)
def test_cityscapes_modified_annotations_raise(
    tmp_path: Path, capsys: pytest.CaptureFixture, file: str, change: Callable, message: str
) -> None:
    root = raw.prepare("cityscapes", tmp_path).root
    edit(root / "annotations" / file, change)
    line = fails(cityscapes.main, capsys, root, "--verify-only", "--workers", 1)
    assert message in line and file in line


# --- Mapillary Vistas ---------------------------------------------------------------------------


def check_vistas(truth: raw.Truth, data: Path, crowds: int) -> None:
    """Check that every number in the instance maps is a segment of its class."""
    made = dataset("mapillary", data)
    vocabulary = Vocabulary.load("mapillary")
    assert len(made) == 3 and made.vocabulary == vocabulary
    found = 0
    for index, (name, ids) in enumerate(sorted(truth.instances.items())):
        info, labels = made.get_data_info(index), truth.labels[name]
        assert Path(info["img_path"]) == truth.images[name]
        panoptic = read_panoptic_png(info["seg_map_path"])
        assert np.array_equal(panoptic == 0, labels == raw.VISTAS_VOID)
        numbers = set(np.unique(ids[labels != raw.VISTAS_VOID]).tolist())
        assert sorted(s["id"] for s in info["segments_info"]) == list(range(1, len(numbers) + 1))
        for segment in info["segments_info"]:
            mask = panoptic == segment["id"]
            (number,) = np.unique(ids[mask])
            assert np.array_equal(mask, ids == number)
            numbers.remove(int(number))
            assert segment["label"] == labels[mask][0]
            assert segment["is_thing"] == vocabulary.is_thing[segment["label"]]
            person = vocabulary.names[segment["label"]] == "person"
            assert segment["is_crowd"] == (person and crowds > 0)
            found += segment["is_crowd"]
        assert not numbers
    assert found == crowds


def test_vistas_from_the_providers_panoptic_files(tmp_path: Path) -> None:
    check_vistas(raw.prepare("mapillary", tmp_path), tmp_path, crowds=3)


def test_vistas_from_instance_maps(tmp_path: Path) -> None:
    truth = raw.write_raw_mapillary(tmp_path, panoptic=False)
    mapillary.main([str(truth.root), "--workers", "1"])
    check_vistas(truth, tmp_path, crowds=0)


def test_vistas_of_the_edition_with_both_versions(tmp_path: Path) -> None:
    truth = raw.write_raw_mapillary(tmp_path)
    (truth.root / "config.json").rename(truth.root / "config_v1.2.json")
    for split in mapillary.NUM_IMAGES:
        (truth.root / split / "v1.2").mkdir()
        for kind in ("panoptic", "labels", "instances"):
            (truth.root / split / kind).rename(truth.root / split / "v1.2" / kind)
    mapillary.main([str(truth.root), "--splits", "validation", "training", "--workers", "1"])
    check_vistas(truth, tmp_path, crowds=3)
    assert len(load(truth.root / "annotations" / "panoptic_training.json")["images"]) == 1


def test_vistas_stops_at_a_bad_file_and_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = raw.write_raw_mapillary(tmp_path)
    bad = truth.root / "validation" / "panoptic" / "val-Xy_2.png"
    content = bad.read_bytes()
    bad.write_bytes(content[:40])
    run = [str(truth.root), "--workers", "1"]
    assert str(bad) in fails(mapillary.main, capsys, *run)
    bad.write_bytes(content)
    seen, convert = [], mapillary._convert
    monkeypatch.setattr(
        mapillary, "_convert", lambda item: (seen.append(item.source), convert(item))[1]
    )
    mapillary.main(run)
    assert seen == [bad]
    check_vistas(truth, tmp_path, crowds=3)


def forget_segment(content: dict) -> None:
    infos = content["annotations"][0]["segments_info"]
    infos.remove(next(s for s in infos if s["category_id"] <= 65))


def repeat_segment(content: dict) -> None:
    content["annotations"][0]["segments_info"] *= 2


def invent_segment(content: dict) -> None:
    content["annotations"][0]["segments_info"].append(dict(id=5, category_id=1))


def unknown_category(content: dict) -> None:
    content["annotations"][0]["segments_info"][0]["category_id"] = 99


def text_category(content: dict) -> None:
    content["annotations"][0]["segments_info"][0]["category_id"] = "1"


def crowd_of_text(content: dict) -> None:
    content["annotations"][0]["segments_info"][0]["iscrowd"] = "0"


def map_outside(content: dict) -> None:
    name = content["annotations"][0]["file_name"]
    content["annotations"][0]["file_name"] = f"../../../{name}"


def forget_image(content: dict) -> None:
    content["annotations"].pop(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (forget_segment, "has an evaluated class there"),
        (repeat_segment, "two segments with the same id"),
        (invent_segment, "has no pixels of segment 5"),
        (unknown_category, "has category 99, which 'categories' does not list"),
        (forget_image, "has no annotation for"),
        (text_category, "category \"1\", which 'categories' does not list (but 1 exists: one is"),
        (crowd_of_text, 'has `iscrowd` "0", not 0 or 1'),
        (map_outside, "leads outside its folder"),
    ],
)
def test_vistas_wrong_source_annotations_raise(
    tmp_path: Path, capsys: pytest.CaptureFixture, change: Callable, message: str
) -> None:
    root = raw.write_raw_mapillary(tmp_path).root
    edit(root / "validation" / "panoptic" / "panoptic_2018.json", change)
    line = fails(mapillary.main, capsys, root, "--workers", 1)
    assert message in line and "val-Xy_2" in line


def test_vistas_flags_of_text_raise(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = raw.write_raw_mapillary(tmp_path).root
    edit(root / "config.json", lambda content: content["labels"][3].update(evaluate="false"))
    line = fails(mapillary.main, capsys, root)
    assert 'config.json: number 4 of `labels` has `evaluate` "false", not 0 or 1' in line


def test_vistas_config_of_another_version_raises(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = raw.write_raw_mapillary(tmp_path).root
    edit(root / "config.json", lambda content: content["labels"][3].update(instances=True))
    line = fails(mapillary.main, capsys, root)
    assert "config.json: 65 evaluated classes" in line and "class 3, which is ('Fence'" in line
    edit(root / "config.json", lambda content: content["labels"].pop(2))
    assert "config.json: 64 evaluated classes" in fails(mapillary.main, capsys, root)
    (root / "config.json").write_text("{}")
    assert "has no list `labels`" in fails(mapillary.main, capsys, root)
    (root / "config.json").unlink()
    assert "neither config.json nor config_v1.2.json" in fails(mapillary.main, capsys, root)


def test_vistas_modified_files_raise(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = raw.prepare("mapillary", tmp_path).root
    check = [root, "--verify-only", "--workers", 1]
    png = root / "annotations" / "panoptic_validation" / "val-Xy_1.png"
    good = png.read_bytes()
    draw(png, lambda pixels: pixels.fill(1))
    assert f"{png}: the JSON lacks segment" in fails(mapillary.main, capsys, *check)
    png.write_bytes(good)
    extra = root / "validation" / "images" / "new.jpg"
    Image.new("RGB", (4, 4)).save(extra)
    assert "3 images, but" in fails(mapillary.main, capsys, *check)
    extra.unlink()
    mapillary.main([str(c) for c in check])
    edit(
        root / "annotations" / "panoptic_validation.json",
        lambda content: content["categories"][4].update(name="Border"),
    )
    assert "its categories are not those of" in fails(mapillary.main, capsys, *check)


# --- LVIS ---------------------------------------------------------------------------------------


def test_lvis_has_all_classes(tmp_path: Path) -> None:
    truth = raw.prepare("lvis", tmp_path)
    data = dataset("lvis", tmp_path)
    assert len(data) == 3 and len(data.metainfo["classes"]) == 1203
    reference = COCO(str(truth.root / "lvis_v1_val.json"))
    largest = 0
    for index, (name, path) in enumerate(truth.images.items()):
        info = data.get_data_info(index)
        assert Path(info["img_path"]).samefile(path) and name.endswith(f"{info['img_id']:012d}.jpg")
        assert (info["height"], info["width"]) == raw.SIZES[index]
        found = reference.loadAnns(reference.getAnnIds(info["img_id"]))
        assert len(info["instances"]) == len(found) == len(truth.masks[name])
        for instance, (category, mask), annotation in zip(
            info["instances"], truth.masks[name], found, strict=True
        ):
            assert instance["bbox_label"] == category - 1
            drawn = reference.annToMask(dict(annotation, segmentation=instance["mask"]))
            assert np.array_equal(drawn, mask)
            largest = max(largest, instance["bbox_label"])
    assert largest == 1202  # exceeds 1,000 classes, a limit of some id encodings


def test_lvis_files_are_not_changed(tmp_path: Path) -> None:
    raw.write_raw_lvis(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    run = [str(tmp_path / "lvis"), "--coco", str(tmp_path / "coco"), "--workers", "1"]
    lvis.main(run)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def rename_category(content: dict) -> None:
    content["categories"][1199]["name"] = "yogurt_pot"


def older_version(content: dict) -> None:
    content["categories"] = content["categories"][:1200]


def no_frequency(content: dict) -> None:
    del content["categories"][0]["frequency"]


def older_images(content: dict) -> None:
    del content["images"][1]["not_exhaustive_category_ids"]


def unknown_negative(content: dict) -> None:
    content["images"][1]["neg_category_ids"].append(1204)


def other_size(content: dict) -> None:
    content["images"][2]["height"] += 1


def other_image(content: dict) -> None:
    content["annotations"][0]["image_id"] = 4


def no_name(content: dict) -> None:
    del content["categories"][7]["name"]


def no_list(content: dict) -> None:
    content["images"][1]["neg_category_ids"] = None


def no_polygon(content: dict) -> None:
    content["annotations"][0]["segmentation"] = [[1, 2, 3]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_category, "category 1200 is 'yogurt_pot', but in LVIS v1 it is '"),
        (older_version, "1200 categories, but LVIS v1 has 1203"),
        (no_frequency, "category 'aerosol_can' has no `frequency` r, c or f"),
        (older_images, "image 37777 has no `not_exhaustive_category_ids`"),
        (unknown_negative, "image 37777: category 1204 in neg_category_ids"),
        (other_size, "000000391895.jpg: 64 x 31 pixels, but 64 x 32 in the JSON"),
        (other_image, "annotation 1 belongs to image id 4, which `images` does not list"),
        (no_name, "lvis_v1_val.json: category 8 has no `name`"),
        (no_list, "lvis_v1_val.json: image 37777 has `neg_category_ids` null"),
        (no_polygon, "of its mask has 3 numbers"),
    ],
)
def test_lvis_wrong_annotations_raise(
    tmp_path: Path, capsys: pytest.CaptureFixture, change: Callable, message: str
) -> None:
    raw.write_raw_lvis(tmp_path)
    edit(tmp_path / "lvis" / "lvis_v1_val.json", change)
    run = [tmp_path / "lvis", "--coco", tmp_path / "coco", "--workers", 1]
    assert message in fails(lvis.main, capsys, *run)


def test_lvis_unusable_masks_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    raw.write_raw_lvis(tmp_path)

    def shrink(content: dict) -> None:
        content["annotations"][0]["segmentation"] = [[1, 2]]

    edit(tmp_path / "lvis" / "lvis_v1_val.json", shrink)
    lvis.main([str(tmp_path / "lvis"), "--coco", str(tmp_path / "coco"), "--workers", "1"])
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "annotations without a usable mask" in shown and "the first: annotation 1 of image" in shown
    )


def test_lvis_file_names_are_ignored(tmp_path: Path) -> None:
    """Only ``coco_url`` has COCO's folders; dataset and converter use it."""
    raw.write_raw_lvis(tmp_path)
    before = [dataset("lvis", tmp_path).get_data_info(i)["img_path"] for i in range(3)]

    def name(content: dict) -> None:
        for image in content["images"]:
            image["file_name"] = image["coco_url"].rpartition("/")[2]

    edit(tmp_path / "lvis" / "lvis_v1_val.json", name)
    lvis.main([str(tmp_path / "lvis"), "--coco", str(tmp_path / "coco"), "--workers", "1"])
    made = dataset("lvis", tmp_path)
    assert [made.get_data_info(i)["img_path"] for i in range(3)] == before
    assert all(Path(path).is_file() for path in before)


def test_lvis_missing_images_raise(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    truth = raw.write_raw_lvis(tmp_path)
    run = [tmp_path / "lvis", "--coco", tmp_path / "coco", "--workers", 1]
    path = truth.images["train2017/000000391895.jpg"]
    path.unlink()
    assert f"{path}: no such file" in fails(lvis.main, capsys, *run)
    (tmp_path / "coco").rename(tmp_path / "elsewhere")
    assert "no such folder; unpack COCO 2017" in fails(lvis.main, capsys, *run)
    (tmp_path / "lvis" / "lvis_v1_val.json").unlink()
    assert "lvis_v1_val.json.zip" in fails(lvis.main, capsys, *run)


# --- UVO ----------------------------------------------------------------------------------------


def test_uvo_frames(tmp_path: Path) -> None:
    truth = raw.prepare("uvo", tmp_path)
    data = dataset("uvo", tmp_path)
    assert len(data) == 3 and data.metainfo["classes"] == ("object",)
    made = COCO(str(truth.root / "annotations" / "frame_val.json"))
    for index, (name, path) in enumerate(truth.images.items()):
        info = data.get_data_info(index)
        assert Path(info["img_path"]) == path
        assert (info["height"], info["width"]) == raw.SIZES[index]
        found = made.loadAnns(made.getAnnIds(info["img_id"]))
        assert len(found) == len(info["instances"]) == len(truth.masks[name]) == 3
        for instance, annotation, (_, mask) in zip(
            info["instances"], found, truth.masks[name], strict=True
        ):
            assert np.array_equal(made.annToMask(annotation), mask)
            assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
            rows, columns = np.nonzero(mask)
            x, y = columns.min(), rows.min()
            box = [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
            assert annotation["bbox"] == box
            assert instance["bbox_label"] == 0 and instance["mask"] == annotation["segmentation"]


def test_uvo_videos(tmp_path: Path) -> None:
    root = raw.write_raw_uvo(tmp_path).root
    uvo.main([str(root), "--splits", "dense_val", "--workers", "1"])
    made = COCO(str(root / "annotations" / "dense_val.json"))
    assert [i["file_name"] for i in made.dataset["images"]] == ["denseV/0.png", "denseV/1.png"]
    found = [made.loadAnns(made.getAnnIds(i["id"])) for i in made.dataset["images"]]
    boxes = [[(a["bbox"], a["iscrowd"], a["category_id"]) for a in of] for of in found]
    assert boxes == [
        [([4, 5, 10, 12], 0, 1)],
        [([7, 5, 10, 12], 0, 1), ([30, 20, 9, 9], 1, 1)],
    ]


def test_uvo_missing_frames_raise(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    truth = raw.write_raw_uvo(tmp_path)
    first, _, last = truth.images.values()
    first.unlink()
    last.unlink()
    line = fails(uvo.main, capsys, truth.root)
    assert f"{first}: no such frame (2 of 3 are missing)" in line and "video2frames.py" in line
    assert not (truth.root / "annotations").exists()
    (truth.root / "uvo_videos_sparse_frames").rename(truth.root / "other")
    assert "video2frames.py" in fails(uvo.main, capsys, truth.root)
    (truth.root / "FrameSet" / "UVO_frame_val.json").write_text('{"images": [')
    assert "UVO_frame_val.json: not JSON" in fails(uvo.main, capsys, truth.root)


def smaller_mask(content: dict) -> None:
    content["annotations"][1]["segmentation"]["size"] = [3, 3]


def broken_mask(content: dict) -> None:
    content["annotations"][1]["segmentation"] = "nonsense"


def no_masks(content: dict) -> None:
    del content["annotations"][1]["segmentation"]


def text_flag(content: dict) -> None:
    content["annotations"][1]["iscrowd"] = "0"


def outside(content: dict) -> None:
    content["images"][1]["file_name"] = "../secret.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (smaller_mask, "a-B_c1/0.png: its run lengths have size [3, 3], but its image has [40"),
        (broken_mask, 'a-B_c1/0.png: its mask is "nonsense"'),
        (no_masks, "has no `segmentation`"),
        (text_flag, 'has `iscrowd` "0", not 0 or 1'),
        (outside, "'../secret.png' leads outside its folder"),
    ],
)
def test_uvo_wrong_source_annotations_raise(
    tmp_path: Path, capsys: pytest.CaptureFixture, change: Callable, message: str
) -> None:
    root = raw.write_raw_uvo(tmp_path).root
    edit(root / "FrameSet" / "UVO_frame_val.json", change)
    line = fails(uvo.main, capsys, root)
    assert message in line and "UVO_frame_val.json" in line


def test_uvo_modified_file_raises_and_a_second_run_repairs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    truth = raw.prepare("uvo", tmp_path)
    path, check = truth.root / "annotations" / "frame_val.json", ["--verify-only", "--workers", 1]
    good = path.read_bytes()
    edit(path, drop_image)
    assert "6 masks in 2 frames" in fails(uvo.main, capsys, truth.root, *check)
    path.write_bytes(good)
    edit(path, lambda content: content["annotations"][0].update(area=1))
    assert "its area is 1" in fails(uvo.main, capsys, truth.root, *check)
    uvo.main([str(truth.root), "--workers", "1"])
    assert path.read_bytes() == good
    frame = truth.images["zZ9/59.png"]
    Image.new("RGB", (9, 9)).save(frame)
    assert f"{frame}: 9 x 9 pixels" in fails(uvo.main, capsys, truth.root, *check)
    path.unlink()
    assert f"{path}: no such annotation file" in fails(uvo.main, capsys, truth.root, *check)


# --- all of them --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["label", "caption"])
@pytest.mark.parametrize("name", NAMES)
def test_configs_refer_to_files_of_the_converters(tmp_path: Path, name: str, kind: str) -> None:
    raw.prepare(name, tmp_path)
    config = Config.fromfile(ROOT / "configs" / "odise" / f"odise_{kind}_{name}.py")
    settings = config.test_dataloader
    assert settings.sampler.round_up is False and settings.sampler.shuffle is False
    files = [m.ann_file for m in config.test_evaluator if "ann_file" in m]
    files += [settings.dataset.data_root + settings.dataset.ann_file]
    files += [settings.dataset.data_root + f for f in settings.dataset.data_prefix.values()]
    assert all((tmp_path / file.removeprefix("data/")).exists() for file in files)
    assert "train_dataloader" not in config
    published = Config.fromfile(ROOT / "configs" / "_base_" / "models" / f"odise_{kind}.py")
    protocol = Config.fromfile(ROOT / "configs" / "_base_" / "test_pipeline.py")
    assert config.model == published.model and config.test_pipeline == protocol.test_pipeline
    assert settings.dataset.pipeline == protocol.test_pipeline


@pytest.mark.parametrize("name", NAMES)
def test_samples_through_the_test_pipeline(tmp_path: Path, name: str) -> None:
    truth = raw.prepare(name, tmp_path)
    pipeline = Config.fromfile(ROOT / "configs" / "odise" / f"odise_label_{name}.py").test_pipeline
    data = dataset(name, tmp_path, pipeline)
    paths = set()
    for index in range(len(data)):
        item = data[index]
        meta = item["data_samples"].metainfo
        with Image.open(meta["img_path"]) as image:
            width, height = image.size
        assert meta["ori_shape"] == (height, width)
        assert item["inputs"].shape[1:] == meta["img_shape"] and min(meta["img_shape"]) == 1024
        assert ("seg_map_path" in meta) == (name in ("cityscapes", "mapillary"))
        assert ("sem_seg_path" in meta) == (name == "cityscapes")
        paths.add(Path(meta["img_path"]).resolve())
    assert paths == {path.resolve() for path in truth.images.values()}


def perfect(labels: np.ndarray, ids: np.ndarray, crowd: np.ndarray, vocabulary: Vocabulary) -> dict:
    """Return perfect predictions for (H, W) class indices (-1: void) and object numbers."""
    keys = np.where((labels < 0) | crowd, -1, labels * 100000 + ids)
    keys[(keys >= 0) & ~np.isin(labels, np.flatnonzero(vocabulary.is_thing))] //= 100000
    panoptic, segments, masks, of_masks = np.zeros(ids.shape, np.int32), [], [], []
    for number, key in enumerate((k for k in np.unique(keys) if k >= 0), start=1):
        mask = keys == key
        label = int(labels[mask][0])
        panoptic[mask] = number
        segments.append(dict(id=number, category_id=label, score=1.0))
        if vocabulary.is_thing[label]:
            masks.append(mask)
            of_masks.append(label)
    return dict(
        pred_panoptic_seg=dict(sem_seg=torch.from_numpy(panoptic)[None], segments_info=segments),
        pred_sem_seg=dict(sem_seg=torch.from_numpy(np.maximum(labels, 0))[None]),
        pred_instances=of_instances(masks, of_masks),
    )


def of_instances(masks: list[np.ndarray], labels: list[int]) -> dict:
    return dict(
        masks=torch.from_numpy(np.stack(masks)),
        labels=torch.tensor(labels),
        scores=torch.ones(len(masks)),
        bboxes=torch.zeros(len(masks), 4),
    )


def perfect_results(name: str, truth: raw.Truth | raw.Instances) -> list[dict]:
    """Return perfect predictions for all images, made from the original data."""
    if isinstance(truth, raw.Instances):
        return [
            dict(
                pred_instances=of_instances(
                    [mask for _, mask in masks], [label - 1 for label, _ in masks]
                )
            )
            for masks in truth.masks.values()
        ]
    vocabulary = Vocabulary.load(name)
    results = []
    for image_name, ids in sorted(truth.instances.items()):
        labels = truth.labels[image_name]
        if name == "cityscapes":
            index_of = {c.id: i for i, c in enumerate(cityscapes.CLASSES)}
            labels = np.vectorize(lambda v, known=index_of: known.get(v, -1))(labels)
            crowd = (labels >= 11) & (ids < 1000)
        else:
            labels = np.where(labels == raw.VISTAS_VOID, -1, labels)
            crowd = labels == vocabulary.source_names.index("Person")
        results.append(perfect(labels, ids, crowd, vocabulary))
    return results


@pytest.mark.parametrize("name", NAMES)
def test_ground_truth_scores_100(tmp_path: Path, name: str) -> None:
    truth = raw.prepare(name, tmp_path)
    config = Config.fromfile(ROOT / "configs" / "_base_" / "datasets" / f"{name}.py")
    data = dataset(name, tmp_path)
    samples = [
        {**data.get_data_info(index), **result}
        for index, result in enumerate(perfect_results(name, truth))
    ]
    numbers = {}
    for settings in config.test_evaluator:
        if "ann_file" in settings:
            settings.ann_file = str(tmp_path / settings.ann_file.removeprefix("data/"))
        metric = METRICS.build(settings)
        metric.dataset_meta = data.metainfo
        metric.process({}, samples)
        numbers.update(metric.evaluate(len(data)))
    wanted = {
        "cityscapes": ("panoptic/PQ", "instance/AP", "semantic/mIoU"),
        "mapillary": ("panoptic/PQ", "panoptic/PQ_th", "panoptic/PQ_st", "semantic/mIoU"),
        "lvis": ("lvis/AP", "lvis/APr", "lvis/APc", "lvis/APf"),
        "uvo": ("proposals/AR@100",),
    }
    for number in wanted[name]:
        assert numbers[number] == pytest.approx(100), numbers


def test_worker_processes_write_the_same_files(tmp_path: Path) -> None:
    alone = raw.prepare("cityscapes", tmp_path / "alone").root
    root = raw.write_raw_cityscapes(tmp_path / "several").root
    cityscapes.prepare(root, "val", workers=2)
    files = [p.relative_to(alone) for p in alone.rglob("*") if p.is_file()]
    files = [path for path in files if path.suffix != ".lock"]
    assert len(files) > 20
    assert all((root / p).read_bytes() == (alone / p).read_bytes() for p in files)
