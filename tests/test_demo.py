"""demo/image_demo.py, `odise-mm segment` and `make demo`."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from odise_mm.annotations.panoptic_io import read_coco_panoptic
from tests.support.fake_segmentor import CONFIG

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "demo" / "images" / "pagoda.jpg"
SCRIPT = ROOT / "demo" / "image_demo.py"


@pytest.fixture(scope="module")
def demo():
    from odise_mm.cli import segment

    return segment


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "fake.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.mark.parametrize("option", ["--legend", "--fill=mean"])
def test_options_of_drawings_need_drawings(demo, capsys, option):
    with pytest.raises(SystemExit):
        demo.parse_args(["a.jpg", "--config", "odise_tiny", option, "--no-vis"])
    assert f"{option.split('=')[0]} changes the drawings" in capsys.readouterr().err


def test_help():
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--stuff-texts" in done.stdout


def test_a_real_photograph(demo, config, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(PHOTO), "--texts", "pagoda, temple", "--stuff-texts", "sky; lake"]
    code = demo.main([*arguments, "--config", config, "--out", str(out), "--device", "cpu"])
    printed = capsys.readouterr().out
    assert code == 0
    assert "class names: 1 thing: pagoda (temple); 2 stuff: sky, lake" in printed
    for text in ("pagoda", "thing", "lake", "stuff", "0.75", "50.0 %", "Random weights"):
        assert text in printed
    (result,) = read_coco_panoptic(out / "panoptic.json")
    assert result.panoptic.shape == (427, 640)
    assert [s.name for s in result.segments] == ["pagoda", "lake"]
    with Image.open(out / "vis" / "pagoda.jpg") as drawing:
        assert drawing.size == (640, 427)
    categories = json.loads((out / "panoptic.json").read_text())["categories"]
    assert categories[0]["synonyms"] == ["pagoda", "temple"]


def test_one_bad_image_finishes_the_others_and_fails(demo, config, tmp_path, capsys):
    arguments = ["missing.jpg", str(PHOTO), "--config", config, "--out", str(tmp_path / "out")]
    assert demo.main([*arguments, "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert "skipped: missing.jpg: no such file" in captured.out
    assert "1 of 2 images failed" in captured.err
    assert (tmp_path / "out" / "vis" / "pagoda.jpg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--texts", " ; ,"], "no class names given"),
        (["--vocabulary", "cocoa"], "cocoa"),
        (["--config", "no_such_config"], "no config 'no_such_config'"),
        (["--device", "cuda"], "was requested"),
        (["--device", "xpu"], "not supported"),
        (["--precision", "fp16"], "fp16 is for GPUs"),
        (["--weights", "nothing.pth"], "no weights file nothing.pth"),
        (["--cfg-options", "model.test_cfg.panoptic=False"], "shows the panoptic result"),
        (["--cfg-options", "model.nonsense=1"], "nonsense"),
    ],
)
def test_mistakes_are_one_message(demo, config, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    defaults = ["--config", config, "--out", str(tmp_path / "out"), "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        demo.main([str(PHOTO), *defaults, *arguments])
    assert end.value.code == 2
    assert re.search(rf"^error: .*{re.escape(message)}", capsys.readouterr().err, re.M)


def test_options_of_the_config_reach_the_model(demo, config, tmp_path):
    out = tmp_path / "out"
    options = ["--cfg-options", "model.names=owl; bat"]
    assert demo.main([str(PHOTO), "--config", config, "--out", str(out), *options]) == 0
    (result,) = read_coco_panoptic(out / "panoptic.json")
    assert [segment.name for segment in result.segments] == ["owl", "bat"]


def test_kept_queries_are_written(demo, tmp_path, capsys):
    """The formats get what panoptic.json has, under the same names, and the probabilities."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(ROOT / "demo/images/toy_scene.jpg", tmp_path / name / "1.jpg")
    out = tmp_path / "out"
    names = ["--texts", "red moon; white box", "--stuff-texts", "sky; water"]
    options = ["--config", "odise_toy_label", "--no-vis", "--out", str(out), "--keep-queries"]
    paths = [str(tmp_path / name / "1.jpg") for name in ("a", "b")]
    assert demo.main([*paths, *names, *options, "--format", "npz,coco", "--device", "cpu"]) == 0
    panoptic = json.loads((out / "panoptic.json").read_text())
    coco = json.loads((out / "coco/instances.json").read_text())
    listed = [image["file_name"] for image in panoptic["images"]]
    assert listed == [image["file_name"] for image in coco["images"]] == ["a/1.jpg", "b/1.jpg"]
    for result in read_coco_panoptic(out / "panoptic.json"):
        stem = Path(result.files["panoptic"]).relative_to(out / "panoptic").with_suffix("")
        with np.load(out / "npz" / f"{stem}.npz") as arrays:
            assert len(arrays["label"]) > 2 and (arrays["panoptic"] == result.panoptic).all()
            scores = arrays["probabilities"][range(len(arrays["label"])), arrays["label"]]
            assert scores == pytest.approx(arrays["score"], abs=1e-5)
            assert np.linalg.norm(arrays["embedding"], axis=1) == pytest.approx(1, abs=1e-4)
    assert not list(out.glob(".*.part"))
    for wrong in (["--format", "coco"], ["--format", "npz", "--window", "64"]):
        with pytest.raises(SystemExit):
            demo.parse_args([*paths, *options, *wrong])
        assert "--keep-queries" in capsys.readouterr().err.splitlines()[-1]


def test_a_config_must_be_chosen(demo, capsys):
    """A default model would either be meaningless, know few names, or need a large download."""
    with pytest.raises(SystemExit) as end:
        demo.main([str(PHOTO)])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "--config is missing. Use odise_coco_label" in error and "odise_tiny" in error


def test_a_batch_size_below_one_is_refused(demo, capsys):
    with pytest.raises(SystemExit):
        demo.main([str(PHOTO), "--batch-size", "0"])
    assert "at least 1" in capsys.readouterr().err


def test_sources_of_the_images_are_documented():
    text = (ROOT / "demo" / "images" / "README.md").read_text()
    for image in PHOTO.parent.glob("*.jpg"):
        assert f"`{image.name}`" in text
    assert "CC BY 2.0" in text


# --- make demo ----------------------------------------------------------------------------------


def make_demo(*variables: str) -> list[list[str]]:
    """Return the arguments of the commands that `make demo` would run in .venv."""
    command = ["make", "--no-print-directory", "--dry-run", "demo", *variables]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith(".venv/bin/python")]
    return [words[1:] for words in commands]


def parse(script: str, arguments: list[str]):
    name = f"made_{Path(script).stem}"
    spec = importlib.util.spec_from_file_location(name, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module.parse_args(arguments)


def test_make_demo_segments_teaches_tests_and_draws_in_a_separate_folder():
    commands = make_demo()
    assert commands[1][:3] == ["-m", "odise_mm", "teach"]
    taught = commands[1][commands[1].index("--out") + 1]
    segment, again, scenes, test, sheet = (
        parse(words[0], words[1:]) for words in [commands[0], *commands[2:]]
    )
    assert [words[0] for words in [commands[0], *commands[2:]]] == [
        *["demo/image_demo.py"] * 2,
        "projects/toy_world/generate.py",
        "tools/test.py",
        "projects/toy_world/sheet.py",
    ]
    assert again.memory == taught and again.weights == segment.weights
    assert segment.weights == test.checkpoint == sheet.checkpoint
    assert segment.config == test.config == sheet.config == "odise_toy_label"
    assert scenes.splits == ["val"] and scenes.number == {"val": 50}
    assert scenes.data_root == sheet.data_root == Path(test.data_root) / "toy_world"
    assert "demo_output" in scenes.data_root.parts  # never a user's own data


def test_demo_names_are_those_of_its_scene():
    from odise_mm.vocabulary import Vocabulary
    from projects.toy_world.names import names_of

    (words, *_) = make_demo()
    args = parse(words[0], words[1:])
    (image,) = args.images
    typed = Vocabulary.parse(args.texts, args.stuff_texts)
    known = {text: name for name in names_of("all") for text in name.synonyms}
    for names, thing in zip(typed.synonyms, typed.is_thing, strict=True):
        assert (
            len({known[name] for name in names}) == 1
        )  # KeyError if the name is not in the toy world
        assert known[names[0]].is_thing == thing
    in_scene = {s.name for s in drawn_scene(image).segments}
    asked = {known[name] for name in typed.names}
    assert in_scene == asked
    assert sum(name.is_novel for name in in_scene) >= 2


def test_the_demo_finds_all_names_as_separate_segments():
    from odise_mm import OpenVocabInferencer

    (words, *_) = make_demo()
    args = parse(words[0], words[1:])
    inferencer = OpenVocabInferencer(args.config, ROOT / args.weights, "cpu")
    only_panoptic = dict(semantic=False, instance=False)
    (image,) = args.images
    (result,) = inferencer(ROOT / image, args.texts, args.stuff_texts, test_cfg=only_panoptic)
    truth = drawn_scene(image)
    assert len(result.segments) == len(truth.segments) == 7
    found = {segment.name: result.mask(segment) for segment in result.segments}
    for segment in truth.segments:
        mask = truth.panoptic == segment.id
        other = found[str(segment.name)]
        assert (mask & other).sum() > 0.7 * (mask | other).sum(), segment.name


def test_the_demo_finds_what_it_was_taught(tmp_path):
    from odise_mm import OpenVocabInferencer
    from odise_mm.cli import teach
    from projects.toy_world.world import scene

    words, again = make_demo()[1:3]
    memory = tmp_path / "drops.safetensors"
    words[words.index("--out") + 1] = str(memory)
    changed = [str(ROOT / word) if (ROOT / word).exists() else word for word in words[3:]]
    assert teach.main([*changed, "--device", "cpu"]) == 0
    args = parse(again[0], again[1:])
    inferencer = OpenVocabInferencer(args.config, ROOT / args.weights, "cpu", memory=memory)
    truth = scene((5, 3130), "val", new_share=0.3)
    (drop,) = (s for s in truth.segments if str(s.name) == "blue drop")
    mask = truth.panoptic == drop.id
    for weight, found in ((1.0, True), (0.0, False)):
        (image,) = args.images
        names = dict(texts=args.texts, stuff_texts=args.stuff_texts)
        (result,) = inferencer(ROOT / image, **names, memory_weight=weight)
        assert len(result.segments) == (5 if found else 4)
        drops = [result.mask(s) for s in result.segments if s.name == "blue drop"]
        assert len(drops) == found
        assert not found or (mask & drops[0]).sum() > 0.7 * (mask | drops[0]).sum()


def drawn_scene(file: str):
    """Return the scene that a file was drawn from, after comparing them."""
    import numpy as np

    from projects.toy_world.world import scene

    drawn = scene((1, 139), "val")
    with Image.open(ROOT / file) as image:
        # JPEG changes pixels slightly
        assert np.abs(np.asarray(image).astype(int) - drawn.image).mean() < 4
    return drawn


def test_make_demo_with_a_photo_only_segments_it():
    names = "bus; person, man"
    (words,) = make_demo(
        "PHOTO=street.jpg", f"TEXTS={names}", "STUFF=road", "CONFIG=odise_tiny", "WEIGHTS=a.pth"
    )
    args = parse(words[0], words[1:])
    assert words[0] == "demo/image_demo.py" and args.images == ["street.jpg"]
    assert (args.texts, args.stuff_texts) == (names, "road")
    assert (args.config, args.weights) == ("odise_tiny", "a.pth")


def test_missing_weights_are_one_message(demo, tmp_path, capsys):
    weights = str(tmp_path / "odise_label.safetensors")
    words = make_demo(f"WEIGHTS={weights}")[0]
    with pytest.raises(SystemExit) as end:
        demo.main([*words[1:], "--device", "cpu", "--out", str(tmp_path)])
    assert end.value.code == 2
    # loggers of other tests may report their closed streams
    errors = [s for s in capsys.readouterr().err.splitlines() if s.startswith("error: ")]
    assert len(errors) == 1 and f"no weights file {weights}" in errors[0]


def test_the_shipped_weights_are_not_ignored_by_git():
    files = ["projects/toy_world/weights/odise_label.safetensors",
             "projects/toy_world/weights/clip/open_clip_model.safetensors"]  # fmt: skip
    command = ["git", "check-ignore", "--no-index", *files, "elsewhere.safetensors"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 128:
        pytest.skip("not a clone")
    assert done.stdout.split() == ["elsewhere.safetensors"]
