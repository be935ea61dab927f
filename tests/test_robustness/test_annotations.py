"""Damaged or malicious annotation files, or those of other tools, raise one clear error."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from PIL import Image

from odise_mm.annotations.coco_json import read_captions
from odise_mm.annotations.panoptic_io import read_coco_panoptic
from odise_mm.datasets import InstanceDataset, PanopticDataset
from odise_mm.datasets.captions import read_phrases
from odise_mm.errors import DatasetError, OdiseError, PanopticFileError, VocabularyError
from odise_mm.registry import METRICS
from odise_mm.vocabulary import Vocabulary

PETS = Vocabulary((("cat",), ("dog",)), (True, True))
SQUARE = [2, 2, 12, 2, 12, 12, 2, 12]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Capture mmengine's log."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO)
    yield caplog
    logger.removeHandler(caplog.handler)


def annotation(id_: int, **fields: Any) -> dict:
    whole = dict(id=id_, image_id=1, category_id=1, area=100, bbox=[2, 2, 10, 10], iscrowd=0)
    return whole | dict(segmentation=[SQUARE]) | fields


def write(folder: Path, annotations: list[dict], **changes: Any) -> Path:
    """Write instances of an image of 20 x 30 pixels."""
    content = dict(
        images=[dict(id=1, height=20, width=30, file_name="1.jpg")],
        annotations=annotations,
        categories=[dict(id=1, name="cat"), dict(id=2, name="dog")],
    )
    (folder / "img").mkdir(exist_ok=True)
    Image.new("RGB", (30, 20)).save(folder / "img/1.jpg")
    path = folder / "ann.json"
    path.write_text(json.dumps(content | changes))
    return path


def load(path: Path, **settings: Any) -> InstanceDataset:
    return InstanceDataset(
        PETS, data_root=str(path.parent), ann_file=path.name, data_prefix=dict(img="img"),
        **{"test_mode": True, **settings},
    )  # fmt: skip


def score(path: Path) -> float:
    """Return AP of a result that is the square."""
    metric = METRICS.build(dict(type="InstanceAP", ann_file=str(path)))
    metric.dataset_meta = dict(vocabulary=PETS)
    metric.prepare()
    masks = torch.zeros(1, 20, 30, dtype=torch.bool)
    masks[0, 2:12, 2:12] = True
    found = dict(masks=masks, labels=torch.tensor([0]), scores=torch.tensor([0.9]))
    metric.process(None, [dict(img_id=1, img_path="1.jpg", pred_instances=found)])
    return metric.evaluate(1)["instance/AP"]


MALFORMED = {
    "pairs": [[[2, 2], [12, 2], [12, 12]]],
    "flat": SQUARE,
    "texts": [["2", "2", "12", "2", "12", "12"]],
    "odd count": [SQUARE, [1, 1, 5, 5, 5]],
    "a size of another image": dict(size=[40, 60], counts=[0, 2400]),
    "height and width in the wrong order": dict(size=[30, 20], counts=[0, 600]),
    "counts that end early": dict(size=[20, 30], counts=[10, 20]),
    "a damaged code": dict(size=[20, 30], counts="0 0 0"),
    "a code cut short": dict(size=[20, 30], counts="`b0l"),
    "text": "2,2,12,2",
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_masks_raise_while_reading(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, [annotation(1), annotation(8, segmentation=MALFORMED[kind])])
    for read in (load, lambda path: load(path, test_mode=False), score):
        with pytest.raises(DatasetError, match=r"ann\.json: annotation 8 of image 1: "):
            read(path)


UNUSABLE = {
    "two points": [[3, 3, 3, 9]],
    "one point": [[3, 3]],
    "no point": [[]],
    "nothing": [],
    "null": None,
    "far away": [[2000, 2000, 2010, 2000, 2010, 2010]],
    "infinite": [[0, 0, 1e308, 0, 9, 9]],
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_unusable_masks_are_left_out_and_logged(
    tmp_path: Path, kind: str, log: pytest.LogCaptureFixture
) -> None:
    good, bad = annotation(1), annotation(8, segmentation=UNUSABLE[kind])
    path = write(tmp_path, [good, bad])
    assert score(path) == pytest.approx(100)
    assert len(load(path, test_mode=False).get_data_info(0)["instances"]) == 1
    assert "skipped 1 of 2 annotations" in log.text and "annotation 8 of image 1" in log.text
    with pytest.raises(DatasetError, match="annotation 8 of image 1, have no usable mask"):
        score(write(tmp_path, [bad]))


EMPTY = {
    "points on a line": [[3, 3, 9, 3, 15, 3]],
    "points on a slope": [[3, 3, 8, 8, 13, 13]],
    "one point thrice": [[5, 5, 5, 5, 5, 5]],
    "a code without a pixel": dict(size=[20, 30], counts=[600]),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_masks_without_pixels_equal_pycocotools_and_are_logged(
    tmp_path: Path, kind: str, log: pytest.LogCaptureFixture
) -> None:
    empty = annotation(8, segmentation=EMPTY[kind])
    # One of two objects is found: precision is 1 at 51 of 101 recalls.
    assert score(write(tmp_path, [annotation(1), empty])) == pytest.approx(100 * 51 / 101)
    assert "1 of 2 annotated objects have masks without pixels (the first: in image 1" in log.text
    assert "ann.json" in log.text
    log.clear()
    assert score(write(tmp_path, [annotation(1), {**empty, "iscrowd": 1}])) == pytest.approx(100)
    assert score(write(tmp_path, [annotation(1)])) == pytest.approx(100)
    assert "without pixels" not in log.text


def test_the_order_of_rings_does_not_matter(tmp_path: Path) -> None:
    for rings in ([[3, 3, 3, 9], SQUARE], [SQUARE, [3, 3, 3, 9]]):
        path = write(tmp_path, [annotation(1, segmentation=rings)])
        assert score(path) == pytest.approx(100)
        steps = [dict(type="LoadImage"), dict(type="mmdet.LoadAnnotations", with_mask=True)]
        item = load(path, test_mode=False, pipeline=steps)[0]
        assert item["gt_masks"].to_ndarray()[0].sum() == 100


TEXTS = {
    "deep": "[" * 100_000,
    "cut": '{"images": [{"id": 1, ',
    "infinity": '{"images": [Infinity]}',
    "endless digits": '{"images": [' + "9" * 100_000 + "]}",
    "a key twice": '{"images": [], "images": [], "annotations": []}',
    "a list": "[1, 2]",
    "a number": "7",
    "null": "null",
    "other lists": '{"images": {}, "annotations": {}, "categories": {}, "phrases": []}',
    "objects that are none": '{"images": [3], "annotations": [3], "categories": [3], "phrases": 1}',
    "nothing": "",
    "not UTF-8": b'{"images": "\xe9"}',
}


@pytest.mark.parametrize("kind", TEXTS)
def test_malicious_json_raises_one_line_in_every_reader(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file.json"
    text = TEXTS[kind]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (tmp_path / "img").mkdir()
    folders = dict(img="img", seg="img")
    readers = {
        "instances": lambda: load(path),
        "panoptic": lambda: PanopticDataset(
            PETS, data_root=str(tmp_path), ann_file="file.json", data_prefix=folders
        ),
        "metric": lambda: score(path),
        "captions": lambda: read_captions(path),
        "phrases": lambda: read_phrases(path),
        "vocabulary": lambda: Vocabulary.load(path),
        "maps": lambda: read_coco_panoptic(path),
    }
    for name, read in readers.items():
        with pytest.raises(OdiseError) as caught:
            read()
        message = str(caught.value)
        assert str(path) in message and "\n" not in message and len(message) < 500, name
        expected = dict(vocabulary=VocabularyError, maps=PanopticFileError)
        assert type(caught.value) is expected.get(name, DatasetError), name


def test_numbers_as_text_are_not_converted(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match='annotation 1 has `iscrowd` "0", not 0 or 1'):
        score(write(tmp_path, [annotation(1, iscrowd="0")]))
    with pytest.raises(DatasetError, match=r'image id "1", .* \(but 1 exists: one is text'):
        score(write(tmp_path, [annotation(1, image_id="1")]))
    with pytest.raises(DatasetError, match=r'"1" \(not in `categories`\) \(but 1 exists: one is'):
        score(write(tmp_path, [annotation(1, category_id="1")]))
    categories = [dict(id=1, name="cat"), dict(id=2, name=None)]
    with pytest.raises(DatasetError, match="category 2 has `name` null"):
        score(write(tmp_path, [annotation(1)], categories=categories))
    with pytest.raises(VocabularyError, match="category 2 has `name` null"):
        Vocabulary.load(tmp_path / "ann.json")


@pytest.mark.parametrize("name", ["../1.jpg", "/etc/hostname", "img/../../1.jpg", "a\0.jpg", 5])
def test_file_names_cannot_leave_their_folder(tmp_path: Path, name: Any) -> None:
    image = dict(id=1, height=20, width=30, file_name=name)
    path = write(tmp_path, [annotation(1)], images=[image])
    with pytest.raises(DatasetError, match="image 1"):
        load(path)
    maps = tmp_path / "pan"
    maps.mkdir()
    Image.fromarray(np.full((20, 30, 3), 1, np.uint8)).save(maps / "1.png")
    segments = [dict(id=65793, category_id=1, area=600, bbox=[0, 0, 30, 20], iscrowd=0)]
    whole = dict(id=1, height=20, width=30, file_name="1.jpg")
    for images, png in (([image], "1.png"), ([whole], name)):
        annotations = [dict(image_id=1, file_name=png, segments_info=segments)]
        write(tmp_path, annotations, images=images)
        with pytest.raises(DatasetError, match=r"ann\.json: "):
            PanopticDataset(PETS, data_root=str(tmp_path), ann_file="ann.json",
                            data_prefix=dict(img="img", seg="pan"))  # fmt: skip


def test_a_root_category_of_another_tool(tmp_path: Path) -> None:
    root = dict(id=0, name="cat", supercategory="none")
    categories = [root] + [dict(id=i + 1, name=n, supercategory="cat") for i, n in enumerate(
        ("cat", "dog"))]  # fmt: skip
    path = write(tmp_path, [annotation(1)], categories=categories)
    assert score(path) == pytest.approx(100)
    assert load(path).cat2label == {1: 0, 2: 1}
    assert Vocabulary.load(path).names == ("cat", "dog")
    path = write(tmp_path, [annotation(1), annotation(2, category_id=0)], categories=categories)
    for read in (load, score):
        with pytest.raises(DatasetError, match="category name 'cat' .* with ids 0 and 1"):
            read(path)
    with pytest.raises(VocabularyError, match="'cat' .* ids 0 and 1"):
        Vocabulary.load(path)
