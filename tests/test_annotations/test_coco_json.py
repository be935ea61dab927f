"""Annotation files in COCO's format: valid ones are read, invalid entries are named."""

from __future__ import annotations

import copy
import cProfile
import json
import pstats
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from odise_mm.annotations.coco_json import (
    image_name,
    read_captions,
    read_coco,
    without_unused_roots,
)
from odise_mm.errors import DatasetError

RING = [1, 1, 9, 1, 9, 9]
CONTENT = dict(
    info=dict(version=1),
    images=[
        dict(id=5, height=20, width=30, file_name="five.jpg"),
        dict(id=2, height=10, width=12, file_name="two.jpg", license=3),
    ],
    annotations=[
        dict(id=n, image_id=[5, 2][n % 2], category_id=[7, 3][n % 2], area=32.5,
             bbox=[1, 1, 8, 8], iscrowd=0, segmentation=[RING])
        for n in range(6)
    ],
    categories=[dict(id=7, name="cat"), dict(id=3, name="dog", supercategory="pet")],
)  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    def write(content: Any) -> Path:
        path = tmp_path / "ann.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def changed(key: str, place: int, **fields: Any) -> dict:
    """Return the content with some fields of an entry replaced, or removed if they are Ellipsis."""
    content = copy.deepcopy(CONTENT)
    content[key][place] |= fields
    for name in [name for name, value in fields.items() if value is ...]:
        del content[key][place][name]
    return content


def test_valid_content_is_unchanged(write: Callable) -> None:
    found = read_coco(write(CONTENT), "instance")
    assert list(found.images) == [5, 2] and list(found.images.values()) == CONTENT["images"]
    assert list(found.categories.values()) == CONTENT["categories"]
    assert found.annotations == CONTENT["annotations"] and found.notes == []
    flags = changed("annotations", 0, iscrowd=True, id=...)
    assert read_coco(write(flags), "instance").annotations == flags["annotations"]


@pytest.mark.parametrize(
    ("key", "fields", "message"),
    [
        ("images", dict(id=True), "image number 1 of the list has `id` true, not a whole number"),
        ("images", dict(id=1.5), "number 1 of the list has `id` 1.5"),
        ("images", dict(id=5.0), "number 1 of the list has `id` 5.0"),
        ("images", dict(id=None), "number 1 of the list has `id` null"),
        ("images", dict(id=...), "number 1 of the list has no `id`"),
        ("images", dict(id=2), "image id 2 appears more than once"),
        ("images", dict(id="2"), r"image ids mix numbers and text \(2, \"2\"\)"),
        ("images", dict(height=0), "image 5 has `height` 0, not a whole number from 1"),
        ("images", dict(height=-20), "image 5 has `height` -20"),
        ("images", dict(width="30"), 'image 5 has `width` "30"'),
        ("images", dict(width=30.5), "image 5 has `width` 30.5"),
        ("images", dict(width=10**30), "image 5 has `width` 1000"),
        ("images", dict(file_name=None), "image 5 has `file_name` null, not text"),
        ("images", dict(coco_url=7), "image 5 has `coco_url` 7, not text"),
        ("categories", dict(id="7.0x", name="\x1b[31m"), "category ids mix numbers and text"),
        ("categories", dict(id=3), "category id 3 appears more than once"),
        ("categories", dict(id=False), "category number 1 of the list has `id` false"),
        ("categories", dict(name=None), "category 7 has `name` null, not text"),
        ("categories", dict(name=12), "category 7 has `name` 12, not text"),
        ("categories", dict(name=" "), 'category 7 has `name` " ", not text'),
        ("categories", dict(name=...), "category 7 has no `name`"),
        ("categories", dict(isthing="0"), 'category 7 has `isthing` "0", not 0 or 1'),
        ("categories", dict(isthing=2), "category 7 has `isthing` 2, not 0 or 1"),
        ("categories", dict(isthing=None), "category 7 has `isthing` null"),
        ("annotations", dict(id=3), "annotation id 3 appears more than once"),
        ("annotations", dict(id=True), "annotation number 1 of the list has `id` true"),
        ("annotations", dict(image_id="5"), r'0 belongs to image id "5", .*but 5 exists: one'),
        ("annotations", dict(image_id=9), "0 belongs to image id 9, which `images` does not list"),
        ("annotations", dict(image_id=True), "annotation 0 has `image_id` true"),
        ("annotations", dict(image_id=[5]), "annotation 0 has `image_id` a list"),
        ("annotations", dict(category_id=7.5), "annotation 0 has `category_id` 7.5"),
        ("annotations", dict(category_id=...), "annotation 0 has no `category_id`"),
        ("annotations", dict(iscrowd="0"), 'annotation 0 has `iscrowd` "0", not 0 or 1'),
        ("annotations", dict(iscrowd=None), "annotation 0 has `iscrowd` null"),
        ("annotations", dict(iscrowd=0.0), "annotation 0 has `iscrowd` 0.0"),
        ("annotations", dict(ignore="false"), 'annotation 0 has `ignore` "false"'),
        ("annotations", dict(area=-1), "annotation 0 has `area` -1, not a number from 0"),
        ("annotations", dict(area="32.5"), 'annotation 0 has `area` "32.5"'),
        ("annotations", dict(area=True), "annotation 0 has `area` true"),
        ("annotations", dict(bbox=[1, 1, 8]), "annotation 0 has `bbox` a list, not four numbers"),
        ("annotations", dict(bbox=[1, 1, -8, 8]), "annotation 0 has `bbox` a list"),
        ("annotations", dict(bbox=[1, 1, "8", 8]), "annotation 0 has `bbox` a list"),
        ("annotations", dict(bbox=[1, 1, 10**400, 8]), "annotation 0 has `bbox` a list"),
        ("annotations", dict(bbox=...), "annotation 0 has no `bbox`"),
        ("annotations", dict(segmentation="x"), 'annotation 0 of image 5: its mask is "x"'),
        ("annotations", dict(segmentation=0), "annotation 0 of image 5: its mask is 0"),
        ("annotations", dict(segmentation=dict(size=[30, 20], counts=[600])),
         r"annotation 0 of image 5: .* size \[30, 20\], but its image has \[20, 30\]"),
    ],
)  # fmt: skip
def test_fields_of_wrong_types_raise(write: Callable, key: str, fields: dict, message: str) -> None:
    path = write(changed(key, 0, **fields))
    with pytest.raises(DatasetError, match=message) as caught:
        read_coco(path, "instance")
    assert str(caught.value).startswith(f"{path}: ") and str(caught.value).isprintable()


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_entries_that_are_not_objects_raise(write: Callable, key: str) -> None:
    for odd, said in (([1], "a list"), (None, "null"), ("text", '"text"'), (7, "7")):
        content = copy.deepcopy(CONTENT)
        content[key][1] = odd
        with pytest.raises(DatasetError, match=f"number 2 of the list is {said}, not an object"):
            read_coco(write(content), "instance")
    for content in ({**CONTENT, key: {}}, {k: v for k, v in CONTENT.items() if k != key}):
        with pytest.raises(DatasetError, match=f"COCO's format, the list `{key}` is missing"):
            read_coco(write(content), "instance")


@pytest.mark.parametrize("text", ["[]", "7", "null", '"text"'])
def test_not_an_annotation_file_raises(write: Callable, text: str) -> None:
    with pytest.raises(DatasetError, match="not instance annotations in COCO's format"):
        read_coco(write(text), "instance")
    with pytest.raises(DatasetError, match="not captions in COCO's format"):
        read_captions(write(text))


def test_unusable_masks_are_skipped_and_counted(write: Callable) -> None:
    content = copy.deepcopy(CONTENT)
    first, second, third, *_ = content["annotations"]
    first["segmentation"] = [[1, 1, 2, 2], RING]
    second["segmentation"] = [[1, 1, 2, 2], []]
    third["segmentation"] = [[1, 1, 90, 1, 90, 9]]
    found = read_coco(write(content), "instance")
    assert [one["id"] for one in found.annotations] == [0, 3, 4, 5]
    assert found.annotations[0]["segmentation"] == [RING]
    assert len(found.notes) == 3
    few, far, rings = found.notes
    assert "skipped 1 of 6 annotations" in few and "(the first: annotation 1 of image 2)" in few
    assert "fewer than 3 points" in few and "far outside the image" in far
    assert "masks of 1 of 6 annotations (the first: annotation 0 of image 5)" in rings


def test_annotations_without_a_mask(write: Callable) -> None:
    content = copy.deepcopy(CONTENT)
    for one, mask in zip(content["annotations"], ([], None, ...), strict=False):
        one["segmentation"] = mask
    del content["annotations"][2]["segmentation"]
    found = read_coco(write(content), "instance")
    assert [one["id"] for one in found.annotations] == [3, 4, 5]
    assert found.notes == [
        f"{found.path}: skipped 3 of 6 annotations without a usable mask: they have no mask "
        "(the first: annotation 0 of image 5)"
    ]
    assert len(read_coco(write(content), "instance", masks=False).annotations) == 6
    content["annotations"][3]["segmentation"] = [[1, 1]]
    with pytest.raises(DatasetError, match="4 of 6 annotations, .*: they have no mask"):
        read_coco(write(content), "instance")


PANOPTIC = dict(
    images=[dict(id="a", height=4, width=4, file_name="a.jpg")],
    annotations=[
        dict(image_id="a", file_name="a.png", segments_info=[
            dict(id=1, category_id=7, iscrowd=0), dict(id=256**3 - 1, category_id=3)])
    ],
    categories=CONTENT["categories"],
)  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(id=True), "a.png: segment number 1 of the list has `id` true"),
        (dict(id=0), "a.png has segment id 0; .* whole numbers from 1 to 16777215"),
        (dict(id=256**3), "a.png has segment id 16777216; .* whole numbers from 1 to 16777215"),
        (dict(id="1"), 'a.png has segment id "1"; .* whole numbers'),
        (dict(id=256**3 - 1), "a.png has two segments with the same id, 16777215"),
        (dict(category_id=None), "a.png: segment 1 has `category_id` null"),
        (dict(iscrowd="1"), 'a.png: segment 1 has `iscrowd` "1", not 0 or 1'),
    ],
)
def test_segments_of_wrong_types_raise(write: Callable, fields: dict, message: str) -> None:
    assert list(read_coco(write(PANOPTIC), "panoptic").images) == ["a"]
    content = copy.deepcopy(PANOPTIC)
    content["annotations"][0]["segments_info"][0] |= fields
    with pytest.raises(DatasetError, match=message):
        read_coco(write(content), "panoptic")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (dict(file_name="a/b.jpg"), "a/b.jpg"),
        (dict(coco_url="http://x.org/val2017/7.jpg"), "val2017/7.jpg"),
        # COCO's entries have both, LVIS's refer to COCO's folders
        (dict(file_name="7.jpg", coco_url="http://x.org/val2017/7.jpg"), "7.jpg"),
        (
            dict(file_name="7.jpg", coco_url="http://x.org/val2017/7.jpg", neg_category_ids=[]),
            "val2017/7.jpg",
        ),
        (dict(file_name="val2017/7.jpg", neg_category_ids=[]), "val2017/7.jpg"),
    ],
)
def test_image_name(fields: dict, name: str) -> None:
    assert image_name(dict(id=7, **fields)) == name


def test_image_without_a_name_raises() -> None:
    with pytest.raises(DatasetError, match="image 7 has neither `file_name` nor `coco_url`"):
        image_name(dict(id=7))


def test_unused_root_categories_are_dropped() -> None:
    root = dict(name="cat", supercategory="none")
    cat, dog = dict(name="cat", supercategory="cat"), dict(name="dog", supercategory="cat")
    categories = {0: root, 1: cat, 2: dog}
    assert without_unused_roots(categories, {1}) == {1: cat, 2: dog}
    assert without_unused_roots(categories, {0, 1}) == categories
    assert without_unused_roots({0: root, 2: dog}) == {0: root, 2: dog}  # its name is unique


def test_checks_do_not_call_python_for_every_coordinate(write: Callable) -> None:
    one = CONTENT["annotations"][0] | dict(segmentation=[[1.5, 2.25] * 30, [2.5, 3.25] * 10])

    def calls(count: int) -> int:
        path = write(CONTENT | dict(annotations=[one | dict(id=n) for n in range(count)]))
        with cProfile.Profile() as profile:
            assert len(read_coco(path, "instance").annotations) == count
        return pstats.Stats(profile).total_calls

    # An annotation has 80 coordinates. 58 calls per annotation were counted.
    assert calls(400) - calls(200) < 200 * 80
