"""demo/image_demo.py, from the command line to the files."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from odise_mm.utils.panoptic_io import read_coco_panoptic
from tests.fake_segmentor import CONFIG

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "demo" / "images" / "pagoda.jpg"
SCRIPT = ROOT / "demo" / "image_demo.py"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("image_demo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "fake.py"
    path.write_text(CONFIG)
    return str(path)


def test_help_is_quick():
    start = time.perf_counter()
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--stuff-texts" in done.stdout
    assert time.perf_counter() - start < 3


def test_a_real_photograph(demo, config, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(PHOTO), "--texts", "pagoda, temple", "--stuff-texts", "sky; lake"]
    code = demo.main([*arguments, "--config", config, "--out", str(out), "--device", "cpu"])
    printed = capsys.readouterr().out
    assert code == 0
    for text in ("pagoda", "thing", "lake", "stuff", "0.75", "50.0 %", "Made-up weights"):
        assert text in printed
    (result,) = read_coco_panoptic(out / "panoptic.json")
    assert result.panoptic.shape == (427, 640)
    assert [s.name for s in result.segments] == ["pagoda", "lake"]
    with Image.open(out / "pictures" / "pagoda.jpg") as picture:
        assert picture.width == 640 and picture.height > 427  # the banner says "made-up weights"
    categories = json.loads((out / "panoptic.json").read_text())["categories"]
    assert categories[0]["synonyms"] == ["pagoda", "temple"]


def test_one_bad_picture_finishes_the_others_and_fails(demo, config, tmp_path, capsys):
    arguments = ["missing.jpg", str(PHOTO), "--config", config, "--out", str(tmp_path / "out")]
    assert demo.main([*arguments, "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert "skipped: missing.jpg: no such file" in captured.out
    assert "1 of 2 pictures could not be used" in captured.err
    assert (tmp_path / "out" / "pictures" / "pagoda.jpg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--texts", " ; ,"], "no name"),
        (["--vocabulary", "cocoa"], "cocoa"),
        (["--config", "no_such_config"], "no config 'no_such_config'"),
        (["--device", "cuda"], "was asked for"),
        (["--device", "xpu"], "not supported"),
        (["--precision", "fp16"], "fp16 is for GPUs"),
        (["--weights", "nothing.pth"], "there is no weights file nothing.pth"),
    ],
)
def test_mistakes_are_one_message(demo, config, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    defaults = ["--config", config, "--out", str(tmp_path / "out"), "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        demo.main([str(PHOTO), *defaults, *arguments])
    assert end.value.code == 2
    assert re.search(rf"^error: .*{re.escape(message)}", capsys.readouterr().err, re.M)


def test_a_batch_size_below_one_is_refused(demo, capsys):
    with pytest.raises(SystemExit):
        demo.main([str(PHOTO), "--batch-size", "0"])
    assert "at least 1" in capsys.readouterr().err


def test_where_the_photograph_is_from_is_written_down():
    text = (ROOT / "demo" / "images" / "README.md").read_text()
    for picture in PHOTO.parent.glob("*.jpg"):
        assert picture.name in text
    assert "CC BY 2.0" in text
