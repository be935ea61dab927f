"""Teaching by examples with the toy model: a name that its words do not know is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from odise_mm.analysis.explaining import explain
from odise_mm.apis import OpenVocabInferencer
from odise_mm.apis.teaching import Example
from odise_mm.cli import teach
from odise_mm.cli import test as test_command
from odise_mm.converters.examples import limited, read_crops, read_examples
from odise_mm.errors import CheckpointError, ConfigError, DatasetError, VocabularyError
from odise_mm.io.tables import rows_of
from odise_mm.models import RegionMemory
from projects.toy_world import generate
from projects.toy_world.world import Scene, scene

WEIGHTS = Path(__file__).parents[2] / "projects/toy_world/weights/odise_label.safetensors"
NAME = "yellow triangle"
STUFF = "sky; grass; wood; snow"


@pytest.fixture(scope="module")
def inferencer() -> OpenVocabInferencer:
    return OpenVocabInferencer("odise_toy_label", WEIGHTS, device="cpu")


@pytest.fixture(scope="module")
def first() -> Scene:
    return scene((0, 1155), split="val")


@pytest.fixture(scope="module")
def other() -> Scene:
    return scene((0, 682), split="val")


def bgr(drawn: Scene) -> np.ndarray:
    return np.ascontiguousarray(drawn.image[..., ::-1])


def place_of(drawn: Scene) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    (segment,) = [segment for segment in drawn.segments if str(segment.name) == NAME]
    x, y, width, height = segment.box
    return drawn.panoptic == segment.id, (x, y, x + width, y + height)


def test_a_taught_name_is_found_and_forgotten(
    inferencer: OpenVocabInferencer, first: Scene, other: Scene, tmp_path: Path
) -> None:
    with pytest.raises(VocabularyError, match="not one of the .* words of the text encoder"):
        inferencer(bgr(other), texts="wug; red ball", stuff_texts=STUFF)
    inside, box = place_of(first)
    inferencer.memory = RegionMemory()
    (kept,) = inferencer(bgr(other), texts="red ball", stuff_texts=STUFF, keep_queries=True)
    taught = inferencer.teach(bgr(first), "wug", box=box)
    assert taught.origin == "model" and taught.overlap > 0.8
    assert (taught.mask & inside).sum() > 0.8 * (taught.mask | inside).sum()
    names = dict(texts="wug; red ball", stuff_texts=STUFF)
    (result,) = inferencer(bgr(other), **names, out_dir=tmp_path / "out")
    (found,) = [segment for segment in result.segments if segment.is_thing]
    truth, _ = place_of(other)
    mask = result.mask(found)
    assert found.name == "wug" and (mask & truth).sum() > 0.8 * (mask | truth).sum()
    assert found.evidence[0].name == "wug" and found.evidence[0].box == taught.region.box
    assert inferencer.make_vocabulary().names[-1] == "wug"
    # The example's picture is shown, and not in files.
    picture = cv2.imdecode(np.frombuffer(found.evidence[0].picture, np.uint8), cv2.IMREAD_COLOR)
    assert max(picture.shape) <= 64
    assert np.abs(picture[tuple(np.array(picture.shape[:2]) // 2)] - (40.0, 220, 240)).max() < 70
    page = result._repr_html_()
    assert "most similar examples" in page and "data:image/jpeg;base64," in page
    written_segments = json.loads((tmp_path / "out/panoptic.json").read_text())["annotations"][0]
    (one,) = [s for s in written_segments["segments_info"] if s["score"] == round(found.score, 5)]
    assert one["evidence"][0].keys() == {"name", "similarity", "image", "box", "region"}
    assert json.dumps(result.to_dict()["segments"]).count('"evidence"') == len(result.segments)
    assert set(rows_of(result).__next__()["evidence"][0]) == one["evidence"][0].keys()
    sheet = explain(inferencer, bgr(other), **names).figure(20)
    titles = {axes.get_title(): axes for axes in sheet.findobj(Axes)}
    title = f"wug {found.evidence[0].similarity:.2f}"
    assert titles[title].images[0].get_array().shape == picture.shape
    # The same from the masks that were kept before it was taught, without running the model.
    memory = inferencer.memory.copy()
    compared = kept.with_memory(memory, memory.vocabulary)
    assert np.array_equal(compared.panoptic, result.panoptic)
    assert {(s.name, s.area) for s in compared.segments} == {
        (s.name, s.area) for s in result.segments
    }
    assert compared.top(found, 1)[0] == ("wug", pytest.approx(found.score, abs=1e-5))
    assert kept.with_memory(RegionMemory()).segments == kept.segments

    inferencer.memory.save(tmp_path / "wug.safetensors")
    assert inferencer.teach(bgr(first), "WUG", mask=taught.mask).region is None  # known
    with pytest.raises(ConfigError, match="exactly one of mask, box and point, not none"):
        inferencer.teach(bgr(first), "wug")
    with pytest.raises(ConfigError, match=r"point=\(128, 3\) must lie inside the image"):
        inferencer.teach(bgr(first), "wug", point=(128, 3))
    x, y = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
    assert inferencer.teach(bgr(first), "dax", point=(x, y)).mask[y, x]
    assert inferencer.memory.picture(taught.region.id) == found.evidence[0].picture
    _, (left, top, right, bottom) = place_of(other)
    truth_box = dict(box=(left, top, right, bottom), pictures=False)
    private = inferencer.teach(bgr(other), "dax", **truth_box).region
    assert inferencer.memory.picture(private.id) is None
    assert inferencer.forget("dax") == 2 and inferencer.forget("wug") == 1
    (before,) = inferencer(bgr(other), texts="red ball", stuff_texts=STUFF)
    assert all(not segment.evidence for segment in before.segments)
    # From its file, into another run.
    inferencer.memory = RegionMemory.load(tmp_path / "wug.safetensors")
    (again,) = inferencer(bgr(other), texts="wug; red ball", stuff_texts=STUFF)
    assert again.segments == result.segments
    inferencer.forget("wug")
    memory = RegionMemory.load(tmp_path / "wug.safetensors")
    weights = tuple(2 * weight for weight in memory.embedder.weights)
    memory.embedder = type(memory.embedder)(*[*vars(memory.embedder).values()][:2], weights)
    inferencer.memory = memory
    with pytest.raises(CheckpointError, match="its weights are others; teach the regions again"):
        inferencer(bgr(other), texts="wug; red ball", stuff_texts=STUFF)
    inferencer.memory = RegionMemory()


@pytest.mark.parametrize("picture", ["pagoda.jpg", "toy_scene.jpg"])
def test_a_taught_segment_leaves_the_others_alone(
    inferencer: OpenVocabInferencer, picture: str
) -> None:
    file = WEIGHTS.parents[3] / "demo/images" / picture
    names = dict(texts="red ball; white box; blue star", stuff_texts=STUFF)
    inferencer.memory = RegionMemory()
    (before,) = inferencer(str(file), **names)
    chosen = max(before.segments, key=lambda segment: segment.area)
    inferencer.teach(str(file), "wug", mask=before.mask(chosen))
    names["texts"] += "; wug"
    (after,) = inferencer(str(file), **names)
    inferencer.memory = RegionMemory()
    if picture == "toy_scene.jpg":  # on a photo, one segment of stuff is several masks
        inside = before.mask(chosen)
        assert "wug" in {s.name for s in after.segments if (after.mask(s) & inside).any()}
    unlike = [s for s in after.segments if s.evidence[0].similarity < 0.4]
    for segment in unlike:  # have the same name as before
        ids = before.panoptic[after.mask(segment)]
        same = [s.id for s in before.segments if s.name == segment.name]
        # the toy model's masks of a photograph overlap, so the order of the masks matters there
        assert np.isin(ids, [*same, 0]).mean() > (0.95 if picture == "pagoda.jpg" else 0.99)
    assert unlike or len(before.segments) == 1


def test_examples_of_names_that_words_know_bring_no_bad_mask_back(
    inferencer: OpenVocabInferencer,
) -> None:
    """Several masks of one thing, each sure of its name, would take it from each other."""
    names = dict(texts="yellow triangle; red moon; white box; black triangle")
    names["stuff_texts"] = "sky; brick wall; water"
    file = str(WEIGHTS.parents[3] / "demo/images/toy_scene.jpg")
    inferencer.memory = RegionMemory()
    (before,) = inferencer(file, **names)
    known = [name for name, *_ in inferencer.make_vocabulary(**names).synonyms]
    for number in range(20):
        drawn = scene((0, number), split="val")
        shown = [s for s in drawn.segments if str(s.name) in known]
        if shown:
            inferencer.teach_all(
                bgr(drawn), [Example(str(s.name), mask=drawn.panoptic == s.id) for s in shown]
            )
    assert {"red moon", "sky"} <= inferencer.memory.names.keys()
    (after,) = inferencer(file, **names)
    inferencer.memory = RegionMemory()
    assert [s.name for s in after.segments] == [s.name for s in before.segments]
    assert len(after.segments) == len(known)
    assert (after.panoptic == before.panoptic).mean() > 0.99


def test_a_box_without_a_mask_is_the_region(inferencer: OpenVocabInferencer, first: Scene) -> None:
    taught = inferencer.teach_all(
        bgr(first), [Example("speck", box=(1, 1, 4, 4)), Example("all", mask=first.panoptic > 0)]
    )
    assert [one.origin for one in taught] == ["box", "given"]
    assert taught[0].mask.sum() == 9 and taught[0].overlap < 0.5
    inferencer.memory = RegionMemory()


def written(folder: Path, first: Scene) -> None:
    """Write an image, and the same example as COCO instances, panoptic segments and LabelMe."""
    (folder / "images").mkdir()
    Image.fromarray(first.image).save(folder / "images/a.png")
    _, (left, top, right, bottom) = place_of(first)
    ring = [left, top, right, top, right, bottom, left, bottom]
    images = [dict(id=1, file_name="a.png", height=128, width=128)]
    categories = [dict(id=3, name="wug", isthing=0)]
    area = (right - left) * (bottom - top)
    one = dict(id=1, image_id=1, category_id=3, iscrowd=0, area=area, segmentation=[ring])
    write(folder / "coco.json", images=images, categories=categories, annotations=[one])
    segments = [dict(id=1, category_id=3, iscrowd=0, area=area)]
    annotation = dict(image_id=1, file_name="a.png", segments_info=segments)
    write(folder / "pan.json", images=images, categories=categories, annotations=[annotation])
    (folder / "pan").mkdir()
    ids = np.zeros((128, 128, 3), np.uint8)
    ids[top:bottom, left:right, 0] = 1
    Image.fromarray(ids).save(folder / "pan/a.png")
    (folder / "labelme").mkdir()
    shape = dict(label="wug", points=[[left, top], [right, bottom]], shape_type="rectangle")
    write(folder / "labelme/a.json", imagePath="a.png", shapes=[shape])
    (folder / "crops/wug").mkdir(parents=True)
    Image.fromarray(first.image[top:bottom, left:right]).save(folder / "crops/wug/1.png")


def write(path: Path, **content: Any) -> None:
    path.write_text(json.dumps(content))


def test_examples_of_all_formats(tmp_path: Path, first: Scene) -> None:
    written(tmp_path, first)
    _, (left, top, right, bottom) = place_of(first)
    wanted = np.zeros((128, 128), bool)
    wanted[top:bottom, left:right] = True
    for name in ("coco.json", "pan.json", "labelme"):
        (one,) = read_examples(tmp_path / name, tmp_path / "images")
        assert one.path == tmp_path / "images/a.png" and one.names == ["wug"], name
        assert one.is_thing == [name == "labelme"]
        assert np.array_equal(one.masks()[0], wanted), name
    (crop,) = read_crops(tmp_path / "crops")
    assert crop.names == ["wug"] and crop.rles is None
    assert limited([crop, crop], 1) == [crop]
    with pytest.raises(DatasetError, match="image not found; see --images"):
        read_examples(tmp_path / "coco.json", tmp_path)
    with pytest.raises(DatasetError, match="one folder for each class"):
        read_crops(tmp_path / "images")


def test_the_command(
    tmp_path: Path, first: Scene, capsys: Any, monkeypatch: Any, inferencer: OpenVocabInferencer
) -> None:
    written(tmp_path, first)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(teach, "build_inferencer", lambda args: inferencer)
    how = ["--config", "odise_toy_label", "--out", "m.safetensors"]
    examples = ["--annotations", "coco.json", "--images", "images", "--crops", "crops"]
    assert teach.main([*examples, *how]) == 0
    assert "2 regions, 2 of them new" in capsys.readouterr().out
    assert teach.main([*examples, *how]) == 0
    assert "2 regions, 0 of them new" in capsys.readouterr().out
    assert teach.main(["--out", "m.safetensors", "--rename", "wug=dax"]) == 0
    renamed = RegionMemory.load("m.safetensors")
    assert renamed.names == {"dax": 2} and renamed.picture(0) and renamed.picture(1)
    assert teach.main(["--out", "n.safetensors", "--merge", "m.safetensors"]) == 0
    assert "2 new regions of m.safetensors" in capsys.readouterr().out
    assert teach.main(["--out", "n.safetensors", "--no-pictures"]) == 0
    assert "wrote n.safetensors" in capsys.readouterr().out
    assert RegionMemory.load("n.safetensors").picture(0) is None
    Image.new("RGB", (30, 30)).save("images/a.png")  # not the size of the masks
    assert teach.main([*examples[:4], *how]) == 1
    assert "skipped images/a.png: example of 'wug': the mask has" in capsys.readouterr().out
    for wrong, message in (
        (["--out", "x.safetensors"], "no examples: give --annotations"),
        (["--annotations", "coco.json", "--out", "x.safetensors"], "belong together"),
        (["--crops", "crops", "--out", "x.safetensors"], "--config is missing"),
        (["--crops", "crops", *how[:2], "--out", "x.bin"], "must end with .safetensors"),
    ):
        with pytest.raises(SystemExit):
            teach.main(wrong)
        assert message in capsys.readouterr().err
    inferencer.memory = RegionMemory()


def test_the_weight_of_the_examples_in_a_test_run(
    tmp_path: Path, capsys: Any, monkeypatch: Any, inferencer: OpenVocabInferencer
) -> None:
    monkeypatch.chdir(tmp_path)
    generate.main(["data/toy_world", "--splits", "val", "--number", "3"])
    inferencer.memory = RegionMemory()
    drawn = scene((0, 0), split="val")  # the first image of the test set
    largest = max(drawn.segments, key=lambda segment: (drawn.panoptic == segment.id).sum())
    wrong = "snow" if str(largest.name) != "snow" else "water"  # so that the results change
    inferencer.teach(bgr(drawn), wrong, mask=drawn.panoptic == largest.id)
    inferencer.memory.save("m.safetensors")

    def scores(*options: str) -> dict[str, Any]:
        run = ["odise_toy_label", str(WEIGHTS), "--data-root", "data", "--out", "out.json"]
        changed = ["--cfg-options", "log_level=WARNING", "model.ensemble.memory_alpha=1.0"]
        assert test_command.main([*run, *changed, *options]) == 0
        found = json.loads(Path("out.json").read_text())
        (of_set,) = found["sets"].values()
        return {**found, "metrics": of_set["metrics"]}

    plain, with_examples = scores(), scores("--memory", "m.safetensors")
    without = scores("--memory", "m.safetensors", "--memory-weight", "0")
    assert without["memory_weight"] == 0 and without["memory"]["names"] == {wrong: 1}
    assert without["metrics"] == plain["metrics"]
    assert with_examples["metrics"] != plain["metrics"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        scores("--memory-weight", "0.5")
    assert "--memory-weight needs examples: give them with --memory" in capsys.readouterr().err
