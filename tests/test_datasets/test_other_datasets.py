"""SemanticDataset and InstanceDataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.logging import MMLogger
from PIL import Image

from odise_mm.datasets import InstanceDataset, SemanticDataset
from odise_mm.errors import ConfigError, DatasetError
from odise_mm.registry import DATASETS
from odise_mm.vocabulary import Vocabulary
from tests.support.small_coco import VOCABULARY


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Write the images b and city/a and their label files."""
    for name, shape in (("b", (4, 6)), ("city/a", (5, 7))):
        for path, kind in ((f"images/{name}_rgb.png", "RGB"), (f"labels/{name}_ids.png", "L")):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new(kind, shape[::-1]).save(tmp_path / path)
    return tmp_path


def semantic(root: Path, **changes: Any) -> SemanticDataset:
    config = dict(
        type="SemanticDataset",
        vocabulary=VOCABULARY,
        data_root=str(root),
        data_prefix=dict(img_path="images", seg_map_path="labels"),
        img_suffix="_rgb.png",
        seg_map_suffix="_ids.png",
        test_mode=True,
    )
    return DATASETS.build({**config, **changes})


def test_semantic(labels: Path) -> None:
    dataset = semantic(labels, reduce_zero_label=True, pipeline=[dict(type="LoadImage")])
    assert dataset.vocabulary is VOCABULARY and dataset.metainfo["vocabulary"] == VOCABULARY
    assert len(dataset) == 2
    first, second = dataset[0], dataset[1]
    assert first["img_id"] == "b" and second["img_id"] == "city/a"
    assert second["img_path"] == str(labels / "images/city/a_rgb.png")
    assert second["sem_seg_path"] == str(labels / "labels/city/a_ids.png")
    assert second["reduce_zero_label"] is True and second["ori_shape"] == (5, 7)
    (labels / "list.txt").write_text("city/a\n")
    listed = semantic(labels, ann_file="list.txt")
    assert [listed.get_data_info(i)["img_id"] for i in range(len(listed))] == ["city/a"]
    assert listed.get_data_info(0)["reduce_zero_label"] is False


def test_images_with_another_suffix_are_logged(labels: Path, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("odise_mm.datasets.semantic.print_log", lambda text, **_: said.append(text))
    for name in ("c_rgb.JPG", "city/d_rgb.webp", "city/e_rgb.webp", "notes_rgb.txt", "f.png"):
        (labels / "images" / name).touch()
    for name in ("c", "city/d", "city/e", "notes", "f_rgb"):
        (labels / "labels" / f"{name}_ids.png").touch()
    (labels / "images" / "g_rgb.webp").touch()  # without a label file
    assert len(semantic(labels)) == 2
    assert len(said) == 1 and said[0].startswith(f"{labels}/images: images with label files are")
    assert "img_suffix='_rgb.png': " in said[0] and "2 .webp" in said[0] and "1 .JPG" in said[0]
    (labels / "list.txt").write_text("city/a\n")
    semantic(labels, ann_file="list.txt")
    # Label files in the folder of images are not images.
    both = dict(img_path="images", seg_map_path="images")
    for name in ("b_rgb", "city/a_rgb"):
        (labels / "images" / f"{name}.png").rename(labels / "images" / f"{name}.jpg")
        (labels / "images" / f"{name}.png").touch()
    semantic(labels, data_prefix=both, img_suffix=".jpg", seg_map_suffix=".png")
    assert len(said) == 1


def test_invalid_semantic_data_raises(labels: Path) -> None:
    with pytest.raises(DatasetError, match="nothing: folder of images not found"):
        semantic(labels, data_prefix=dict(img_path="nothing", seg_map_path="labels"))
    with pytest.raises(DatasetError, match="nothing: folder of semantic label files not found"):
        semantic(labels, data_prefix=dict(img_path="images", seg_map_path="nothing"))
    with pytest.raises(DatasetError, match="list.txt: list of images .*not found"):
        semantic(labels, ann_file="list.txt")
    with pytest.raises(DatasetError, match=r"images \(images end in .jpg\): the dataset is empty"):
        semantic(labels, img_suffix=".jpg")
    with pytest.raises(DatasetError, match="needs `vocabulary`"):
        semantic(labels, vocabulary=None)
    (labels / "labels/b_ids.png").unlink()
    with pytest.raises(DatasetError, match=r"b_ids.png: label file of .*b_rgb.png not found"):
        semantic(labels)


@pytest.mark.parametrize("name", ["../b", "city/../../b", "/etc/hosts"])
def test_a_list_cannot_leave_the_folder(labels: Path, name: str) -> None:
    (labels / "list.txt").write_text(f"city/a\n{name}\n")
    with pytest.raises(DatasetError, match=r"list\.txt: .* leads outside its folder"):
        semantic(labels, ann_file="list.txt")


def test_a_list_that_is_not_utf8_raises(labels: Path) -> None:
    (labels / "list.txt").write_bytes(b"city/\xe9\n")
    with pytest.raises(DatasetError, match=r"list\.txt: not a list of names in UTF-8"):
        semantic(labels, ann_file="list.txt")


SQUARE = [[2, 2, 8, 2, 8, 8, 2, 8]]


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    """Write annotations as in LVIS, with ``coco_url`` instead of file names."""
    (tmp_path / "coco").mkdir()
    content = dict(
        images=[
            dict(id=i, height=10, width=12, coco_url=f"http://images.org/val2017/{i:012}.jpg")
            for i in (9, 4)
        ],
        annotations=[
            dict(id=1, image_id=9, category_id=2, bbox=[2, 2, 6, 6], area=36, segmentation=SQUARE),
            dict(id=2, image_id=9, category_id=5, bbox=[2, 2, 6, 6], area=36, segmentation=SQUARE,
                 iscrowd=1),
        ],
        categories=[dict(id=5, name="dog"), dict(id=2, name="cat")],
    )  # fmt: skip
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path


PETS = Vocabulary((("dog",), ("cat", "kitten")), (True, True))


def instance(root: Path, **changes: Any) -> InstanceDataset:
    config = dict(
        type="InstanceDataset",
        vocabulary=PETS,
        data_root=str(root),
        ann_file="instances.json",
        data_prefix=dict(img="coco"),
        test_mode=True,
    )
    return DATASETS.build({**config, **changes})


def change(root: Path, **changes: Any) -> None:
    path = root / "instances.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_instances(instances: Path) -> None:
    dataset = instance(instances)
    first, second = dataset.get_data_info(0), dataset.get_data_info(1)
    assert first["img_path"] == str(instances / "coco/val2017/000000000009.jpg")
    assert (first["img_id"], first["height"], first["width"]) == (9, 10, 12)
    assert [i["bbox_label"] for i in first["instances"]] == [1, 0]
    assert [i["ignore_flag"] for i in first["instances"]] == [0, 1]
    assert first["instances"][0]["bbox"] == [2, 2, 8, 8] and second["instances"] == []
    assert dataset.vocabulary is PETS and dataset.metainfo["classes"] == ("dog", "cat")
    assert dataset.get_cat_ids(0) == [1, 0]
    assert len(instance(instances, test_mode=False)) == 1  # image 4 has no usable instance


def test_instances_equal_mmdet(instances: Path) -> None:
    """mmdet's own loading step draws the masks."""
    picture = instances / "coco/val2017/000000000009.jpg"
    picture.parent.mkdir()
    Image.new("RGB", (12, 10)).save(picture)
    step = dict(type="mmdet.LoadAnnotations", with_mask=True)
    item = instance(instances, pipeline=[dict(type="LoadImage"), step])[0]
    expected = np.zeros((10, 12), bool)
    expected[2:8, 2:8] = True
    assert np.array_equal(item["gt_masks"].to_ndarray()[0].astype(bool), expected)


def test_class_agnostic_instances(instances: Path) -> None:
    dataset = instance(instances, vocabulary=None, class_agnostic=True)
    assert dataset.vocabulary.names == ("object",)
    assert [i["bbox_label"] for i in dataset.get_data_info(0)["instances"]] == [0, 0]


def test_unusable_annotations_are_logged(instances: Path, caplog: pytest.LogCaptureFixture) -> None:
    MMLogger.get_current_instance().addHandler(caplog.handler)
    whole = json.loads((instances / "instances.json").read_text())["annotations"]
    more = [
        dict(id=3, image_id=9, category_id=2, bbox=[2, 2, 6, 6], area=36, segmentation=[]),
        dict(id=4, image_id=9, category_id=2, bbox=[2, 2, 0, 0], area=0, segmentation=SQUARE),
    ]
    change(instances, annotations=[*whole, *more])
    assert len(instance(instances, test_mode=False).get_data_info(0)["instances"]) == 2
    MMLogger.get_current_instance().removeHandler(caplog.handler)
    assert "skipped 1 of 4 annotations without a usable mask: they have" in caplog.text
    assert "1 of 3 annotations are left out: they are marked as ignored, have no" in caplog.text
    assert len(instance(instances).get_data_info(0)["instances"]) == 3


def test_invalid_instance_data_raises(instances: Path) -> None:
    with pytest.raises(DatasetError, match="no category for 'sky-other-merged', 'grass"):
        instance(instances, vocabulary=VOCABULARY)
    with pytest.raises(DatasetError, match=r"unknown category ids in annotations: 2 \(cat\)"):
        instance(instances, vocabulary=Vocabulary((("dog",),), (True,)))
    with pytest.raises(DatasetError, match="no such annotation file"):
        instance(instances, ann_file="nothing.json")
    with pytest.raises(DatasetError, match="folder of images not found"):
        instance(instances, data_prefix=dict(img="nothing"))
    with pytest.raises(ConfigError, match="filter_cfg"):
        instance(instances, filter_cfg=dict(min_size=3))
    change(instances, annotations=[])
    assert len(instance(instances)) == 2
    with pytest.raises(DatasetError, match="is empty: all 2 images are without instances"):
        instance(instances, test_mode=False)
    change(instances, annotations=[dict(id=8, image_id=77, category_id=2)])
    with pytest.raises(DatasetError, match="annotation 8 belongs to image id 77"):
        instance(instances)
    change(instances, annotations=[dict(image_id=9, segments_info=[])])
    with pytest.raises(DatasetError, match="expected instance annotations, found panoptic"):
        instance(instances)
