"""Converted results, read back by the libraries that own or know the formats."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import supervision
import yaml
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from odise_mm.annotations.panoptic_io import CocoPanopticWriter, read_coco_panoptic
from odise_mm.cli.main import main
from odise_mm.errors import ConfigError, OutputError, PanopticFileError
from odise_mm.io import FORMATS
from odise_mm.io.conversion import MARK, convert
from odise_mm.structures import Segment, SegmentationResult
from odise_mm.vocabulary import Vocabulary

NAMES = Vocabulary.parse("ring, circle; blob", "sand")
SIZE = (60, 80)


def make_result(name: str, seed: int) -> SegmentationResult:
    """A ring with two holes and a separate part, single pixels, blobs, and sand."""
    rng = np.random.default_rng(seed)
    ids = np.zeros(SIZE, np.int32)
    ids[50:] = 3
    cv2.circle(ids, (30, 25), 18, 1, -1)
    cv2.circle(ids, (24, 25), 5, 0, -1)
    cv2.circle(ids, (37, 25), 4, 3, -1)
    cv2.line(ids, (60, 5), (70, 45), 1, 2)
    noise = cv2.GaussianBlur(rng.random(SIZE), (0, 0), 2)
    ids[(noise > np.quantile(noise, 0.9)) & (ids == 0)] = 9
    ids[2, 2] = ids[4, 2:4] = 9
    segments = [
        Segment(1, 0, "ring", 0.75, int((ids == 1).sum()), True),
        Segment(9, 1, "blob", 0.5, int((ids == 9).sum()), True),
        Segment(3, 2, "sand", 0.25, int((ids == 3).sum()), False),
    ]
    return SegmentationResult(f"photos/{name}", name, *SIZE, ids, segments)


@pytest.fixture(scope="module")
def results() -> dict[str, SegmentationResult]:
    return {"a": make_result("a.jpg", 0), "a_2": make_result("a.jpg", 1)}


@pytest.fixture(scope="module")
def panoptic(results: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results") / "panoptic.json"
    with CocoPanopticWriter(path, NAMES) as writer:
        for stem, result in results.items():
            writer.add(result, stem)
    return path


@pytest.fixture(scope="module")
def converted(panoptic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    assert convert(panoptic, list(FORMATS), folder) == [folder / name for name in FORMATS]
    assert {p.name for p in folder.iterdir() if not p.name.startswith(".")} == set(FORMATS)
    return folder


def test_coco_is_read_by_pycocotools(converted: Path, results: dict) -> None:
    reader = COCO(converted / "coco/instances.json")
    assert [image["file_name"] for image in reader.loadImgs([1, 2])] == ["a.jpg", "a.jpg"]
    names = [category["name"] for category in reader.loadCats(reader.getCatIds())]
    assert names == ["ring", "blob", "sand"]
    for number, result in enumerate(results.values(), start=1):
        annotations = reader.loadAnns(reader.getAnnIds(number))
        assert len(annotations) == 3
        for annotation, segment in zip(annotations, result.segments, strict=True):
            assert np.array_equal(reader.annToMask(annotation), result.mask(segment))
            assert annotation["category_id"] == segment.label + 1


def test_yolo_is_read_by_supervision(converted: Path, results: dict, tmp_path: Path) -> None:
    for stem in results:
        Image.new("RGB", SIZE[::-1]).save(tmp_path / f"{stem}.png")
    dataset = supervision.DetectionDataset.from_yolo(
        str(tmp_path), str(converted / "yolo/labels"), str(converted / "yolo/data.yaml"), True
    )
    assert dataset.classes == ["ring", "blob", "sand"]
    for path, _, found in dataset:
        result = results[Path(path).stem]
        for segment in result.segments:
            chosen = found.class_id == segment.label
            assert chosen.sum() == len(result.parts(segment))
            together = found.mask[chosen].any(axis=0)
            assert_nearly_equal(together, result.mask(segment))


def assert_nearly_equal(found: np.ndarray, mask: np.ndarray, allowed: int = 0) -> None:
    """Compare masks, up to the lines of a pixel's width that connect holes with the outside."""
    extra, missing = found & ~mask, mask & ~found
    assert missing.sum() <= allowed and extra.sum() <= 6, (missing.sum(), extra.sum())


def test_labelme_polygons_fill_the_masks(converted: Path, results: dict) -> None:
    """LabelMe fills polygons with PIL, edges included, which misses single pixels."""
    for stem, result in results.items():
        content = json.loads((converted / f"labelme/{stem}.json").read_text())
        assert content["imagePath"] == "a.jpg" and content["imageData"] is None
        assert (content["imageHeight"], content["imageWidth"]) == SIZE
        for segment in result.segments:
            together = np.zeros(SIZE, bool)
            shapes = [s for s in content["shapes"] if s["group_id"] == segment.id]
            assert len(shapes) == len(result.parts(segment))
            for shape in shapes:
                assert shape["label"] == segment.name and shape["shape_type"] == "polygon"
                assert len(shape["points"]) >= 3
                drawing = Image.new("L", SIZE[::-1])
                ImageDraw.Draw(drawing).polygon(
                    [tuple(point) for point in shape["points"]], fill=1, outline=1
                )
                together |= np.asarray(drawing).astype(bool)
            assert_nearly_equal(together, result.mask(segment), allowed=4)


def test_semantic_maps(converted: Path, results: dict) -> None:
    names = (converted / "semantic/classes.txt").read_text().splitlines()
    assert names == ["ring", "blob", "sand"]
    for stem, result in results.items():
        with Image.open(converted / f"semantic/{stem}.png") as image:
            assert image.mode == "P"
            classes = np.asarray(image)
        expected = np.full(SIZE, 255)
        for segment in result.segments:
            expected[result.mask(segment)] = segment.label
        assert np.array_equal(classes, expected)


def test_semantic_maps_of_many_classes_have_16_bits(tmp_path: Path) -> None:
    names = Vocabulary.parse("; ".join(f"name {i}" for i in range(300)))
    ids = np.zeros((4, 5), np.int32)
    ids[0] = 7
    result = SegmentationResult(
        None, "b", 4, 5, ids, [Segment(7, 299, "name 299", 0.5, 5, True)], class_names=names.names
    )
    with CocoPanopticWriter(tmp_path / "panoptic.json", names) as writer:
        writer.add(result, "b")
    convert(tmp_path / "panoptic.json", ["semantic"], tmp_path)
    classes = cv2.imread(str(tmp_path / "semantic/b.png"), cv2.IMREAD_UNCHANGED)
    assert classes.dtype == np.uint16 and (classes[0] == 299).all() and (classes[1:] == 65535).all()


def test_masks(converted: Path, results: dict) -> None:
    entries = json.loads((converted / "masks/masks.json").read_text())
    assert len(entries) == 6
    for entry in entries:
        result = results[entry["file"].split("/")[0]]
        (segment,) = [s for s in result.segments if s.id == entry["id"]]
        with Image.open(converted / "masks" / entry["file"]) as image:
            mask = np.asarray(image)
        assert set(np.unique(mask)) == {0, 255}
        assert np.array_equal(mask > 0, result.mask(segment))
        assert entry["box"] == list(result.box(segment))
        assert {key: entry[key] for key in asdict(segment)} == asdict(segment)


def test_a_second_conversion_replaces_the_first(panoptic: Path, tmp_path: Path) -> None:
    convert(panoptic, ["masks"], tmp_path)
    stale = tmp_path / "masks/old/1.png"
    stale.parent.mkdir()
    stale.touch()
    convert(panoptic, ["masks"], tmp_path)
    assert not stale.exists() and (tmp_path / "masks" / MARK).exists()


def test_foreign_folders_stay(panoptic: Path, tmp_path: Path) -> None:
    mine = tmp_path / "yolo/mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(OutputError, match="was not written by this program"):
        convert(panoptic, ["coco", "yolo"], tmp_path)
    assert mine.read_text() == "mine" and not (tmp_path / "coco").exists()


def test_a_broken_map_leaves_the_earlier_conversion(
    panoptic: Path, results: dict, tmp_path: Path
) -> None:
    broken = tmp_path / "panoptic.json"
    broken.write_text(panoptic.read_text())
    (tmp_path / "panoptic").mkdir()
    for stem in results:
        (tmp_path / f"panoptic/{stem}.png").write_bytes(
            (panoptic.parent / f"panoptic/{stem}.png").read_bytes()
        )
    convert(broken, ["semantic"], tmp_path)
    (tmp_path / "panoptic/a_2.png").write_bytes(b"not an image")
    with pytest.raises(PanopticFileError, match="a_2.png"):
        convert(broken, ["semantic"], tmp_path)
    assert (tmp_path / "semantic/a_2.png").exists()
    assert not list(tmp_path.glob(".*.part"))


def test_command(panoptic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", str(panoptic), "--out", str(tmp_path), "--format"]
    assert main([*arguments, "coco, masks"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {tmp_path / 'coco'}",
        f"wrote {tmp_path / 'masks'}",
    ]
    with pytest.raises(SystemExit):
        main([*arguments, "voc"])
    assert "unknown format 'voc'; formats: coco, labelme" in capsys.readouterr().err


def test_mistakes(panoptic: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'coco' is named twice"):
        convert(panoptic, ["coco", "coco"], tmp_path)
    with pytest.raises(PanopticFileError, match="missing.json"):
        convert(tmp_path / "missing.json", ["coco"], tmp_path)


def test_results_read_back_know_their_map(panoptic: Path) -> None:
    files = [Path(result.files["panoptic"]).name for result in read_coco_panoptic(panoptic)]
    assert files == ["a.png", "a_2.png"]


def test_data_yaml_is_valid(converted: Path) -> None:
    content = yaml.safe_load((converted / "yolo/data.yaml").read_text())
    assert content["names"] == {0: "ring", 1: "blob", 2: "sand"}
    assert Vocabulary.load(converted / "yolo/data.yaml").names == ("ring", "blob", "sand")
