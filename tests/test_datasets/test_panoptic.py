"""PanopticDataset: information of images, and errors."""

from __future__ import annotations

import json
import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.logging import MMLogger

from odise_mm.annotations.panoptic_io import ids_to_rgb
from odise_mm.datasets import PanopticDataset
from odise_mm.errors import ConfigError, DatasetError, VocabularyError
from odise_mm.registry import DATASETS
from odise_mm.vocabulary import Vocabulary
from tests.support.small_coco import CATEGORIES, VOCABULARY, SmallCoco, write_small_coco


@pytest.fixture
def coco(tmp_path: Path) -> SmallCoco:
    return write_small_coco(tmp_path / "coco")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Capture mmengine's log."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO)
    yield caplog
    logger.removeHandler(caplog.handler)


def build(coco: SmallCoco, **changes: Any) -> PanopticDataset:
    return DATASETS.build(coco.config(**changes))


def infos(dataset: PanopticDataset) -> list[dict]:
    return [dataset.get_data_info(index) for index in range(len(dataset))]


def test_information_of_an_image(coco: SmallCoco) -> None:
    dataset = build(coco)
    first, second, third = infos(dataset)
    assert [info["img_id"] for info in (first, second, third)] == [7, 3, 25]
    assert first["img_path"] == str(coco.image(7))
    assert first["seg_map_path"] == str(coco.png(7))
    assert (first["height"], first["width"]) == (24, 40)
    # Classes are positions in the vocabulary, not in the file; segments keep the file's order.
    assert [s["label"] for s in first["segments_info"]] == [0, 2, 1, 1, 3]
    assert [s["is_thing"] for s in first["segments_info"]] == [False, False, True, True, True]
    assert [s["id"] for s in second["segments_info"]] == [73_001, 73_002, 73_003, 73_004, 73_005]
    assert [s["is_crowd"] for s in third["segments_info"]] == [False] * 4 + [True]
    assert set(first["segments_info"][0]) == {
        "id", "label", "is_thing", "is_crowd", "area"
    }  # fmt: skip
    assert dataset.get_cat_ids(0) == [0, 2, 1, 1, 3]
    assert not dataset.data_list, "mmengine keeps the images serialized, for worker processes"


def test_class_names(coco: SmallCoco) -> None:
    dataset = build(coco)
    assert dataset.vocabulary is VOCABULARY
    assert dataset.metainfo["classes"] == VOCABULARY.source_names
    assert dataset.metainfo["thing_classes"] == ("cat", "dog")
    assert dataset.metainfo["stuff_classes"] == ("sky-other-merged", "grass-merged")
    assert dataset.metainfo["vocabulary"] == VOCABULARY
    path = coco.root / "names.txt"
    VOCABULARY.save(path)
    for given in (str(path), "names.txt"):  # relative to the dataset's folder
        assert build(coco, vocabulary=given).vocabulary == VOCABULARY


def test_loading_opens_no_image(coco: SmallCoco) -> None:
    for path in [*coco.png(7).parent.iterdir(), *coco.image(7).parent.iterdir()]:
        path.unlink()
    assert len(build(coco)) == 3


def test_panopticapi_makes_no_difference(coco: SmallCoco, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = [dict(type="LoadImage"), dict(type="LoadPanopticMap")]
    monkeypatch.setitem(sys.modules, "panopticapi", None)  # import fails
    monkeypatch.setitem(sys.modules, "panopticapi.utils", None)
    without = build(coco, pipeline=pipeline)
    present = types.ModuleType("panopticapi.utils")
    present.rgb2id = lambda rgb: np.zeros(rgb.shape[:2])  # would break the maps if it were used
    monkeypatch.setitem(sys.modules, "panopticapi", types.ModuleType("panopticapi"))
    monkeypatch.setitem(sys.modules, "panopticapi.utils", present)
    beside = build(coco, pipeline=pipeline)
    assert infos(without) == infos(beside)
    for index in range(3):
        assert np.array_equal(without[index]["gt_seg_map"], beside[index]["gt_seg_map"])


def test_more_than_1000_classes(coco: SmallCoco) -> None:
    names = [f"name {index}" for index in range(1500)]
    content = coco.read()
    content["categories"] = [dict(id=i, name=name, isthing=1) for i, name in enumerate(names)]
    for number, annotation in enumerate(content["annotations"]):
        for place, segment in enumerate(annotation["segments_info"]):
            segment["category_id"] = 1499 - 5 * number - place
    coco.write(content)
    vocabulary = Vocabulary(tuple((name,) for name in names), (True,) * 1500)
    pipeline = [
        dict(type="LoadImage"),
        dict(type="LoadPanopticMap"),
        dict(type="PanopticMapToMasks"),
        dict(type="mmdet.PackDetInputs", meta_keys=("img_id",)),
    ]
    dataset = build(coco, vocabulary=vocabulary, pipeline=pipeline)
    instances = dataset[0]["data_samples"].gt_instances  # image 7 is the last annotation
    assert instances.labels.tolist() == [1489, 1488, 1487, 1486, 1485]
    expected = coco.maps[7] == 77_005
    assert np.array_equal(instances.masks.masks[4], expected.astype(np.uint8))


def test_class_agnostic(coco: SmallCoco) -> None:
    for vocabulary in (None, VOCABULARY):
        dataset = build(coco, vocabulary=vocabulary, class_agnostic=True)
        assert dataset.vocabulary.synonyms == (("object",),)
        assert dataset.metainfo["thing_classes"] == ("object",)
        segments = [s for info in infos(dataset) for s in info["segments_info"]]
        assert all(s["label"] == 0 and s["is_thing"] for s in segments)
        assert sum(s["is_crowd"] for s in segments) == 1


def test_a_label_file_renames_classes(coco: SmallCoco) -> None:
    labels = coco.root / "labels.txt"
    labels.write_text("0:invalid_class_id\n1:sky,air\n2:cat,tabby\n3:lawn\n4:hound\n")
    vocabulary = build(coco, label_file=str(labels)).vocabulary
    assert vocabulary.synonyms == (("sky", "air"), ("cat", "tabby"), ("lawn",), ("hound",))
    assert vocabulary.is_thing == VOCABULARY.is_thing
    assert vocabulary.source_names == VOCABULARY.source_names
    labels.write_text("1:sky\n2:cat\n3:lawn\n")
    with pytest.raises(DatasetError, match=r"labels.txt has 3 classes, but .* 'small' has 4"):
        build(coco, label_file="labels.txt")
    with pytest.raises(VocabularyError, match="nothing.txt"):
        build(coco, label_file="nothing.txt")


def test_semantic_label_files(coco: SmallCoco) -> None:
    (coco.root / "labels").mkdir()
    prefix = dict(coco.config()["data_prefix"], sem_seg="labels")
    info = build(coco, data_prefix=prefix, reduce_zero_label=True).get_data_info(0)
    assert info["sem_seg_path"] == str(coco.root / "labels/000000000007.png")
    assert info["reduce_zero_label"] is True
    named = dict(img_suffix="07.jpg", sem_seg_suffix="_ids.png")
    with pytest.raises(DatasetError, match=r"000000000003.jpg does not end in img_suffix='07.jpg'"):
        build(coco, data_prefix=prefix, **named)
    content = coco.read()
    content["images"] = content["images"][:1]
    content["annotations"] = content["annotations"][-1:]
    coco.write(content)
    info = build(coco, data_prefix=prefix, **named).get_data_info(0)
    assert info["sem_seg_path"] == str(coco.root / "labels/0000000000_ids.png")
    with pytest.raises(DatasetError, match="nolabels: folder of semantic label files not found"):
        build(coco, data_prefix={**prefix, "sem_seg": "nolabels"})


def test_noun_phrases_are_in_the_data_info(coco: SmallCoco, log: pytest.LogCaptureFixture) -> None:
    path = coco.root / "annotations/phrases.json"
    phrases = {"7": [["two cats", "grass"], []], "25": [["dogs"]], "999": [["other"]]}
    path.write_text(json.dumps(dict(info={}, phrases=phrases)))
    data = infos(build(coco, phrases_file="annotations/phrases.json"))
    assert [info["captions_phrases"] for info in data] == [phrases["7"], [], phrases["25"]]
    assert "1 of 3 images have no noun phrases" in log.text
    assert "captions_phrases" not in build(coco).get_data_info(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "phrases.json: file of noun phrases not found; .*tools/.*coco.py"),
        ('{"phrases": {"8": []}}', "contains none of the 3 images .* first image's id is 7"),
        ('{"phrases": {"7": ["cats"]}}', "`phrases` must be image id -> list of captions"),
        ('{"7": []}', "not a file of noun phrases"),
        ('{"phrases"', "not JSON, or truncated"),
        ('{"phrases": {"7": [[1]]}}', "not a file of noun phrases"),
    ],
)
def test_invalid_phrases_raise(coco: SmallCoco, text: str | None, message: str) -> None:
    if text is not None:
        (coco.root / "phrases.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        build(coco, phrases_file="phrases.json")


def clear_segments(content: dict, *image_ids: int) -> None:
    for annotation in content["annotations"]:
        if annotation["image_id"] in image_ids:
            annotation["segments_info"] = []


def test_images_without_segments(coco: SmallCoco, log: pytest.LogCaptureFixture) -> None:
    content = coco.read()
    clear_segments(content, 3)
    crowd = content["annotations"][0]
    crowd["segments_info"] = [s for s in crowd["segments_info"] if s["iscrowd"]]
    coco.write(content)
    assert [info["img_id"] for info in infos(build(coco))] == [7]
    assert "2 of 3 images are left out: without segments to train on" in log.text
    assert f"(the first: {coco.image(3)})" in log.text
    assert [info["img_id"] for info in infos(build(coco, test_mode=True))] == [7, 3, 25]


def test_an_empty_dataset(coco: SmallCoco) -> None:
    content = coco.read()
    clear_segments(content, 3, 7, 25)
    coco.write(content)
    with pytest.raises(DatasetError, match="the dataset is empty: all 3 images are without seg"):
        build(coco)
    coco.write(dict(images=[], annotations=[], categories=CATEGORIES))
    with pytest.raises(DatasetError, match="the dataset is empty: it lists no images"):
        build(coco, test_mode=True)


def test_images_without_annotation_are_left_out(
    coco: SmallCoco, log: pytest.LogCaptureFixture
) -> None:
    content = coco.read()
    del content["annotations"][0]
    coco.write(content)
    assert [info["img_id"] for info in infos(build(coco, test_mode=True))] == [7, 3]
    assert "1 of 3 images are left out: they have no annotation" in log.text


def test_different_thing_flags_are_logged(coco: SmallCoco, log: pytest.LogCaptureFixture) -> None:
    content = coco.read()
    content["categories"][1]["isthing"] = 0
    coco.write(content)
    data = infos(build(coco))
    assert data[0]["segments_info"][4]["is_thing"]
    assert (
        "differs from the vocabulary 'small', whose things and stuff are used (the first: dog)"
        in log.text
    )


def rename(content: dict, old: str, new: str) -> None:
    for category in content["categories"]:
        if category["name"] == old:
            category["name"] = new


BROKEN: dict[str, tuple[Callable[[dict], Any], str]] = {
    "a name the file lacks": (
        lambda c: rename(c, "dog", "hound"),
        r"no category for 'dog' of vocabulary 'small' \(4 classes\); .*'hound'",
    ),
    "a category the vocabulary lacks": (
        lambda c: (
            c["categories"].append(dict(id=99, name="tree", isthing=0)),
            c["annotations"][0]["segments_info"][0].update(category_id=99),
        ),
        r"unknown category ids in annotations: 99 \(tree\); .* under a name of the vocabulary",
    ),
    "a category that is not listed": (
        lambda c: c["annotations"][0]["segments_info"][0].update(category_id=55),
        r"unknown category ids in annotations: 55 \(not in `categories`\)",
    ),
    "an image id twice": (
        lambda c: c["images"].append(dict(c["images"][0])),
        "image id 7 appears more than once",
    ),
    "a category id twice": (
        lambda c: c["categories"][1].update(id=17),
        "category id 17 appears more than once",
    ),
    "a category name twice": (
        lambda c: c["categories"].append(dict(id=99, name="dog", isthing=1)),
        "category name 'dog' appears more than once, with ids 18 and 99",
    ),
    "an image annotated twice": (
        lambda c: c["annotations"].append(dict(c["annotations"][0])),
        "image id 25 is annotated twice",
    ),
    "an unknown image": (
        lambda c: c["annotations"][0].update(image_id=404),
        "000000000025.png belongs to image id 404, which `images` does not list",
    ),
    "a segment id twice": (
        lambda c: c["annotations"][0]["segments_info"][1].update(id=95_001),
        "000000000025.png has two segments with the same id",
    ),
    "a segment id that is none": (
        lambda c: c["annotations"][0]["segments_info"][1].update(id=2**24),
        "000000000025.png has segment id 16777216; .* whole numbers from 1 to 16777215",
    ),
    "a segment id of text": (
        lambda c: c["annotations"][0]["segments_info"][1].update(id="95001"),
        '000000000025.png has segment id "95001"; .* whole numbers',
    ),
    "no height": (lambda c: c["images"][0].pop("height"), "image 7 has no `height`"),
    "a list instead of an image": (
        lambda c: c["images"].__setitem__(0, [1]),
        "image number 1 of the list is a list, not an object",
    ),
    "an image without a name": (
        lambda c: c["images"][0].pop("file_name"),
        "image 7 has no `file_name`",
    ),
    "an image id of text": (
        lambda c: c["annotations"][0].update(image_id="25"),
        'belongs to image id "25", .*25 exists: one is text, the other a number',
    ),
    "a category id of text": (
        lambda c: c["annotations"][0]["segments_info"][0].update(category_id="17"),
        r'"17" \(not in `categories`\) \(but 17 exists: one is text',
    ),
    "a crowd flag of text": (
        lambda c: c["annotations"][0]["segments_info"][0].update(iscrowd="0"),
        '000000000025.png: segment 95001 has `iscrowd` "0", not 0 or 1',
    ),
    "a thing flag of text": (
        lambda c: c["categories"][0].update(isthing="0"),
        'category 17 has `isthing` "0", not 0 or 1',
    ),
    "a name that is null": (
        lambda c: c["categories"][0].update(name=None),
        "category 17 has `name` null, not text",
    ),
    "an image outside": (
        lambda c: c["images"][0].update(file_name="../../secret.jpg"),
        "image 7: '../../secret.jpg' leads outside its folder",
    ),
    "a map outside": (
        lambda c: c["annotations"][0].update(file_name="/etc/hosts"),
        "image 25: '/etc/hosts' leads outside its folder",
    ),
    "instances": (
        lambda c: [a.pop("segments_info") for a in c["annotations"]],
        "expected panoptic annotations, found instance annotations",
    ),
    "no categories": (
        lambda c: c.pop("categories"),
        "not panoptic annotations in COCO's format, the list `categories` is missing",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("test_mode", [True, False])
def test_contradicting_annotations_raise(coco: SmallCoco, case: str, test_mode: bool) -> None:
    change, message = BROKEN[case]
    content = coco.read()
    change(content)
    coco.write(content)
    with pytest.raises(DatasetError, match=message) as caught:
        build(coco, test_mode=test_mode)
    assert str(coco.json) in str(caught.value)


def test_unused_categories_are_accepted(coco: SmallCoco) -> None:
    content = coco.read()
    content["categories"].append(dict(id=99, name="tree", isthing=0))
    coco.write(content)
    assert len(build(coco)) == 3


def test_unused_root_category_may_share_a_class_name(coco: SmallCoco) -> None:
    content = coco.read()
    before = infos(build(coco))
    root = dict(id=0, name="dog", supercategory="none")
    coco.write({**content, "categories": [root, *content["categories"]]})
    dataset = build(coco)
    assert infos(dataset) == before and 0 not in dataset.cat2label
    content["annotations"][0]["segments_info"][0]["category_id"] = 0
    coco.write({**content, "categories": [root, *content["categories"]]})
    with pytest.raises(DatasetError, match="category name 'dog' .* ids 0 and 18"):
        build(coco)


def test_missing_or_invalid_files_raise(coco: SmallCoco) -> None:
    with pytest.raises(DatasetError, match=r"other.json: no such annotation file"):
        build(coco, ann_file="other.json")
    prefix = coco.config()["data_prefix"]
    with pytest.raises(DatasetError, match=r"no/images: folder of images not found"):
        build(coco, data_prefix={**prefix, "img": "no/images"})
    with pytest.raises(DatasetError, match=r"no/png: folder of panoptic PNG files not found"):
        build(coco, data_prefix={**prefix, "seg": "no/png"})
    for text in ('{"images": [', "[1, 2]"):
        coco.json.write_text(text)
        with pytest.raises(DatasetError, match=r"panoptic_train2017.json: not "):
            build(coco)


def test_invalid_arguments_raise(coco: SmallCoco) -> None:
    with pytest.raises(DatasetError, match="needs `vocabulary`: one of coco, ade20k"):
        build(coco, vocabulary=None)
    with pytest.raises(DatasetError, match=r"a built-in name or a file, not \['cat', 'dog'\]"):
        build(coco, vocabulary=["cat", "dog"])
    with pytest.raises(DatasetError, match=r"'coco' \(133 classes\); the file has 4 categories"):
        build(coco, vocabulary="coco")
    with pytest.raises(ConfigError, match="remove filter_cfg"):
        build(coco, filter_cfg=dict(filter_empty_gt=True))


def test_ids_need_all_bytes_of_a_pixel(coco: SmallCoco) -> None:
    """Check that the test data has large ids; mistakes in them would not show otherwise."""
    assert (ids_to_rgb(coco.maps[25])[5, 5] > 0).all()
