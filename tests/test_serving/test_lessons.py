"""What a visitor of the web page teaches, with the toy model."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import pytest

from odise_mm.apis import OpenVocabInferencer
from odise_mm.errors import ConfigError, OdiseError
from odise_mm.models import RegionMemory
from odise_mm.serving import lessons as module
from odise_mm.serving import markup, page
from odise_mm.serving.lessons import Lessons
from odise_mm.serving.scene import DROPPED, UNKNOWN, Scene, segment_scene
from odise_mm.serving.uploads import Limits
from odise_mm.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "demo/images/toy_scene.jpg"
NAMES, STUFF = page.EXAMPLES[IMAGE.name]


@pytest.fixture(scope="module")
def made() -> page._Page:
    weights = ROOT / "projects/toy_world/weights/odise_label.safetensors"
    inferencer = OpenVocabInferencer("odise_toy_label", weights, device="cpu")
    return page._Page(inferencer, inferencer.default_vocabulary, {}, Limits())


@pytest.fixture(scope="module")
def scene(made: page._Page) -> Scene:
    vocabulary = Vocabulary.parse(NAMES, STUFF)
    return segment_scene(made.inferencer, cv2.imread(str(IMAGE)), "toy scene.jpg", vocabulary)


def number_of(scene: Scene, name: str) -> int:
    (number,) = [segment.id for segment in scene.result.segments if segment.name == name]
    return number


def names(scene: Scene) -> list[str]:
    return sorted(segment.name for segment in scene.result.segments)


def test_a_taught_region_gets_its_name_at_once(made: page._Page, scene: Scene) -> None:
    assert made.teaches and scene.classifiers[-1] == "MaskCLIPClassifier"  # nothing is taught yet
    mine, yours = Lessons(made.start), Lessons(made.start)
    box = number_of(scene, "white box")
    mine.teach(scene, box, " wug ", True)
    taught = mine.compared(scene)
    assert taught.vocabulary.names == (*scene.vocabulary.names, "wug")
    assert names(taught) == sorted("wug" if n == "white box" else n for n in names(scene))
    number = scene.same_region(box, taught)
    assert number == number_of(taught, "wug")
    mask, before = taught.view("panoptic").ids == number, scene.view("panoptic").ids == box
    assert (mask & before).sum() > 0.95 * (mask | before).sum()
    (evidence, *_) = taught.evidence(number)
    assert evidence.name == "wug" and evidence.image == "toy scene.jpg"
    assert evidence.similarity == pytest.approx(1, abs=1e-5)
    assert 'src="data:image/jpeg;base64,' in markup.show_evidence(taught.evidence(number))
    left, top, right, bottom = evidence.box
    assert (left, top, right, bottom) == scene.result.box(scene.result.segments[box - 1])
    # Who says what: the memory names what it recognizes, and nothing else.
    assert taught.classifiers[-1] == "MemoryClassifier"
    said = {r.id: r.name for r in taught.view("predictions", "MemoryClassifier").regions}
    assert said[number] == "wug" and UNKNOWN in said.values()

    # Nobody else sees it, and taking it back restores the scene.
    assert len(yours.memory) == len(made.start) == len(made.inferencer.memory) == 0
    assert names(yours.compared(scene)) == names(scene)
    assert mine.undo().name == "wug" and not mine and mine.taught.vocabulary is None
    restored = mine.compared(taught)
    assert restored.vocabulary.names == scene.vocabulary.names
    assert restored.result.segments == scene.result.segments


def test_background_and_names_of_the_scene(made: page._Page, scene: Scene) -> None:
    mine = Lessons(made.start)
    mine.teach(scene, number_of(scene, "water"), "zorp", False)
    mine.teach(scene, number_of(scene, "red moon"), "golden  Triangle", True)
    taught = mine.compared(scene)
    kinds = {s.name: s.is_thing for s in taught.result.segments}
    assert kinds["zorp"] is False and len(taught.vocabulary) == len(scene.vocabulary) + 1
    assert names(taught).count("yellow triangle") == 2  # a synonym
    off = taught.with_settings(memory_weight=0)
    assert names(off) == names(scene)


def test_what_no_name_fits_can_be_chosen_and_taught(made: page._Page) -> None:
    vocabulary = Vocabulary.parse("red moon; yellow triangle", STUFF)  # no white box
    image = cv2.imread(str(IMAGE))
    scene = segment_scene(made.inferencer, image, "toy.jpg", vocabulary)
    before = scene.view("panoptic")
    x, y = 88.5 * before.zoom, 70.5 * before.zoom
    assert before.region_at(x, y) is None
    view, number = scene.with_dropped(before, x, y)
    region = view.region(number)
    assert number < 0 and view.regions == (*before.regions, region)
    label, last = view.labels()[-1]
    assert last == number and re.fullmatch(r"dropped mask, [78]\.\d %", label), label
    name, about = view.describe(region)
    assert name == DROPPED and about.startswith("more probably none of the classes, score 0.00")
    assert view.masks[number][70, 88] and view.masks[number].sum() == region.area
    assert scene.with_dropped(view, x, y)[0].regions == view.regions  # only once
    said = scene.predictions(number)
    assert [len(names) for names in said.values()] == [5, 5, 5]
    assert said["ensemble"][0][1] == pytest.approx(region.score)
    assert scene.with_dropped(before, *(before.zoom * 4.5 for _ in range(2))) == (before, None)
    assert scene.with_dropped(before, -1, 0) == (before, None)

    mine = Lessons(made.start)
    mine.teach(scene, number, "wug", True)
    taught = mine.compared(scene)
    assert names(taught) == sorted([*names(scene), "wug"])
    found = number_of(taught, "wug")
    assert scene.same_region(number, taught) == found
    assert taught.evidence(found) == taught.evidence(number) != ()
    assert taught.view("panoptic").region_at(x, y).name == "wug"
    left, top, right, bottom = taught.evidence(found)[0].box
    assert left < 88 < right and top < 70 < bottom and right - left < 60 > bottom - top


def test_the_file_has_what_this_visitor_taught(
    made: page._Page, scene: Scene, tmp_path: Path
) -> None:
    first = Lessons(made.start)
    first.teach(scene, number_of(scene, "white box"), "wug", True)
    start = first.taught
    mine = Lessons(start)
    assert names(mine.compared(scene)).count("wug") == 0  # the name was not asked for
    mine.teach(scene, number_of(scene, "red moon"), "dax", True)
    path = mine.save(tmp_path)
    assert list(tmp_path.iterdir()) == [path] and path.name == "taught.safetensors"
    memory = RegionMemory.load(path)
    assert memory.picture(0) is not None
    assert RegionMemory.load(mine.save(tmp_path, pictures=False)).picture(0) is None
    assert mine.memory.picture(mine.taught.regions[0].id) is not None
    assert memory.names == {"dax": 1} and mine.memory.names == {"wug": 1, "dax": 1}
    made.inferencer.memory = memory
    (again,) = made.inferencer(str(IMAGE), texts=f"{NAMES}; dax", stuff_texts=STUFF)
    assert "dax" in [segment.name for segment in again.segments]
    made.inferencer.memory = made.start
    assert mine.undo().name == "dax" and len(start) == len(mine.memory) == 1
    assert "nothing yet. The page started with 1 examples" in markup.show_lessons(mine, 1)


def test_mistakes_have_clear_messages(
    made: page._Page, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, box = Lessons(made.start), number_of(scene, "white box")
    for number, name, message in (
        (None, "wug", "^Click a region first, or choose it in the list.$"),
        (box, "", "^Type a name for the region first.$"),
        (box, "  ", "^Type a name for the region first.$"),
        (box, "a; b", "^Type one name for the region"),
        (box, "a, b", "^Type one name for the region"),
        (box, "coco", "^Type one name for the region"),
        (99, "wug", "^There is no such region any more.$"),
        (box, "/etc/passwd", "looks like a file"),
    ):
        with pytest.raises(OdiseError, match=message):
            mine.teach(scene, number, name, True)
    for call in (mine.undo, lambda: mine.save(tmp_path)):
        with pytest.raises(ConfigError, match="^There is nothing to .*: you have taught nothing"):
            call()
    mine.teach(scene, box, "wug", True)
    for name in ("wug", "dax"):
        with pytest.raises(ConfigError, match="is an example of 'wug' already. Undo takes"):
            mine.teach(scene, box, name, True)
    monkeypatch.setattr(module, "MAX_EXAMPLES", 1)
    with pytest.raises(ConfigError, match="^You have taught 1 examples, which is the limit.$"):
        mine.teach(scene, number_of(scene, "red moon"), "wug", True)
    assert mine.taught.names == {"wug": 1} and "wug (1)" in markup.show_lessons(mine, 0)


def test_taught_words_are_readable_for_their_visitor(made: page._Page, scene: Scene) -> None:
    mine = Lessons(made.start)
    mine.teach(scene, number_of(scene, "white box"), "wug", True)
    assert "2 things: red moon, wug" in made.understand("red moon; wug", "", None, mine)
    for lessons in (None, Lessons(made.start)):
        assert "is not one of the 85" in made.understand("red moon; wug", "", None, lessons)


def test_names_of_examples_are_escaped(made: page._Page, scene: Scene) -> None:
    mine, evil = Lessons(made.start), "<img src=x onerror=alert(1)>"
    mine.teach(scene, number_of(scene, "white box"), evil, True)
    taught = mine.compared(scene)
    evidence = taught.evidence(number_of(taught, evil))
    for shown in (markup.show_lessons(mine, 0), markup.show_evidence(evidence)):
        assert "&lt;img" in shown and "<img src=x" not in shown
    assert markup.show_evidence(()) == ""
