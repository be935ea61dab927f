"""COCO panoptic files: writing, reading, and comparison with the definition of the format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odise_mm.annotations.panoptic_io import (
    CocoPanopticWriter,
    PanopticFileError,
    describe_categories,
    ids_to_rgb,
    read_coco_panoptic,
    read_panoptic_png,
    write_panoptic_png,
)
from odise_mm.structures import Segment, SegmentationResult
from odise_mm.vocabulary import Vocabulary

VOCABULARY = Vocabulary.parse("pickup truck, truck; cat", "blue sky, sky")


def result() -> SegmentationResult:
    panoptic = np.zeros((4, 6), np.int32)
    panoptic[1:3, 2:5] = 300
    panoptic[0, 0] = panoptic[3, 5] = 70_000
    segments = [
        Segment(300, 0, "pickup truck", 0.87654321, 6, True),
        Segment(70_000, 2, "blue sky", 0.5, 2, False),
        Segment(9, 1, "cat", 0.4, 0, True),  # no pixels in the map
    ]
    return SegmentationResult("a/b.jpg", "b", 4, 6, panoptic, segments)


def test_colors_follow_the_definition_of_the_format():
    ids = np.random.default_rng(0).integers(0, 256**3, (50, 40))
    rgb = ids_to_rgb(ids)
    assert rgb.dtype == np.uint8
    # Panoptic format (cocodataset.org): id = R + G * 256 + B * 256^2.
    wide = rgb.astype(np.int64)
    assert np.array_equal(wide[..., 0] + wide[..., 1] * 256 + wide[..., 2] * 256**2, ids)
    assert ids_to_rgb(np.array([[1, 256, 65536]])).tolist() == [[[1, 0, 0], [0, 1, 0], [0, 0, 1]]]
    for bad in (-1, 256**3):
        with pytest.raises(ValueError, match="do not fit"):
            ids_to_rgb(np.array([[bad]]))


@pytest.mark.parametrize("alpha", [(), (0, 128, 255)])
def test_all_bytes_of_an_id_are_read(tmp_path, alpha):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 256**3, (37, 53))
    pixels = ids_to_rgb(ids)
    if alpha:  # it means nothing in this format
        pixels = np.dstack([pixels, rng.choice(np.array(alpha, np.uint8), ids.shape)])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = read_panoptic_png(tmp_path / "a.png")
    assert np.array_equal(found, ids) and found.dtype == np.int32 and found.flags.writeable


def test_png_round_trip(tmp_path):
    path = tmp_path / "new" / "a.png"
    write_panoptic_png(path, result().panoptic)
    assert np.array_equal(read_panoptic_png(path), result().panoptic)
    with Image.open(path) as image:
        assert image.mode == "RGB" and image.getpixel((2, 1)) == (300 - 256, 1, 0)
    gray = tmp_path / "gray.png"
    Image.new("L", (3, 3)).save(gray)
    with pytest.raises(PanopticFileError, match="must be RGB, not L"):
        read_panoptic_png(gray)
    with pytest.raises(PanopticFileError, match="no such panoptic PNG"):
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


def test_invalid_arguments_raise(tmp_path):
    with pytest.raises(ValueError, match="3 classes need"):
        describe_categories(VOCABULARY, [1, 2])
    with pytest.raises(ValueError, match="3 classes need"):
        describe_categories(VOCABULARY, [1, 2, 2])
    writer = CocoPanopticWriter(tmp_path / "a.json", VOCABULARY)
    with pytest.raises(ValueError, match="no panoptic map"):
        writer.add(SegmentationResult(image_name="x"), "x")


def test_json_file_is_written_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with CocoPanopticWriter(tmp_path / "a.json", VOCABULARY) as writer:
            writer.add(result(), "one")
            raise KeyboardInterrupt
    assert len(read_coco_panoptic(tmp_path / "a.json")) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"images": []}', "not json", "[" * 100_000])
def test_not_a_panoptic_json_file_raises(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(PanopticFileError, match=r"a\.json: .*COCO panoptic JSON"):
        read_coco_panoptic(path)


def test_unlisted_category_raises(tmp_path):
    with CocoPanopticWriter(tmp_path / "a.json", VOCABULARY) as writer:
        writer.add(result(), "one")
    path: Path = tmp_path / "a.json"
    content = json.loads(path.read_text())
    content["categories"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(PanopticFileError, match="category 3"):
        read_coco_panoptic(path)


def street(folder: Path) -> dict:
    """Write a map of 6 x 5 pixels with segments 3 and 900, and return the JSON content for it."""
    ids = np.zeros((5, 6), np.int32)
    ids[:, :2], ids[1:3, 3:] = 3, 900
    write_panoptic_png(folder / "street" / "7.png", ids)
    segments = [
        dict(id=3, category_id=21, area=10, bbox=[0, 0, 2, 5], iscrowd=0),
        dict(id=900, category_id=4, area=6, bbox=[3, 1, 3, 2], iscrowd=0, score=0.25),
    ]
    return dict(
        images=[dict(id=7, file_name="7.jpg", height=5, width=6)],
        categories=[dict(id=4, name="bus", isthing=1), dict(id=21, name="road", isthing=0)],
        annotations=[dict(image_id=7, file_name="7.png", segments_info=segments)],
    )


def read_street(folder: Path, content: dict) -> list[SegmentationResult]:
    (folder / "street.json").write_text(json.dumps(content))
    return read_coco_panoptic(folder / "street.json")


def test_ground_truth_in_coco_format(tmp_path):
    (street_scene,) = read_street(tmp_path, street(tmp_path))
    assert street_scene.segments == [
        Segment(3, 1, "road", 1.0, 10, False),
        Segment(900, 0, "bus", 0.25, 6, True),
    ]
    assert (street_scene.image_name, street_scene.width, street_scene.height) == ("7.jpg", 6, 5)


def altered(content: dict, place: str, value: object) -> dict:
    """Replace the value at a path such as "annotations.0.image_id"; None removes it."""
    *parents, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    node = content
    for part in parents:
        node = node[part]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return content


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("annotations.0.segments_info.1.area", None, r"segments_info\[1\] has no `area`"),
        ("annotations.0.segments_info.1.id", None, r"segments_info\[1\] has no `id`"),
        ("annotations.0.segments_info.0.category_id", None, "has no `category_id`"),
        ("annotations.0.segments_info", None, r"annotations\[0\] .*has no `segments_info`"),
        ("annotations.0.file_name", None, "has no `file_name`"),
        ("annotations.0.image_id", None, "has no `image_id`"),
        ("categories.1.isthing", None, r"categories\[1\] has no `isthing`"),
        ("categories.1.name", None, r"categories\[1\] has no `name`"),
        ("categories.1.id", None, r"categories\[1\] has no `id`"),
        ("images.0.id", None, r"images\[0\] has no `id`"),
        ("annotations.0.segments_info.0.area", "10", '`area` "10", not a number'),
        ("annotations.0.segments_info.0.area", True, "`area` true"),
        ("annotations.0.segments_info.0.area", -1, "`area` -1"),
        ("annotations.0.segments_info.0.id", "3", '`id` "3", not a whole number'),
        ("annotations.0.segments_info.0.id", 0, "`id` 0"),
        ("annotations.0.segments_info.0.id", 900, "the id 900 of an earlier segment"),
        ("annotations.0.segments_info.0.id", 4, "the id 4, which has no pixels in the map"),
        ("annotations.0.segments_info.0.score", "high", '`score` "high"'),
        ("annotations.0.segments_info.0.score", 1.5, "`score` 1.5, not a number from 0 to 1"),
        ("annotations.0.segments_info.0.iscrowd", "0", '`iscrowd` "0", not 0 or 1'),
        ("annotations.0.segments_info.0.bbox", [1, 2], "`bbox` a list, not four numbers"),
        ("annotations.0.segments_info.0.category_id", "21", 'has category "21", which'),
        ("annotations.0.segments_info.0", 3, r"segments_info\[0\] is 3, not an object"),
        ("annotations.0.segments_info", {}, "`segments_info` an object, not a list"),
        ("annotations.0.image_id", 8, r"annotations\[0\] .*belongs to image 8"),
        ("annotations.0.file_name", 7, "`file_name` 7, not text"),
        ("annotations.0.file_name", "8.png", "8.png: no such panoptic PNG"),
        ("annotations.0.file_name", "../7.png", "leads outside"),
        ("annotations.0.file_name", "/etc/hostname", "leads outside"),
        ("categories.0.isthing", "0", '`isthing` "0", not 0 or 1'),
        ("categories.0.isthing", 2, "`isthing` 2"),
        ("categories.0.name", 7, "`name` 7, not text"),
        ("categories.0.name", " ", "`name`"),
        ("categories.0.id", 21, r"categories\[1\] has the id 21 of categories\[0\]"),
        ("categories.0", "bus", r'categories\[0\] is "bus", not an object'),
        ("categories", {}, "`categories` an object, not a list"),
        ("images.0.id", 7.0, "`id` 7.0"),
        ("images.0.file_name", 7, "`file_name` 7"),
        ("images.0.width", 12, "is 12 x 5 pixels, but its map .* is 6 x 5"),
        ("images.0.height", "5", '`height` "5"'),
        ("images", 1, "`images` 1, not a list"),
        ("annotations", "none", "`annotations` .*not a list"),
    ],
)
def test_every_field_is_checked(tmp_path, place, value, message):
    with pytest.raises(PanopticFileError, match=message) as caught:
        read_street(tmp_path, altered(street(tmp_path), place, value))
    assert "street" in str(caught.value) and "\n" not in str(caught.value)


def test_second_annotation_of_an_image_raises(tmp_path):
    content = street(tmp_path)
    content["annotations"] *= 2
    with pytest.raises(PanopticFileError, match=r"annotations\[1\] .*second annotation of image 7"):
        read_street(tmp_path, content)


def test_instance_annotations_raise(tmp_path):
    content = street(tmp_path)
    content["annotations"] = [
        dict(id=1, image_id=7, category_id=4, area=6, iscrowd=0, segmentation=[[0, 0, 3, 0, 3, 2]])
    ]
    with pytest.raises(PanopticFileError, match="of single instances"):
        read_street(tmp_path, content)


@pytest.mark.parametrize("area", [4, 0, 10.5, 10**30])
def test_areas_are_counted_in_the_map(tmp_path, area):
    content = altered(street(tmp_path), "annotations.0.segments_info.0.area", area)
    with pytest.warns(UserWarning, match="segments: 1; first: .*has 10 pixels and `area`"):
        (result,) = read_street(tmp_path, content)
    assert [segment.area for segment in result.segments] == [10, 6]


def test_foreign_text_in_messages_is_one_line(tmp_path):
    content = altered(street(tmp_path), "annotations.0.file_name", "a\nerror: \x1b[31m.png")
    with pytest.raises(PanopticFileError) as caught:
        read_street(tmp_path, content)
    assert str(caught.value).isprintable()
