"""Captions: reading COCO's file, random captions in training, the first one in testing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from odise_mm.datasets import PanopticDataset
from odise_mm.datasets.seeding import SeededIndex
from odise_mm.errors import DatasetError
from odise_mm.registry import DATASETS
from tests.support.parts import load_config
from tests.support.small_coco import SmallCoco, write_small_coco

CAPTIONS = {
    7: ["two cats", "a dog near two cats", "grass"],
    3: ["another dog"],
    25: ["a crowd of dogs", "many dogs"],
}
# The number at the end is the index of the caption.
PHRASES = {
    str(image_id): [[f"{image_id} {number}"] for number in range(len(captions))]
    for image_id, captions in CAPTIONS.items()
}


@pytest.fixture
def coco(tmp_path: Path) -> SmallCoco:
    coco = write_small_coco(tmp_path / "coco")
    # As in COCO, captions are not grouped by image, and the file has other images as well.
    rows = [(i, texts[n]) for n in range(3) for i, texts in CAPTIONS.items() if n < len(texts)]
    write_captions(coco, [*rows, (999, "of another image")])
    return coco


def write_captions(coco: SmallCoco, rows: list[tuple[int, str]]) -> None:
    annotations = [dict(id=n, image_id=i, caption=text) for n, (i, text) in enumerate(rows)]
    content = dict(info={}, images=[dict(id=i) for i in CAPTIONS], annotations=annotations)
    (coco.root / "annotations/captions.json").write_text(json.dumps(content))


def build(coco: SmallCoco, **changes: Any) -> PanopticDataset:
    return DATASETS.build(coco.config(**{"captions_file": "annotations/captions.json", **changes}))


def write_phrases(coco: SmallCoco, phrases: dict) -> str:
    (coco.root / "phrases.json").write_text(json.dumps(dict(info={}, phrases=phrases)))
    return "phrases.json"


def test_captions_are_in_the_data_info(coco: SmallCoco) -> None:
    dataset = build(coco)
    infos = [dataset.get_data_info(index) for index in range(3)]
    assert [info["captions"] for info in infos] == [CAPTIONS[info["img_id"]] for info in infos]
    assert [info["caption"] for info in infos] == ["two cats", "another dog", "a crowd of dogs"]
    assert "caption" not in build(coco, captions_file=None).get_data_info(0)


def test_white_space_is_stripped(coco: SmallCoco) -> None:
    write_captions(coco, [(image_id, " a dog \n") for image_id in CAPTIONS])
    assert build(coco).get_data_info(0)["caption"] == "a dog"


def pipeline(which: str) -> list[dict]:
    """Return the published config's pipeline without the transforms that change sizes."""
    steps = load_config("odise/odise_coco_caption.py")[which]
    sized = ("LargeScaleJitter", "mmdet.Pad", "ResizeKeepRatio")
    return [step for step in steps if step["type"] not in sized]


def drawn(dataset: PanopticDataset, image: int, seed: int) -> dict:
    return dataset[SeededIndex(image, seed)]["data_samples"].metainfo


def test_testing_uses_the_first_caption(coco: SmallCoco) -> None:
    dataset = build(coco, pipeline=pipeline("test_pipeline"), test_mode=True)
    assert {drawn(dataset, 0, seed)["caption"] for seed in range(8)} == {"two cats"}
    without = build(coco, captions_file=None, pipeline=pipeline("test_pipeline"), test_mode=True)
    assert "caption" not in drawn(without, 0, 0)


def test_training_draws_caption_and_its_words_together(coco: SmallCoco) -> None:
    file = write_phrases(coco, PHRASES)
    dataset = build(coco, phrases_file=file, pipeline=pipeline("train_pipeline"))
    counts = dict.fromkeys(CAPTIONS[7], 0)
    for seed in range(90):
        sample = drawn(dataset, 0, seed)
        counts[sample["caption"]] += 1
        assert sample["words"] == [f"7 {CAPTIONS[7].index(sample['caption'])}"] * 8
    assert all(18 < count < 44 for count in counts.values()), "one of three, at random"
    assert drawn(dataset, 0, 5) == drawn(dataset, 0, 5)


def test_captions_without_phrases_and_phrases_without_captions(coco: SmallCoco) -> None:
    steps = pipeline("train_pipeline")
    dataset = build(coco, pipeline=steps)
    samples = [drawn(dataset, 0, seed) for seed in range(20)]
    assert {sample["caption"] for sample in samples} == set(CAPTIONS[7])
    assert all(sample["words"] == [] for sample in samples)
    # Captions do not change the words that are drawn.
    file = write_phrases(coco, PHRASES)
    both = build(coco, phrases_file=file, pipeline=steps)
    alone = build(coco, captions_file=None, phrases_file=file, pipeline=steps)
    for seed in range(20):
        assert drawn(both, 0, seed)["words"] == drawn(alone, 0, seed)["words"]
    assert "caption" not in drawn(alone, 0, 0)


def test_an_image_without_phrases_has_captions(coco: SmallCoco) -> None:
    file = write_phrases(coco, {**PHRASES, "7": []})
    dataset = build(coco, phrases_file=file, pipeline=pipeline("train_pipeline"))
    sample = drawn(dataset, 0, 1)
    assert sample["caption"] in CAPTIONS[7] and sample["words"] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "captions.json: file of captions not found"),
        ("[", "captions.json: not JSON, or truncated"),
        ("[]", "captions.json: not captions .* list `annotations` is missing"),
        ('{"images": []}', "captions.json: not captions .* list `annotations` is missing"),
        ('{"annotations": [7]}', "captions.json: annotation number 1 .* is 7, not an object"),
        ('{"annotations": [{"image_id": 7}]}', "number 1 of the list has no `caption`"),
        ('{"annotations": [{"id": 4, "image_id": 7, "caption": null}]}', "4 has `caption` null"),
        ('{"annotations": [{"image_id": true, "caption": "x"}]}', "has `image_id` true"),
        ('{"annotations": [{"image_id": "7", "caption": "x"}]}', r"id 7\) \(but \"7\" exists: one"),
    ],
)
def test_bad_files(coco: SmallCoco, text: str | None, message: str) -> None:
    path = coco.root / "annotations/captions.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(DatasetError, match=message):
        build(coco)


def test_images_without_caption_raise(coco: SmallCoco) -> None:
    write_captions(coco, [(3, "another dog")])
    with pytest.raises(DatasetError, match=r"2 of 3 images have no caption .*000000000007.jpg"):
        build(coco)


def test_phrases_of_other_captions_raise(coco: SmallCoco) -> None:
    file = write_phrases(coco, {"7": [["cats"], ["dogs"]]})
    with pytest.raises(DatasetError, match="image id 7 has 3 captions, but the noun phrases of 2"):
        build(coco, phrases_file=file)
