"""Masks from files: exact, found by name or id, at the size of the input; errors name the entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from odise_mm.errors import ConfigError, DatasetError
from odise_mm.models.proposals.file_proposals import FileProposals
from odise_mm.vocabulary import Vocabulary
from tests.support.tiny_sam import sample

NAMES = Vocabulary.parse("cat", "sky")
SIZE = (24, 40)


def random_masks(count: int = 3, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(count).random((count, *size)) > 0.5


def rle(mask: np.ndarray, compressed: bool = True) -> dict[str, Any]:
    if not compressed:
        runs = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False, append=False))
        ends = np.concatenate([[0], runs, [mask.size]])
        return dict(size=list(mask.shape), counts=np.diff(ends).tolist())
    code = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=code["size"], counts=code["counts"].decode())


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def results(masks: np.ndarray, image_id: int | str = 139, **more: list) -> list[dict]:
    rows = [dict(image_id=image_id, category_id=1, segmentation=rle(mask)) for mask in masks]
    for key, values in more.items():
        for row, value in zip(rows, values, strict=True):
            row[key] = value
    return rows


def dataset(masks: np.ndarray, names: dict[int, str] | None = None) -> dict[str, Any]:
    names = names or {5: "street.jpg", 6: "empty.jpg"}
    return dict(
        images=[dict(id=i, file_name=n, height=SIZE[0], width=SIZE[1]) for i, n in names.items()],
        annotations=[
            dict(id=i, image_id=5, category_id=1, area=1, segmentation=rle(mask))
            for i, mask in enumerate(masks)
        ],
        categories=[dict(id=1, name="object")],
    )


def found(source: FileProposals, **names: Any) -> np.ndarray:
    masks = source.propose(torch.zeros(3, *SIZE), sample(SIZE, **names), NAMES).masks
    return (masks > 0).numpy()


@pytest.mark.parametrize("compressed", [True, False])
def test_results_are_read_exactly(tmp_path: Path, compressed: bool) -> None:
    masks = random_masks(4)
    masks[3] = False
    rows = [dict(image_id=139, segmentation=rle(mask, compressed)) for mask in masks]
    source = FileProposals(write(tmp_path / "masks.json", rows))
    assert np.array_equal(found(source, img_id=139), masks[:3])  # without the empty mask
    proposals = source.propose(torch.zeros(3, *SIZE), sample(SIZE, img_id=139), NAMES)
    assert proposals.scores.tolist() == [1, 1, 1] and proposals.classes is None


@pytest.mark.parametrize(
    ("image_id", "names"),
    [
        (139, dict(img_id=139)),
        (139, dict(img_id="000000000139.jpg", img_path="val/000000000139.jpg")),
        (139, dict(img_id="array 1", img_path="/data/139.png")),
        ("street", dict(img_id="street.jpg", img_path="photos/street.jpg")),
        ("street.jpg", dict(img_id=7, img_path="photos/street.jpg")),
        ("photos/street.jpg", dict(img_path="photos/street.jpg")),
        ("uid/street", dict(img_id="uid/street", img_path="photos/x.jpg")),
    ],
)
def test_results_are_found_by_id_or_file_name(
    tmp_path: Path, image_id: int | str, names: dict[str, Any]
) -> None:
    masks = random_masks(2)
    rows = results(masks, image_id) + results(random_masks(3), "another")
    source = FileProposals(write(tmp_path / "masks.json", rows))
    assert np.array_equal(found(source, **names), masks)


def test_an_image_without_masks_has_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = FileProposals(write(tmp_path / "masks.json", results(random_masks())))
    (item,) = source.segment(
        torch.zeros(1, 3, *SIZE), [sample(SIZE, img_id=1, img_path="a/b.jpg")], NAMES
    )
    assert item.prediction.masks.shape == (1, 0, *SIZE)
    assert item.prediction.objectness.shape == (1, 0, 2)
    source = FileProposals(write(tmp_path / "set.json", dataset(random_masks())))
    assert len(found(source, img_path="x/empty.jpg")) == 0
    empty = FileProposals(write(tmp_path / "none.json", []))
    assert len(found(empty, img_id=3)) == 0


def test_a_dataset_is_found_by_file_name(tmp_path: Path) -> None:
    masks = random_masks()
    content = dataset(masks)
    content["annotations"][0]["segmentation"] = [[2, 3, 12, 3, 12, 13, 2, 13]]
    masks[0] = False
    masks[0, 3:13, 2:12] = True
    source = FileProposals(write(tmp_path / "set.json", content))
    assert np.array_equal(found(source, img_id=6, img_path="any/street.jpg"), masks)
    assert np.array_equal(found(source, img_id="street.jpg"), masks)
    with pytest.raises(DatasetError, match=r"set.json: x/other.jpg is not in the list `images`"):
        found(source, img_id=5, img_path="x/other.jpg")


def test_folders_tell_images_of_one_name_apart(tmp_path: Path) -> None:
    content = dataset(random_masks(), {5: "a/1.jpg", 6: "b/1.jpg"})
    source = FileProposals(write(tmp_path / "set.json", content))
    assert len(found(source, img_path="data/a/1.jpg")) == 3
    assert len(found(source, img_path="data/b/1.jpg")) == 0
    with pytest.raises(DatasetError, match="several images are called 1.jpg"):
        found(source, img_path="data/c/1.jpg")


def test_scores_become_the_probability_of_an_object(tmp_path: Path) -> None:
    rows = results(random_masks(4), score=[0.25, 1.0, 0.75, 0.0])
    path = write(tmp_path / "masks.json", rows)
    masks = random_masks(4)
    (item,) = FileProposals(path).segment(
        torch.zeros(1, 3, *SIZE), [sample(SIZE, img_id=139)], NAMES
    )
    assert np.array_equal(item.prediction.masks[0] > 0, masks[[1, 2, 0, 3]])  # the best first
    probabilities = item.prediction.objectness[0].softmax(-1)
    wanted = torch.tensor([1, 0.75, 0.25, 0])
    torch.testing.assert_close(probabilities[:, 0], wanted, atol=2e-6, rtol=0)
    assert np.array_equal(found(FileProposals(path, min_score=0.75), img_id=139), masks[[1, 2]])
    assert np.array_equal(found(FileProposals(path, max_masks=1), img_id=139), masks[[1]])


def test_masks_keep_the_size_of_the_file(tmp_path: Path) -> None:
    """The input of the model is larger and padded."""
    masks = random_masks()
    source = FileProposals(write(tmp_path / "masks.json", results(masks)))
    (item,) = source.segment(
        torch.zeros(1, 3, 64, 96), [sample((48, 80), (64, 96), SIZE, img_id=139)], NAMES
    )
    assert np.array_equal(item.prediction.masks[0] > 0, masks)
    assert item.prediction.frames == [(SIZE, SIZE)] and item.prediction.stride == 1
    (image,) = item.prediction.images_at_own_size([torch.zeros(3, 48, 80)])
    assert image.shape == (3, *SIZE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1].pop("image_id"), "entry 2 of the list has no `image_id`"),
        (lambda rows: rows[1].pop("segmentation"), r"entry 2 .*\(image id 139\): its mask has no"),
        (
            lambda rows: rows[1]["segmentation"].update(counts="P"),
            r"entry 2 of the list \(image id 139\): its run lengths are damaged: .* cannot be read",
        ),
        (
            lambda rows: rows[0]["segmentation"].update(size=[24, 41]),
            "entry 1 .*damaged: they sum to 960, but its image has 24 x 41 = 984 pixels",
        ),
        (
            lambda rows: rows[0]["segmentation"].update(size=[-24, -40]),
            "entry 1 .*no `size` of two whole numbers",
        ),
        (
            lambda rows: rows[0].update(score=1.5),
            "entry 1 of the list has `score` 1.5, not a number",
        ),
        (lambda rows: rows[0].update(segmentation=[[1, 1, 5, 1, 5, 5]]), "entry 1 .*is a polygon"),
        (lambda rows: rows.append(3), "entry 3 of the list is 3, not an object"),
    ],
)
def test_damaged_results(tmp_path: Path, change: Any, message: str) -> None:
    rows = results(random_masks(2))
    change(rows)
    with pytest.raises(DatasetError, match=f"masks.json: {message}"):
        FileProposals(write(tmp_path / "masks.json", rows))


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="absent.json: no such file of masks"):
        FileProposals(str(tmp_path / "absent.json"))
    (tmp_path / "half.json").write_text("[{")
    with pytest.raises(DatasetError, match="half.json: not JSON, or truncated"):
        FileProposals(str(tmp_path / "half.json"))
    with pytest.raises(DatasetError, match="text.json: not a file of masks: expected a list"):
        FileProposals(write(tmp_path / "text.json", "masks"))
    with pytest.raises(DatasetError, match="set.json: .*the list `images` is missing"):
        FileProposals(write(tmp_path / "set.json", dict(annotations=[], categories=[])))
    content = dataset(random_masks())
    content["annotations"][2]["score"] = "high"
    with pytest.raises(DatasetError, match='set.json: annotation 2 has `score` "high"'):
        FileProposals(write(tmp_path / "set.json", content))


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    source = FileProposals(write(tmp_path / "masks.json", results(random_masks(2, (20, 40)))))
    message = r"masks.json: entry 1 .*the mask has 20 x 40 pixels .*image x/139.jpg has 24 x 40"
    with pytest.raises(DatasetError, match=message):
        found(source, img_path="x/139.jpg")


def test_an_image_without_a_name(tmp_path: Path) -> None:
    source = FileProposals(write(tmp_path / "masks.json", results(random_masks())))
    with pytest.raises(DatasetError, match="this image has neither"):
        found(source)
    with pytest.raises(DatasetError, match="call `predict` with data samples"):
        next(source.segment(torch.zeros(1, 3, *SIZE), None, NAMES))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(file=""), "file=''"),
        (dict(min_score=2), "min_score=2"),
        (dict(max_masks=0), "max_masks=0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FileProposals(**{"file": "x.json", **settings})
