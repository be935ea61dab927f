"""Views, regions, predictions and files of the web page, with the toy model."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from odise_mm.apis import OpenVocabInferencer
from odise_mm.errors import ConfigError, ImageError, OutputError
from odise_mm.serving import markup, page, server
from odise_mm.serving.scene import (
    DRAWING,
    MAX_SIDE,
    MIN_INSTANCE_SCORE,
    Scene,
    View,
    file_formats,
    percent,
    safe_name,
    segment_scene,
)
from odise_mm.serving.uploads import Limits, Names
from odise_mm.structures import Segment, SegmentationResult
from odise_mm.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "demo/images/toy_scene.jpg"
NAMES, STUFF = page.EXAMPLES[IMAGE.name]
FOUND = {"yellow triangle", "red moon", "white box", "black triangle", "sky", "brick wall", "water"}
"""What demo/images/README.md says about the image."""


@pytest.fixture(scope="module")
def inferencer() -> OpenVocabInferencer:
    weights = ROOT / "projects/toy_world/weights/odise_label.safetensors"
    return OpenVocabInferencer("odise_toy_label", weights, device="cpu")


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.parse(NAMES, STUFF)


@pytest.fixture(scope="module")
def scene(inferencer: OpenVocabInferencer, vocabulary: Vocabulary) -> Scene:
    return segment_scene(inferencer, cv2.imread(str(IMAGE)), "../a/toy scene.jpg", vocabulary)


@pytest.fixture(scope="module")
def called(inferencer: OpenVocabInferencer, vocabulary: Vocabulary) -> SegmentationResult:
    """A call of the inferencer with all results, for comparison."""
    settings = dict(keep_queries=True, overlap_threshold=0.6, score_threshold=0.2, alpha=0.1)
    (result,) = inferencer(cv2.imread(str(IMAGE)), vocabulary=vocabulary, **settings)
    return result


def middle(view: View, region: Segment) -> tuple[float, float]:
    """A point of the drawing inside a region, far from its border."""
    inside = np.pad((view.ids == region.id).astype(np.uint8), 1)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return (x + 0.5) * view.zoom, (y + 0.5) * view.zoom


def test_panoptic_view(scene: Scene) -> None:
    view = scene.view("panoptic")
    assert {region.name for region in view.regions} == FOUND
    height, width = (side * view.zoom for side in scene.image.shape[:2])
    assert view.drawing.shape[0] > height and view.drawing.shape[1] >= width  # with a legend
    for region in view.regions:
        assert view.region_at(*middle(view, region)) == region
        assert view.label(region).startswith(f"{region.name} {region.score:.2f}, ")
    assert view.region_at(1, height + 1) is view.region_at(width + 1, 1) is None
    assert view.region_at(-1, 1) is view.region(None) is view.region(99) is None
    areas = [region.area for region in view.regions]
    assert areas == sorted(areas, reverse=True)
    assert sum(view.share.values()) == pytest.approx((view.ids > 0).mean())


def test_other_views_are_those_of_a_call(scene: Scene, called: SegmentationResult) -> None:
    changed = scene.with_settings(overlap_threshold=0.6, score_threshold=0.2, alpha=0.1)
    panoptic = changed.view("panoptic")
    np.testing.assert_array_equal(panoptic.ids, called.panoptic)
    assert sorted(panoptic.regions, key=lambda s: s.id) == called.segments

    semantic = changed.view("semantic")
    np.testing.assert_array_equal(semantic.ids - 1, called.semantic)
    assert sum(region.area for region in semantic.regions) == called.semantic.size
    assert semantic.label(semantic.regions[0]).startswith("water, 4")

    assert called.instances is not None
    best = called.instances[called.instances.scores > 0.2]
    instances = changed.view("instances")
    assert [region.label for region in instances.regions] == best.labels.tolist()
    np.testing.assert_allclose([region.score for region in instances.regions], best.scores)
    assert (instances.ids[best.masks[0]] == 1).all()  # the best one is on top
    np.testing.assert_array_equal(instances.ids > 0, best.masks.any(axis=0))
    assert scene.view("instances").regions[-1].score > MIN_INSTANCE_SCORE


def test_predictions_of_each_classifier(scene: Scene) -> None:
    assert scene.classifiers == ("ensemble", "OpenVocabClassifier", "MaskCLIPClassifier")
    panoptic = scene.view("panoptic")
    for classifier in scene.classifiers:
        view = scene.view("predictions", classifier)
        np.testing.assert_array_equal(view.ids, panoptic.ids)
        speaker = None if classifier == "ensemble" else classifier
        for region in view.regions:
            (best,) = scene.result.top(panoptic.region(region.id), 1, speaker)
            assert (region.name, region.score) == best
            assert scene.predictions(region.id)[classifier][0] == best
    assert all(len(names) == 5 for names in scene.predictions(1).values())
    assert scene.predictions(99) == {}
    with pytest.raises(ValueError, match="panoptic, semantic, instances, predictions"):
        scene.view("other")


def test_highlighted_region(scene: Scene) -> None:
    view = scene.view("panoptic")
    assert view.highlighted(None) is view.drawing
    for region in view.regions:
        drawing = view.highlighted(region.id)
        x, y = map(int, middle(view, region))
        other = next(r for r in view.regions if r.id != region.id)
        u, v = map(int, middle(view, other))
        np.testing.assert_array_equal(drawing[y, x], view.drawing[y, x])
        assert drawing[v, u].sum() < 0.5 * view.drawing[v, u].sum() + 3
        legend = view.ids.shape[0] * view.zoom
        np.testing.assert_array_equal(drawing[legend:], view.drawing[legend:])
    instances = scene.view("instances")  # covered parts are highlighted, too
    covered = instances.regions[-1].id
    bright = (instances.highlighted(covered) == instances.drawing).all(axis=2)
    mask = instances.masks[covered].astype(np.uint8)
    # without the outline, which also runs along the border of the image
    inside = cv2.erode(mask, np.ones((5, 5)), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    zoomed = cv2.resize(inside, None, fx=view.zoom, fy=view.zoom, interpolation=cv2.INTER_NEAREST)
    assert bright[: len(zoomed), : zoomed.shape[1]][zoomed > 0].all() and inside.any()


def test_large_images_are_reduced() -> None:
    ids = np.repeat(np.array([[1, 0, 2, 2]], np.int32), 60, axis=0).repeat(600, axis=1)
    segments = [Segment(1, 0, "a", 0.5, 36_000, True), Segment(2, 1, "b", 0.5, 72_000, False)]
    result = SegmentationResult(panoptic=ids, segments=segments, height=60, width=2400)
    image = np.full((60, 2400, 3), 200, np.uint8)
    view = Scene("x.png", image, Vocabulary.parse("a", "b"), result).view("panoptic")
    assert view.zoom == 1 and view.ids.shape == (40, MAX_SIDE)
    assert view.region_at(10, 10) == segments[0] and view.region_at(1590, 39) == segments[1]
    assert view.region_at(600, 10) is None
    assert view.labels() == [("b 0.50, 50 %", 2), ("a 0.50, 25 %", 1)]


def test_equal_labels_are_numbered() -> None:
    regions = tuple(Segment(i, 0, "a", 0.5, 5, True) for i in (1, 2))
    view = View(np.zeros((1, 1), np.int32), regions, np.zeros((1, 1, 3)), 1, {1: 0.5, 2: 0.5})
    assert view.labels() == [("a 0.50, 50 %", 1), ("a 0.50, 50 % (2)", 2)]


@pytest.mark.parametrize("share", [0.0, 0.0004, 0.034, 0.5])
def test_percent(share: float) -> None:
    assert percent(share) == {0.0: "<0.1 %", 0.0004: "<0.1 %", 0.034: "3.4 %", 0.5: "50 %"}[share]


def test_files(scene: Scene, tmp_path: Path) -> None:
    for form in (DRAWING, *file_formats()):
        folder = tmp_path / form
        folder.mkdir()
        path = scene.write(form, folder)
        assert list(folder.iterdir()) == [path]  # nothing else is left
        assert path.stem == f"toy scene_{form}"
        if form == DRAWING:
            np.testing.assert_array_equal(
                cv2.imread(str(path))[..., ::-1], scene.view("panoptic").drawing
            )
            continue
        with zipfile.ZipFile(path) as archive:
            assert archive.namelist() and not any(
                n.startswith((".", "/")) for n in archive.namelist()
            )
            for member in archive.namelist():
                assert str(tmp_path).encode() not in archive.read(member)
            if form == "coco":
                content = json.loads(archive.read("instances.json"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    written = {(names[a["category_id"]], a["area"]) for a in content["annotations"]}
    assert written == {(s.name, s.area) for s in scene.result.segments}
    assert content["images"][0]["file_name"] == "toy scene.jpg"


def test_errors_of_writers_do_not_show_the_folder(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="unknown format '../x'"):
        scene.write("../x", tmp_path)

    def full(results: object, vocabulary: object, formats: object, folder: Path) -> None:
        raise OutputError(f"{folder}/coco/a.json: the disk is full")

    monkeypatch.setattr("odise_mm.serving.scene.write_labels", full)
    with pytest.raises(ConfigError, match=r"^coco/a.json: the disk is full$"):
        scene.write("coco", tmp_path)


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("street.jpg", "street.jpg"),
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\a b (1).png", "a b (1).png"),
        ("..", "image"),
        ("", "image"),
        ("<img src=x>.jpg", "_img src_x_.jpg"),
        ("猫.jpg", "猫.jpg"),
        (".hidden", "hidden"),
    ],
)
def test_names_of_files_from_strangers(given: str, made: str) -> None:
    assert safe_name(given) == made


@pytest.fixture(scope="module")
def made(inferencer: OpenVocabInferencer) -> page._Page:
    limits = Limits(max_bytes=50_000, max_pixels=20_000)
    return page._Page(inferencer, inferencer.default_vocabulary, dict(alpha=0.2), limits)


def test_sliders_start_at_the_settings_of_the_model(made: page._Page) -> None:
    assert made.sliders == dict(
        overlap_threshold=0.8, score_threshold=0.0, alpha=0.2, beta=0.7, memory_weight=1.0
    )
    assert [path.name for path, *_ in made.examples] == ["toy_scene.jpg"]  # no word for pagodas


def test_typed_names_are_shown_as_understood(made: page._Page) -> None:
    shown = made.understand("red moon, red crescent; white box", "sky", None)
    assert "2 things: red moon (red crescent), white box; 1 stuff: sky" in shown
    assert "Without names: the model&#x27;s 61 classes" in made.understand("", " ", [])
    assert "write &#x27;red moon; white box&#x27;" in made.understand(
        "red moon . white box", "", []
    )
    for texts, lists, problem in (
        ("/etc/passwd", None, "looks like a file"),
        ("red moon; red moon", None, "is in two classes"),
        ("zebra", None, "is not one of the 85 words"),
        ("", ["secret"], "unknown vocabulary"),
        ("red moon; <script>", None, "is not one of the 85 words"),
    ):
        shown = made.understand(texts, "", lists)
        assert "warning" in shown and problem in shown and "<script>" not in shown
    assert "No names yet" in markup.show_names(Names(None), None)


def test_uploads(made: page._Page, tmp_path: Path) -> None:
    picture = made.read({"path": str(IMAGE), "orig_name": "mine.jpg"})
    assert picture is not None and picture.name == "mine.jpg"
    np.testing.assert_array_equal(picture.image, cv2.imread(str(IMAGE)))
    assert made.read(None) is made.read({"path": ""}) is None
    large = tmp_path / "large.png"
    cv2.imwrite(str(large), np.zeros((200, 200, 3), np.uint8))
    with pytest.raises(ImageError, match=r"^a.png: 200 x 200 = 40,000 pixels"):
        made.read({"path": str(large), "orig_name": "a.png"})


def test_names_from_strangers_are_escaped(scene: Scene) -> None:
    evil = "<img src=x onerror=alert(1)>"
    segments = [replace(s, name=evil) for s in scene.result.segments]
    view = replace(scene.view("panoptic"), regions=tuple(segments))
    for shown in (
        markup.show_region(view, 1),
        markup.show_predictions({evil: [(evil, 0.5)]}),
        markup.show_names(Names(Vocabulary.parse(f'"{evil}"'), (evil,)), None),
        markup.show_scene(replace(scene, name=evil), 0.1),
    ):
        assert "&lt;img" in shown and "<img" not in shown
    assert markup.show_predictions({}) == ""
    assert "Click a region" in markup.show_region(view, None)
    assert "Nothing was found" in markup.show_region(replace(view, regions=()), None)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "find_spec", lambda module: None if module == "gradio" else module)
    server.check_packages(api=True)
    with pytest.raises(
        ConfigError, match=r"^the web page needs gradio: pip install 'odise_mm\[web\]'"
    ):
        server.check_packages(api=False)
