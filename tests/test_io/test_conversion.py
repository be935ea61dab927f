"""Converted results, read back by the libraries that own or know the formats."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import supervision
import yaml
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torchvision.datasets import VOCDetection

from odise_mm.annotations.panoptic_io import CocoPanopticWriter, read_coco_panoptic
from odise_mm.cli.main import main
from odise_mm.errors import ConfigError, OutputError, PanopticFileError
from odise_mm.io import FORMATS
from odise_mm.io.base import polygons_of
from odise_mm.io.conversion import MARK, check_formats, convert, write_labels
from odise_mm.io.labelstudio import encode_brush
from odise_mm.structures import Segment, SegmentationResult
from odise_mm.structures.geometry import edge_outlines_of, outlines_of, parts_of
from odise_mm.structures.queries import MaskFate, Queries
from odise_mm.vocabulary import Vocabulary

NAMES = Vocabulary.parse("ring, circle; blob", "sand")
SIZE = (60, 80)
FIELDS = ("id", "label", "name", "score", "area", "is_thing")


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
    return {"a/1": make_result("a/1.jpg", 0), "b/1": make_result("b/1.jpg", 1)}


@pytest.fixture(scope="module")
def panoptic(results: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results") / "panoptic.json"
    with CocoPanopticWriter(path, NAMES) as writer:
        for stem, result in results.items():
            writer.add(result, stem, image_name=f"{stem}.jpg")
    return path


@pytest.fixture(scope="module")
def converted(panoptic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    names = [name for name in FORMATS if name != "parquet"]  # it needs pyarrow
    assert convert(panoptic, names, folder) == [folder / name for name in names]
    assert {p.name for p in folder.iterdir() if not p.name.startswith(".")} == set(names)
    return folder


@pytest.mark.parametrize("name", ["coco", "coco_polygons"])
def test_coco_is_read_by_pycocotools(converted: Path, results: dict, name: str) -> None:
    reader = COCO(converted / name / "instances.json")
    assert [image["file_name"] for image in reader.loadImgs([1, 2])] == ["a/1.jpg", "b/1.jpg"]
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
        folder = tmp_path / stem[0]  # supervision does not look into subfolders
        folder.mkdir()
        Image.new("RGB", SIZE[::-1]).save(folder / "1.png")
        labels = converted / "yolo/labels" / stem[0]
        data = converted / "yolo/data.yaml"
        dataset = supervision.DetectionDataset.from_yolo(str(folder), str(labels), str(data), True)
        assert dataset.classes == ["ring", "blob", "sand"]
        ((_, _, found),) = dataset
        result = results[stem]
        for segment in result.segments:
            chosen = found.class_id == segment.label
            assert chosen.sum() == len(result.parts(segment))
            assert np.array_equal(found.mask[chosen].any(axis=0), result.mask(segment))


@pytest.mark.parametrize("blur", [0.01, 0.7, 2.0])
def test_outlines_with_holes_fill_the_mask_as_one_line(blur: float) -> None:
    """Centers of pixels, filled by Pillow and OpenCV; edges of pixels, filled by pycocotools."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = rng.integers(1, 40, 2).tolist()
        noise = cv2.GaussianBlur(rng.random((height, width)), (0, 0), blur)
        mask = noise >= np.quantile(noise, rng.random())
        by_pillow = Image.new("L", (width, height))
        by_opencv = np.zeros((height, width), np.uint8)
        for line in polygons_of(outlines_of(mask)):
            ImageDraw.Draw(by_pillow).polygon(list(map(tuple, line.tolist())), fill=1)
            by_opencv |= cv2.fillPoly(np.zeros_like(by_opencv), [line], 1)
        assert np.array_equal(np.asarray(by_pillow) > 0, mask)
        assert np.array_equal(by_opencv > 0, mask)
        outlines = edge_outlines_of(mask)
        assert len(outlines) == len(parts_of(mask))
        rings = [line.astype(float).flatten().tolist() for line in polygons_of(outlines)]
        filled = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(rings, height, width)))
        assert np.array_equal(filled > 0, mask)


def test_an_edge_outline_by_hand() -> None:
    mask = np.zeros((4, 5), bool)
    mask[:3, 1:4] = True
    mask[1, 2] = False
    mask[3, 4] = True  # touches at a corner
    (outline,) = edge_outlines_of(mask)
    corners = [(1, 0), (4, 0), (4, 3), (5, 3), (5, 4), (4, 4), (4, 3), (1, 3)]
    assert list(map(tuple, outline.exterior.tolist())) == corners
    (hole,) = outline.holes
    assert sorted(map(tuple, hole.tolist())) == [(2, 1), (2, 2), (3, 1), (3, 2)]


def test_labelme_polygons_fill_the_masks(converted: Path, results: dict) -> None:
    for stem, result in results.items():
        content = json.loads((converted / f"labelme/{stem}.json").read_text())
        assert content["imagePath"] == "1.jpg" and content["imageData"] is None
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
            assert np.array_equal(together, result.mask(segment))


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
        result = results[entry["file"].rpartition("/")[0]]
        assert entry["image"] == result.image_name
        (segment,) = [s for s in result.segments if s.id == entry["id"]]
        with Image.open(converted / "masks" / entry["file"]) as image:
            mask = np.asarray(image)
        assert set(np.unique(mask)) == {0, 255}
        assert np.array_equal(mask > 0, result.mask(segment))
        assert entry["box"] == list(result.box(segment))
        expected = json.loads(json.dumps(asdict(segment)))
        assert {key: entry[key] for key in expected} == expected


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


def test_a_broken_map_leaves_the_earlier_conversion(panoptic: Path, tmp_path: Path) -> None:
    broken = tmp_path / "panoptic.json"
    broken.write_text(panoptic.read_text())
    shutil.copytree(panoptic.parent / "panoptic", tmp_path / "panoptic")
    convert(broken, ["semantic"], tmp_path)
    (tmp_path / "panoptic/b/1.png").write_bytes(b"not an image")
    with pytest.raises(PanopticFileError, match=r"b/1\.png"):
        convert(broken, ["semantic"], tmp_path)
    assert (tmp_path / "semantic/b/1.png").exists()
    assert not list(tmp_path.glob(".*.part"))


def test_command(panoptic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", str(panoptic), "--out", str(tmp_path), "--format"]
    assert main([*arguments, "coco, masks"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {tmp_path / 'coco'}",
        f"wrote {tmp_path / 'masks'}",
    ]
    with pytest.raises(SystemExit):
        main([*arguments, "vox"])
    assert "unknown format 'vox'; formats: coco, coco_panoptic" in capsys.readouterr().err


def test_mistakes(panoptic: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'coco' is named twice"):
        convert(panoptic, ["coco", "coco"], tmp_path)
    with pytest.raises(PanopticFileError, match="missing.json"):
        convert(tmp_path / "missing.json", ["coco"], tmp_path)


def test_results_read_back_know_their_map(panoptic: Path) -> None:
    files = [result.files["panoptic"] for result in read_coco_panoptic(panoptic)]
    assert files == [str(panoptic.parent / f"panoptic/{stem}.png") for stem in ("a/1", "b/1")]


def test_data_yaml_is_valid(converted: Path) -> None:
    content = yaml.safe_load((converted / "yolo/data.yaml").read_text())
    assert content["names"] == {0: "ring", 1: "blob", 2: "sand"}
    assert Vocabulary.load(converted / "yolo/data.yaml").names == ("ring", "blob", "sand")


def test_panoptic_files_are_equal(converted: Path, panoptic: Path) -> None:
    before = read_coco_panoptic(panoptic)
    after = read_coco_panoptic(converted / "coco_panoptic/panoptic.json")
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one.panoptic, other.panoptic) and one.segments == other.segments
        assert one.image_name == other.image_name


def test_voc(converted: Path, results: dict) -> None:
    """torchvision and supervision read the folders with the same rules."""
    folder = converted / "voc"
    for stem, result in results.items():
        maps = []
        for kind in ("Class", "Object"):
            with Image.open(folder / f"Segmentation{kind}/{stem}.png") as image:
                assert image.mode == "P"
                palette = np.array(image.getpalette()).reshape(-1, 3)
                maps.append(np.asarray(image))
        # Colors of the VOC development kit: aeroplane, bicycle, ..., TV monitor, ignored.
        known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 20: (0, 64, 128)}
        known[255] = (224, 224, 192)
        assert {index: tuple(palette[index]) for index in known} == known
        objects = ElementTree.parse(folder / f"Annotations/{stem}.xml").findall("object")
        for number, (found, segment) in enumerate(
            zip(objects, result.segments, strict=True), start=1
        ):
            mask = result.mask(segment)
            assert np.array_equal(maps[1] == number, mask)
            assert (maps[0][mask] == segment.label + 1).all()
            assert found.findtext("name") == segment.name
        assert not maps[0][result.panoptic == 0].any()
        boxes = VOCDetection.parse_voc_xml(
            ElementTree.parse(folder / f"Annotations/{stem}.xml").getroot()
        )["annotation"]["object"]
        left, top, right, bottom = result.box(result.segments[0])
        expected = dict(xmin=left + 1, ymin=top + 1, xmax=right, ymax=bottom)  # from 1, inclusive
        assert boxes[0]["bndbox"] == {key: str(value) for key, value in expected.items()}
    assert (folder / "ImageSets/Segmentation/default.txt").read_text() == "a/1\nb/1\n"


@pytest.mark.parametrize(
    ("name", "count", "segments", "message"),
    [("voc", 255, 1, "255 classes"), ("voc", 1, 255, "255 segments of b.jpg")],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, name: str, count: int, segments: int, message: str
) -> None:
    names = Vocabulary.parse("; ".join(f"name {i}" for i in range(count)))
    ids = np.arange(1, 257, dtype=np.int32).reshape(16, 16)
    found = [Segment(i, 0, "name 0", 0.5, 1, True) for i in range(1, segments + 1)]
    with CocoPanopticWriter(tmp_path / "panoptic.json", names) as writer:
        writer.add(SegmentationResult("b.jpg", "b.jpg", 16, 16, ids, found), "b")
    with pytest.raises(OutputError, match=message):
        convert(tmp_path / "panoptic.json", [name], tmp_path / "out")
    assert not (tmp_path / "out" / name).exists()


def test_brush_bytes_by_hand() -> None:
    """Six pixels of four channels: 12 zeros, 8 times 255, 4 zeros; sizes of 3, 4, 8, 16 bits."""
    mask = np.array([[False, False, False], [True, True, False]])
    bits = f"{24:032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    bits += "1" + "01" + f"{11:04b}" + f"{0:08b}"
    bits += "1" + "00" + f"{7:03b}" + f"{255:08b}"
    bits += "1" + "00" + f"{3:03b}" + f"{0:08b}"
    bits += "0" * (-len(bits) % 8)
    assert encode_brush(mask) == [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def test_long_runs_of_brushes_are_divided() -> None:
    mask = np.zeros((200, 200), bool)
    mask[:150] = True  # 120,000 values of 255, and 40,000 of 0
    bits = "".join(f"{byte:08b}" for byte in encode_brush(mask))[32 + 5 + 16 :]
    runs = [(bits[i + 3 : i + 19], bits[i + 19 : i + 27]) for i in range(0, 27 * 3, 27)]
    lengths = [(int(length, 2) + 1, int(value, 2)) for length, value in runs]
    assert lengths == [(65536, 255), (120_000 - 65536, 255), (40_000, 0)]


def test_label_studio_tasks(converted: Path) -> None:
    tasks = json.loads((converted / "labelstudio/tasks.json").read_text())
    images = [task["data"]["image"] for task in tasks]
    assert images == [f"/data/local-files/?d={name}" for name in ("a/1.jpg", "b/1.jpg")]
    regions = [region for task in tasks for region in task["predictions"][0]["result"]]
    assert [region["score"] for region in regions] == [0.75, 0.5, 0.25] * 2
    config = ElementTree.parse(converted / "labelstudio/config.xml")
    names = [label.get("value") for label in config.iter("Label")]
    assert names == ["ring", "blob", "sand"]


def test_npz(converted: Path, results: dict) -> None:
    for stem, result in results.items():
        with np.load(converted / f"npz/{stem}.npz") as found:
            assert np.array_equal(found["panoptic"], result.panoptic)
            for index, segment in enumerate(result.segments):
                for key in FIELDS:
                    assert found[key][index] == getattr(segment, key)
                assert found["box"][index].tolist() == list(result.box(segment))
            assert found["class_names"].tolist() == ["ring", "blob", "sand"]


def test_json_lines(converted: Path, results: dict) -> None:
    text = (converted / "jsonl/labels.jsonl").read_text(encoding="utf-8")
    for line, result in zip(text.splitlines(), results.values(), strict=True):
        found = json.loads(line)
        size = [found["height"], found["width"]]
        assert found["image"] == result.image_name and tuple(size) == SIZE
        for row, segment in zip(found["segments"], result.segments, strict=True):
            assert {key: row[key] for key in FIELDS} == {
                key: getattr(segment, key) for key in FIELDS
            }
            assert row["box"] == list(result.box(segment))
            mask = coco_mask.decode(dict(size=size, counts=row["rle"]))
            assert np.array_equal(mask > 0, result.mask(segment))


def test_parquet(panoptic: Path, results: dict, tmp_path: Path, monkeypatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'odise_mm[parquet]'")
    monkeypatch.setattr(FORMATS["parquet"], "ROWS", 2)  # several groups of rows
    convert(panoptic, ["parquet"], tmp_path)
    table = parquet.read_table(tmp_path / "parquet/segments.parquet")
    assert json.loads(table.schema.metadata[b"class_names"]) == ["ring", "blob", "sand"]
    rows = table.to_pylist()
    expected = [(r, s) for r in results.values() for s in r.segments]
    for row, (result, segment) in zip(rows, expected, strict=True):
        assert {key: row[key] for key in FIELDS} == {key: getattr(segment, key) for key in FIELDS}
        assert row["image"] == result.image_name and row["box"] == list(result.box(segment))
        mask = coco_mask.decode(dict(size=[row["height"], row["width"]], counts=row["rle"]))
        assert np.array_equal(mask > 0, result.mask(segment))


def test_parquet_without_pyarrow_is_refused_early(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OutputError, match=r"pip install 'odise_mm\[parquet\]'"):
        check_formats(["parquet"])


def test_xml_says_what_it_cannot_express(tmp_path: Path) -> None:
    names = Vocabulary.parse("cat")
    ids = np.ones((2, 2), np.int32)
    result = SegmentationResult(None, "b\x01.jpg", 2, 2, ids, [Segment(1, 0, "cat", 1.0, 4, True)])
    with CocoPanopticWriter(tmp_path / "panoptic.json", names) as writer:
        writer.add(result, "b")
    with pytest.raises(OutputError, match=r"XML cannot express.*rename the image"):
        convert(tmp_path / "panoptic.json", ["cvat"], tmp_path / "out")


class FewQueries(Queries):
    """Two masks of a segment of stuff, and one of each other segment of :func:`make_result`."""

    classifiers = ("only",)
    fates = [
        MaskFate("kept", 1, pixels=40),
        MaskFate("kept", 9, pixels=30),
        MaskFate("kept", 3, pixels=10),
        MaskFate("kept", 3, pixels=30),
    ]

    def __init__(self, embeds: bool) -> None:
        self.embeds = embeds

    def __len__(self) -> int:
        return 4

    def probabilities(self, classifier: str | None = None) -> np.ndarray:
        return np.arange(16, dtype=np.float32).reshape(4, 4) / 100

    @property
    def embeddings(self) -> np.ndarray | None:
        return np.eye(4, 5, dtype=np.float32) if self.embeds else None

    mask = small_masks = confidence = segmented = embeddings_of = None


def test_results_are_written_with_probabilities_and_embeddings(tmp_path: Path) -> None:
    results = [make_result("x/1.jpg", 0), make_result("y/1.jpg", 1)]
    for result, embeds in zip(results, (True, False), strict=True):
        result.queries, result.class_names = FewQueries(embeds), NAMES.names
    failed = SegmentationResult("photos/bad.jpg", error=ValueError("not an image"))
    write_labels([*results, failed], NAMES, ["npz", "coco"], tmp_path, root="photos")
    with np.load(tmp_path / "npz/x/1.npz") as found:
        expected = [results[0].probabilities(segment) for segment in results[0].segments]
        assert np.array_equal(found["probabilities"], expected)
        weighted = (np.arange(8, 12) + 3 * np.arange(12, 16)) / 400
        np.testing.assert_allclose(found["probabilities"][2], weighted, rtol=1e-6)
        np.testing.assert_allclose(found["embedding"][2], np.array([0, 0, 1, 3, 0]) / 10**0.5)
    with np.load(tmp_path / "npz/y/1.npz") as found:
        assert "embedding" not in found and found["probabilities"].shape == (3, 4)
    images = json.loads((tmp_path / "coco/instances.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["x/1.jpg", "y/1.jpg"]
    write_labels(results, NAMES, ["npz"], tmp_path)
    assert {path.name for path in (tmp_path / "npz").glob("*.npz")} == {"1.npz", "1_2.npz"}
    with pytest.raises(OutputError, match=r"photos/x/1.jpg is not in elsewhere; choose another"):
        write_labels(results, NAMES, ["npz"], tmp_path, root="elsewhere")
    if importlib.util.find_spec("pyarrow"):
        from pyarrow import parquet

        write_labels([*results, make_result("z.jpg", 2)], NAMES, ["parquet"], tmp_path)
        table = parquet.read_table(tmp_path / "parquet/segments.parquet")
        probabilities = table["probabilities"].to_pylist()
        np.testing.assert_allclose(probabilities[2], weighted, rtol=1e-6)
        assert probabilities[6:] == [None] * 3
        assert [row is None for row in table["embedding"].to_pylist()] == [False] * 3 + [True] * 6
