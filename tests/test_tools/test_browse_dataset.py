"""tools/analysis_tools/browse_dataset.py: the drawn images and the printed table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odise_mm.vocabulary import Vocabulary
from tests.support.small_coco import VOCABULARY, write_small_coco
from tools.analysis_tools import browse_dataset

CONFIG = """
test_pipeline = [
    dict(type="LoadImage"),
    dict(type="ResizeKeepRatio", scale=(640, 480)),
    dict(type="mmdet.PackDetInputs", meta_keys=("img_path", "ori_shape", "img_shape")),
]
train_pipeline = [
    dict(type="LoadImage"),
    dict(type="LoadPanopticMap"),
    dict(type="LargeScaleJitter", scale=(480, 480), ratio_range=(0.5, 1.0)),
    dict(type="mmdet.RandomCrop", crop_size=(480, 480)),
    dict(type="mmdet.Pad", size=(480, 480), pad_val=dict(img=(128, 128, 128), seg=0)),
    dict(type="PanopticMapToMasks"),
    dict(type="DrawWords"),
    dict(type="mmdet.PackDetInputs", meta_keys=("img_path", "ori_shape", "img_shape", "words")),
]
panoptic = dict(
    type="PanopticDataset",
    vocabulary="names.txt",
    data_root="data/coco",
    ann_file="annotations/panoptic_train2017.json",
    data_prefix=dict(img="train2017/", seg="annotations/panoptic_train2017/"),
)
train_dataloader = dict(dataset=dict(panoptic, phrases_file="phrases.json"))
val_dataloader = dict(dataset=dict(panoptic, test_mode=True))
test_dataloader = dict(dataset=TEST)
"""
SEMANTIC = """dict(
    type="SemanticDataset", vocabulary="names.txt", data_root="data/coco", test_mode=True,
    data_prefix=dict(img_path="train2017", seg_map_path="labels"), reduce_zero_label=True,
)"""
INSTANCE = """dict(
    type="InstanceDataset", vocabulary="pets.txt", data_root="data/coco", test_mode=True,
    ann_file="instances.json", data_prefix=dict(img="train2017"),
)"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folder in place of data/, with a dataset for every kind of ground truth."""
    coco = write_small_coco(tmp_path / "data/coco")
    VOCABULARY.save(coco.root / "names.txt")
    phrases = {"7": [["a striped cat"]], "3": [["wet grass"]], "25": [[]]}
    (coco.root / "phrases.json").write_text(json.dumps(dict(phrases=phrases)))
    (coco.root / "labels").mkdir()
    for image_id, ids in coco.maps.items():
        labels = np.where(ids % 1000 == 3, 2, 0).astype(np.uint8)  # one of the cats: class 1
        Image.fromarray(labels).save(coco.root / f"labels/{image_id:012}.png")
    Vocabulary((("cat",), ("dog",)), (True, True)).save(coco.root / "pets.txt")
    square = [[15, 12, 24, 12, 24, 20, 15, 20]]
    annotation = dict(id=1, image_id=7, category_id=17, bbox=[15, 12, 9, 8], area=72)
    content = dict(
        images=coco.read()["images"],
        annotations=[dict(annotation, segmentation=square)],
        categories=coco.read()["categories"][:2],
    )
    (coco.root / "instances.json").write_text(json.dumps(content))
    return tmp_path / "data"


def run(data: Path, *options: str, test: str = "panoptic") -> Path:
    config = data.parent / "config.py"
    config.write_text(CONFIG.replace("TEST", test))
    out = data.parent / "out"
    arguments = [str(config), "--data-root", str(data), "--out", str(out), *options]
    assert browse_dataset.main(arguments) == 0
    return out


def test_training_data(data: Path, capsys: pytest.CaptureFixture) -> None:
    out = run(data, "--number", "3")
    printed = capsys.readouterr().out
    assert "train: 3 images" in printed and "40 x 24" in printed and "480 x 480" in printed
    files = sorted(path.name for path in out.iterdir())
    assert len(files) == 3 and all(name.startswith(f"train_00{i}_") for i, name in enumerate(files))
    assert sorted(name[10:] for name in files) == [f"{i:012}.jpg" for i in (3, 7, 25)]
    assert printed.count("a striped cat") == 5 and "none" in printed  # five of eight are shown
    words = Image.open(out / next(n for n in files if n.endswith("007.jpg")))
    strip = np.asarray(words)[:4].reshape(-1, 3).mean(axis=0)
    assert strip[0] > 200 and strip[2] < 120, "the strip of words is yellow, not blue"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    run(data, "--number", "3")
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    run(data, "--number", "3", "--seed", "1")
    assert before != {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize(
    ("test", "names", "drawn"),
    [
        ("dict(panoptic, test_mode=True)", "sky, grass, cat, dog", [1, 2, 3, 4, 5]),
        (SEMANTIC, "cat", [3]),
        (INSTANCE, "cat", [4]),
    ],
    ids=["panoptic", "semantic", "instance"],
)
def test_test_data(
    data: Path, capsys: pytest.CaptureFixture, test: str, names: str, drawn: list[int]
) -> None:
    out = run(data, "--split", "test", test=test)
    rows = capsys.readouterr().out
    assert "test: 3 images" in rows and len(list(out.iterdir())) == 3
    (row,) = [line for line in rows.splitlines() if "_000000000007.jpg" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[2:6] == ["40 x 24", "640 x 384", str(len(drawn)), names]
    (file,) = out.glob("*000000000007.jpg")
    drawing = np.asarray(Image.open(file)).astype(int)
    left, right = drawing[:384, :640], drawing[:384, 648 : 648 + 640]
    ids = np.load(_map_of_7(data)) % 1000
    changed = np.abs(left - right).sum(axis=2)
    inside = np.kron(np.isin(ids, drawn), np.ones((16, 16), bool))
    assert np.median(changed[inside]) > 30, "segments are filled with a color"
    if len(drawn) == 1:  # the rest is only darkened
        tint = (left - right)[~inside]
        assert (np.median(tint, axis=0) >= 0).all()
        assert np.median(changed[~inside]) > 0


def _map_of_7(data: Path) -> Path:
    from odise_mm.annotations.panoptic_io import read_panoptic_png

    path = data / "coco/map.npy"
    np.save(path, read_panoptic_png(data / "coco/annotations/panoptic_train2017/000000000007.png"))
    return path


def test_mistakes(data: Path, capsys: pytest.CaptureFixture) -> None:
    def fails(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            browse_dataset.main([*arguments, "--out", str(data.parent / "out")])
        assert end.value.code == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "no config 'odise_cocoo'" in fails("odise_cocoo")
    config = data.parent / "model.py"
    config.write_text("model = dict(type='X')")
    assert "no data in this config, it only defines a model" in fails(str(config))
    config.write_text(CONFIG.replace("TEST", "panoptic") + "del train_dataloader\n")
    assert "no train data in this config; available: val, test" in fails(
        str(config), "--split", "train"
    )
    error = fails(str(config), "--data-root", str(data / "nothing"))
    missing = f"names.txt: file of class names not found, neither in {data / 'nothing/coco'} nor"
    assert missing in error
    (data / "coco/annotations/panoptic_train2017/000000000007.png").unlink()
    assert "000000000007.png" in fails(str(config), "--data-root", str(data), "--split", "val")


@pytest.mark.parametrize("scope", ["", "mmengine."])
def test_wrapped_data(data: Path, scope: str) -> None:
    """Images repeat, and their order and augmentation depend only on the seed."""
    inner = "[dict(panoptic, phrases_file='phrases.json')] * 2"
    concat = f"dict(type='{scope}ConcatDataset', datasets={inner})"
    repeat = f"dict(type='RepeatDataset', times=2, dataset={concat})"
    text = f"{CONFIG}train_dataloader = dict(dataset={repeat})"
    config = data.parent / "wrapped.py"
    config.write_text(text.replace("TEST", "panoptic"))
    drawings = []
    for out, noise in (("a", 1), ("b", 2)):
        np.random.seed(noise)
        arguments = [str(config), "--data-root", str(data), "--out", str(data.parent / out)]
        assert browse_dataset.main([*arguments, "--number", "12"]) == 0
        found = sorted((data.parent / out).iterdir())
        drawings.append([np.asarray(Image.open(path)) for path in found])
    assert len(drawings[0]) == 12
    assert all(np.array_equal(a, b) for a, b in zip(*drawings, strict=True))
    assert len({drawing.tobytes() for drawing in drawings[0]}) > 9
