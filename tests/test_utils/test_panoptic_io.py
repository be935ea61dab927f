"""COCO panoptic files: written, read back, and compared with the format's definition."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odise_mm.datasets.vocabulary import Vocabulary
from odise_mm.structures import NamedSegment, SegmentationResult
from odise_mm.utils.panoptic_io import (
    CocoPanopticWriter,
    PanopticFileError,
    describe_categories,
    ids_to_rgb,
    read_coco_panoptic,
    read_panoptic_png,
    rgb_to_ids,
    write_panoptic_png,
)

VOCABULARY = Vocabulary.parse("pickup truck, truck; cat", "blue sky, sky")


def result() -> SegmentationResult:
    panoptic = np.zeros((4, 6), np.int32)
    panoptic[1:3, 2:5] = 300
    panoptic[0, 0] = panoptic[3, 5] = 70_000
    segments = [
        NamedSegment(300, 0, "pickup truck", 0.87654321, 6, True),
        NamedSegment(70_000, 2, "blue sky", 0.5, 2, False),
        NamedSegment(9, 1, "cat", 0.4, 0, True),  # nothing left of it in the map
    ]
    return SegmentationResult("a/b.jpg", "b", 4, 6, panoptic, segments)


def test_colours_are_ids_by_the_formats_formula():
    ids = np.random.default_rng(0).integers(0, 256**3, (50, 40))
    rgb = ids_to_rgb(ids)
    assert rgb.dtype == np.uint8
    # Panoptic format (cocodataset.org): id = R + G * 256 + B * 256^2.
    wide = rgb.astype(np.int64)
    assert np.array_equal(wide[..., 0] + wide[..., 1] * 256 + wide[..., 2] * 256**2, ids)
    assert np.array_equal(rgb_to_ids(rgb), ids)
    assert ids_to_rgb(np.array([[1, 256, 65536]])).tolist() == [[[1, 0, 0], [0, 1, 0], [0, 0, 1]]]
    for bad in (-1, 256**3):
        with pytest.raises(ValueError, match="do not fit"):
            ids_to_rgb(np.array([[bad]]))


def test_png_round_trip(tmp_path):
    path = tmp_path / "new" / "a.png"
    write_panoptic_png(path, result().panoptic)
    assert np.array_equal(read_panoptic_png(path), result().panoptic)
    with Image.open(path) as image:
        assert image.mode == "RGB" and image.getpixel((2, 1)) == (300 - 256, 1, 0)
    grey = tmp_path / "grey.png"
    Image.new("L", (3, 3)).save(grey)
    with pytest.raises(PanopticFileError, match="is RGB"):
        read_panoptic_png(grey)
    with pytest.raises(PanopticFileError, match="missing"):
        read_panoptic_png(tmp_path / "missing.png")
    write_panoptic_png(path, np.random.default_rng(0).integers(256**3, size=(400, 400)))
    start, _, end = path.read_bytes().rpartition(b"IDAT")
    path.write_bytes(start + b"\xf5\xcfp," + end)
    with pytest.raises(PanopticFileError, match="not a readable panoptic PNG"):
        read_panoptic_png(path)


def test_json_content(tmp_path):
    with CocoPanopticWriter(tmp_path / "panoptic.json", VOCABULARY) as writer:
        path = writer.add(result(), "b")
    assert path == tmp_path / "panoptic" / "b.png"
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert content["images"] == [dict(id=1, file_name="b.jpg", height=4, width=6)]
    assert content["annotations"][0]["file_name"] == "b.png"
    assert content["annotations"][0]["segments_info"] == [
        dict(id=300, category_id=1, iscrowd=0, bbox=[2, 1, 3, 2], area=6, score=0.87654),
        dict(id=70_000, category_id=3, iscrowd=0, bbox=[0, 0, 6, 4], area=2, score=0.5),
    ]
    assert content["categories"] == [
        dict(id=1, name="pickup truck", isthing=1, synonyms=["pickup truck", "truck"]),
        dict(id=2, name="cat", isthing=1, synonyms=["cat"]),
        dict(id=3, name="blue sky", isthing=0, synonyms=["blue sky", "sky"]),
    ]


def test_round_trip(tmp_path):
    with CocoPanopticWriter(
        tmp_path / "a.json", VOCABULARY, category_ids=[17, 90, 200], png_dir=tmp_path / "png"
    ) as writer:
        writer.add(result(), "one", image_id="x")
        writer.add(result(), "two")
    one, two = read_coco_panoptic(tmp_path / "a.json", tmp_path / "png")
    assert np.array_equal(one.panoptic, result().panoptic)
    assert [(s.id, s.label, s.name, s.area, s.is_thing) for s in two.segments] == [
        (300, 0, "pickup truck", 6, True),
        (70_000, 2, "blue sky", 2, False),
    ]
    assert one.class_names == VOCABULARY.names


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="3 classes need"):
        describe_categories(VOCABULARY, [1, 2])
    with pytest.raises(ValueError, match="3 classes need"):
        describe_categories(VOCABULARY, [1, 2, 2])
    writer = CocoPanopticWriter(tmp_path / "a.json", VOCABULARY)
    with pytest.raises(ValueError, match="no panoptic map"):
        writer.add(SegmentationResult(image_name="x"), "x")


def test_the_json_is_written_when_something_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with CocoPanopticWriter(tmp_path / "a.json", VOCABULARY) as writer:
            writer.add(result(), "one")
            raise KeyboardInterrupt
    assert len(read_coco_panoptic(tmp_path / "a.json")) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"images": []}', "not json"])
def test_files_that_are_no_panoptic_json(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(PanopticFileError, match=r"a\.json: not a COCO panoptic JSON"):
        read_coco_panoptic(path)


def test_an_unlisted_category(tmp_path):
    with CocoPanopticWriter(tmp_path / "a.json", VOCABULARY) as writer:
        writer.add(result(), "one")
    path: Path = tmp_path / "a.json"
    content = json.loads(path.read_text())
    content["categories"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(PanopticFileError, match="category 3"):
        read_coco_panoptic(path)
