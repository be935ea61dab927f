"""`odise-mm prepare`: drawn scenes as five kinds of annotations, and the configs for them."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from odise_mm.annotations.masks import to_rle
from odise_mm.annotations.panoptic_io import read_panoptic_png
from odise_mm.cli import prepare, test, train
from odise_mm.config.finding import load_config
from odise_mm.engine.loops import vocabulary_of
from odise_mm.io.conversion import convert
from odise_mm.registry import DATASETS
from projects.toy_world import generate

ROOT = Path(__file__).parents[2]
NUMBER = 6


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of drawn scenes in COCO's layout; the last image is a copy of the first."""
    folder = tmp_path_factory.mktemp("drawn")
    numbers = ["--splits", "val", "--number", str(NUMBER), "--workers", "1"]
    assert generate.main([str(folder), *numbers]) == 0
    first, *_, last = sorted((folder / "val2017").iterdir())
    shutil.copy(first, last)
    return folder


@pytest.fixture
def mine(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with images and without annotations, below the current one."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(drawn / "val2017", tmp_path / "mine/images")
    return Path("mine")


def run(folder: Path, *options: str) -> None:
    base = ["--base", "odise_toy_label", "--max-iters", "40"]
    assert prepare.main([str(folder), *base, *options]) == 0


def built(split: str) -> list[dict]:
    """Build a dataset of the written config, with the pipeline's first steps; return its items."""
    config = load_config("finetune.py")
    data = config[f"{split}_dataloader"].dataset
    pipeline = data.pop("pipeline")
    data.pipeline = pipeline[:2] if split == "train" else pipeline
    dataset = DATASETS.build(data)
    assert vocabulary_of(dataset)
    return list(dataset)


def use_panoptic(drawn: Path, folder: Path) -> None:
    shutil.copytree(drawn / "annotations/panoptic_val2017", folder / "panoptic")
    shutil.copy(drawn / "annotations/panoptic_val2017.json", folder / "panoptic.json")


def test_panoptic(drawn: Path, mine: Path, capsys: pytest.CaptureFixture) -> None:
    use_panoptic(drawn, mine)
    run(mine)
    printed = capsys.readouterr().out
    assert "1 images that have the same content as another" in printed
    assert "train: " in printed and "wrote finetune.py" in printed
    names = {split: {Path(x["img_path"]).name for x in built(split)} for split in ("train",)}
    content = json.loads(Path("mine/val.json").read_text())
    names["val"] = {image["file_name"] for image in content["images"]}
    files = sorted(path.name for path in Path("mine/images").iterdir())
    assert names["train"] | names["val"] == set(files) and not names["train"] & names["val"]
    assert any({files[0], files[-1]} <= split for split in names.values())
    with pytest.raises(SystemExit):
        run(mine)
    assert "finetune.py: exists already" in capsys.readouterr().err


def test_instances_train_with_the_default_pipeline(drawn: Path, mine: Path) -> None:
    shutil.copy(drawn / "annotations/instances_val2017.json", mine / "instances.json")
    run(mine, "--val-part", "0.4")
    args = train.parse_args(
        ["finetune.py", "--max-iters", "8", "--batch-size", "3", "--load-from", "some.pth"]
    )
    config = train.plan(args)
    assert config.train_cfg.max_iters == 8 and config.train_cfg.val_interval == 2
    assert config.default_hooks.logger.interval == 2
    assert [s.end for s in config.param_scheduler] == [1, 8]
    assert config.train_dataloader.batch_size == 3 and config.load_from == "some.pth"
    assert config.model.head.train_cfg.ignore_unlabeled == 0.5
    content = json.loads((mine / "train.json").read_text())
    for item in built("train"):
        ids = [i["id"] for i in content["images"] if i["file_name"] == Path(item["img_path"]).name]
        rles = [a["segmentation"] for a in content["annotations"] if a["image_id"] == ids[0]]
        covered = mask_utils.decode(mask_utils.merge(rles)).astype(bool)
        assert ((item["gt_seg_map"] > 0) == covered).all()
    assert len(built("val")[0]["inputs"]) == 3


@pytest.mark.parametrize("form", ["yolo", "labelme", "labelme_masks"])
def test_shapes_become_instances(drawn: Path, mine: Path, form: str) -> None:
    """Masks come back; those that became polygons come back but for the pixels of their outline."""
    file = drawn / "annotations/panoptic_val2017.json"
    convert(file, [form], "labels_out")
    if form == "yolo":
        shutil.copytree("labels_out/yolo/labels", mine / "labels")
        shutil.copy("labels_out/yolo/data.yaml", mine)
    else:
        shutil.copytree(f"labels_out/{form}", mine / "labels")
        first = min((mine / "labels").glob("*.json"))
        content = json.loads(first.read_text())
        content["imagePath"] = f"..\\images\\{content['imagePath']}"  # as on Windows
        first.write_text(json.dumps(content))
    run(mine)
    truth, found = json.loads(file.read_text()), json.loads((mine / "instances.json").read_text())
    name_of = {c["id"]: c["name"] for c in found["categories"]}
    assert set(name_of.values()) <= {c["name"] for c in truth["categories"]}
    sizes = {image["file_name"]: image["id"] for image in found["images"]}
    files = {image["id"]: image["file_name"] for image in truth["images"]}
    categories = {c["id"]: c["name"] for c in truth["categories"]}
    for annotation in truth["annotations"]:
        ids = read_panoptic_png(file.parent / "panoptic_val2017" / annotation["file_name"])
        image = sizes[files[annotation["image_id"]]]
        for name in {categories[s["category_id"]] for s in annotation["segments_info"]}:
            parts = [s for s in annotation["segments_info"] if categories[s["category_id"]] == name]
            mask = np.isin(ids, [s["id"] for s in parts])
            rings = [
                to_rle(a["segmentation"], ids.shape)
                for a in found["annotations"]
                if a["image_id"] == image and name_of[a["category_id"]] == name
            ]
            drawn_again = mask_utils.decode(mask_utils.merge(rings)).astype(bool)
            if form == "labelme_masks":
                assert np.array_equal(drawn_again, mask), name
                continue
            # pycocotools leaves out the right and the lower border, and the lines to holes
            assert not (drawn_again & ~_grown(mask)).any(), name
            assert (drawn_again & mask).sum() > 0.75 * _shrunk(mask).sum(), name


def _grown(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    rows, columns = mask.shape
    near = [padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
    return np.any(near, axis=0)


def _shrunk(mask: np.ndarray) -> np.ndarray:
    return ~_grown(~mask)


def test_semantic(mine: Path, capsys: pytest.CaptureFixture) -> None:
    (mine / "labels").mkdir()
    (mine / "names.txt").write_text("thing: car\nstuff: road | road-surface\nstuff: sky\n")
    for path in (mine / "images").iterdir():
        labels = np.full((128, 128), 255, np.uint8)
        labels[60:], labels[:20] = 1, 0
        Image.fromarray(labels).save(mine / "labels" / f"{path.stem}.png")
    run(mine)
    assert "1 classes without annotations: sky" in capsys.readouterr().out
    assert all(item["gt_segment_labels"].tolist() == [0, 1] for item in built("train"))


@pytest.mark.parametrize("form", ["yolo", "labelme_masks", "semantic"])
def test_other_formats_train_and_test(drawn: Path, mine: Path, form: str) -> None:
    """Two iterations, with the datasets that the written config names."""
    file = drawn / "annotations/panoptic_val2017.json"
    convert(file, [form], "labels_out")
    made = Path("labels_out", form)
    if form == "yolo":
        shutil.copy(made / "data.yaml", mine)
        made /= "labels"
    shutil.copytree(made, mine / "labels")
    if form == "semantic":
        shutil.copy(made / "classes.txt", mine / "names.txt")
    run(mine)
    weights = str(ROOT / "projects/toy_world/weights/odise_label.safetensors")
    short = ["--max-iters", "2", "--batch-size", "1", "--work-dir", "work", "--load-from", weights]
    more = ["--cfg-options", "train_cfg.val_interval=2", "default_hooks.checkpoint.interval=2"]
    assert not train.main(["finetune.py", *short, *more])  # tests once, at the end
    (log,) = Path("work").rglob("scalars.json")
    metric = "semantic/mIoU" if form == "semantic" else "instance/AP"
    (scores,) = [line for line in map(json.loads, log.read_text().splitlines()) if metric in line]
    assert scores[metric] > 5
    if form == "semantic":
        assert not test.main(["finetune.py", "work/iter_2.pth", "--out", "out.json"])
        (result,) = json.loads(Path("out.json").read_text())["sets"].values()
        assert result["images"] == 2 and result["metrics"][metric] == pytest.approx(scores[metric])


def test_polygons_and_masks_of_a_group_are_one_object(mine: Path) -> None:
    """LabelMe's polygons and masks with the same label and group are joined."""
    file = io.BytesIO()
    Image.fromarray(np.array([[255, 0], [255, 255]], np.uint8)).save(file, format="PNG")
    mask = dict(
        shape_type="mask",
        points=[[100, 50], [101, 51]],
        mask=base64.b64encode(file.getvalue()).decode(),
    )
    square = dict(shape_type="rectangle", points=[[10, 20], [14, 23]])
    shapes = [dict(shape, label="ball", group_id=1) for shape in (mask, square)]
    for path in (mine / "images").iterdir():
        content = dict(imagePath=path.name, shapes=[*shapes, dict(mask, label="ball")])
        path.with_suffix(".json").write_text(json.dumps(content))
    run(mine)
    joined, alone, *_ = json.loads((mine / "instances.json").read_text())["annotations"]
    expected = np.zeros((128, 128), bool)
    expected[50:52, 100:102] = [[True, False], [True, True]]
    assert np.array_equal(mask_utils.decode(alone["segmentation"]), expected)
    expected[20:23, 10:14] = True
    assert np.array_equal(mask_utils.decode(joined["segmentation"]), expected)
    assert joined["area"] == 15


def test_problems_are_named(drawn: Path, mine: Path, capsys: pytest.CaptureFixture) -> None:
    def problem() -> str:
        with pytest.raises(SystemExit):
            run(mine)
        return capsys.readouterr().err

    assert "no annotations found; expected panoptic.json" in problem()
    (mine / "labels").mkdir()
    (mine / "data.yaml").write_text("names: [ball]")
    first = min((mine / "images").iterdir()).stem
    (mine / "labels" / f"{first}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert f"{first}.txt:1: a box, not a polygon" in problem()
    (mine / "data.yaml").unlink()
    shape = dict(label="ball", shape_type="mask", points=[[127, 0], [128, 1]], mask="#")
    image = min((mine / "images").iterdir()).name
    file = io.BytesIO()
    Image.new("L", (2, 2)).save(file, format="PNG")
    outside = base64.b64encode(file.getvalue()).decode()
    for mask, message in (
        ("#", "shape 1: its mask is not in base64"),
        ("AAAA", "shape 1, mask"),
        (outside, "does not fit into the image of 128 x 128 pixels"),
    ):
        content = dict(imagePath=image, shapes=[dict(shape, mask=mask)])
        (mine / "labels/1.json").write_text(json.dumps(content))
        assert message in problem()
    use_panoptic(drawn, mine)
    (mine / "names.txt").write_text("thing: ball\n")
    assert "not among its names; add a line for each" in problem()
    assert not Path("finetune.py").exists()
