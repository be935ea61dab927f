"""Inputs, older results and the work of an interrupted run are never lost."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from odise_mm.annotations.panoptic_io import read_coco_panoptic
from odise_mm.cli import segment as image_demo
from odise_mm.errors import PanopticFileError
from tests.support.fake_segmentor import CONFIG, FakeSegmentor


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a working directory with a config and a folder of four images."""
    monkeypatch.chdir(tmp_path)
    Path("fake.py").write_text(CONFIG)
    Path("trip/vis").mkdir(parents=True)
    for index in range(4):
        Image.new("RGB", (24 + index, 16), (60 * index, 10, 10)).save(f"trip/vis/{index}.jpg")
    return tmp_path


def demo(*arguments: str) -> int:
    """Run the program and return its exit status."""
    try:
        return image_demo.main([*arguments, "--config", "fake.py", "--device", "cpu"])
    except SystemExit as end:
        return end.code


def contents(folder: str) -> dict[str, bytes]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(p): p.read_bytes() for p in paths if not p.name.startswith(".odise_mm")}


def last_error(capsys: pytest.CaptureFixture) -> str:
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("error: ")][-1]


def test_originals_are_not_overwritten(workplace: Path, capsys: pytest.CaptureFixture) -> None:
    before = contents("trip")
    for more in ([], ["--overwrite"]):
        assert demo("trip/vis", "--out", "trip", *more) == 2
        assert "would replace an input" in last_error(capsys)
    assert contents("trip") == before


def test_the_same_command_twice(workplace: Path) -> None:
    assert demo("trip/vis") == 0
    first = contents("out")
    assert demo("trip/vis") == 0
    assert contents("out") == first and len(first) == 9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_ended_by_a_signal_can_be_resumed(
    number: int,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    # Programs started by nohup, or in the background, ignore some signals, and so do these.
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    request.addfinalizer(partial(signal.signal, number, signal.signal(number, usual)))
    assert demo("trip/vis", "--out", "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(FakeSegmentor, "signal", number)
        patch.setattr(FakeSegmentor, "signal_at", 2)
        assert demo("trip/vis") == 128 + number
    lines = capsys.readouterr().err.splitlines()
    assert any(line == "interrupted; run the same command again to continue" for line in lines)
    assert [r.image_name for r in read_coco_panoptic("out/panoptic.json")] == ["0.jpg", "1.jpg"]
    before = os.stat("out/panoptic/0.png").st_mtime_ns
    assert demo("trip/vis") == 0
    assert os.stat("out/panoptic/0.png").st_mtime_ns == before
    whole = {name.replace("whole", "out"): text for name, text in contents("whole").items()}
    assert contents("out") == whole


def test_a_killed_run_does_not_mix_with_an_older_one(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert demo("trip/vis", "--texts", "red ball") == 0
    for index in range(4):
        Image.new("RGB", (40, 20 + index)).save(f"trip/vis/{index}.jpg")
    child = os.fork()
    if not child:
        FakeSegmentor.signal, FakeSegmentor.signal_at = signal.SIGKILL, 2
        demo("trip/vis", "--texts", "blue cube", "--no-progress")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with pytest.raises(PanopticFileError, match="does not match the map|pixels"):
        read_coco_panoptic("out/panoptic.json")
    assert demo("trip/vis", "--texts", "green cone") == 2
    error = last_error(capsys)
    assert (
        "contains 2 images of an interrupted run with different settings: names (blue cube" in error
        and "green" in error
    )
    assert demo("trip/vis", "--texts", "blue cube") == 0
    names = {s.name for r in read_coco_panoptic("out/panoptic.json") for s in r.segments}
    assert names == {"blue cube"}


def test_file_names_that_cannot_be_decoded(workplace: Path) -> None:
    path = os.fsdecode(b"trip/vis/caf\xe9.jpg")
    os.rename("trip/vis/1.jpg", path)
    assert demo("trip/vis") == 0
    names = [result.image_name for result in read_coco_panoptic("out/panoptic.json")]
    assert names == ["0.jpg", "2.jpg", "3.jpg", os.path.basename(path)]


@pytest.mark.parametrize("limit", [40, 1500])
def test_a_full_disk_keeps_older_results(limit: int, workplace: Path) -> None:
    """Limit the size of files, which ends a run at its start or in the middle."""
    assert demo("trip/vis") == 0
    before = contents("out")
    child = os.fork()
    if not child:
        sys.stdout = sys.stderr = open(
            os.devnull, "w"
        )  # pytest's file would exceed the limit as well
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        os._exit(demo("trip/vis", "--texts", "bird", "--no-progress"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    after = contents("out")
    assert after["out/panoptic.json"] == before["out/panoptic.json"]
    assert ("out/panoptic.journal" in after) == (limit > 40)
    assert demo("trip/vis", "--texts", "bird") == 0
    assert len(read_coco_panoptic("out/panoptic.json")) == 4


def test_a_folder_instead_of_a_file_raises_at_the_start(
    workplace: Path, capsys: pytest.CaptureFixture
) -> None:
    Path("out/panoptic.json").mkdir(parents=True)
    assert demo("trip/vis") == 2
    assert "out/panoptic.json: is a folder" in last_error(capsys)
    assert not list(Path("out").rglob("*.png"))


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("visualize_features", ["a.png", "fake.py", "--out", "a.png"]),
        ("visualize_features", ["a.png", "fake.py", "--out", "link.png"]),
        ("benchmark", ["fake.py", "--json", "fake.py"]),
        ("training_step", ["fake.py", "--json", "hard.json"]),
        ("sweep_ensemble", ["saved", "--alpha", "0.1", "--beta", "0.2"]),
    ],
)
def test_tools_do_not_overwrite_their_inputs(
    program: str, arguments: list[str], workplace: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.new("RGB", (8, 8)).save("a.png")
    Path("link.png").symlink_to("a.png")
    os.link("fake.py", "hard.json")
    Path("saved").mkdir()
    Path("saved/0000000.npz").write_bytes(b"predictions")
    os.link("saved/0000000.npz", "saved/sweep.csv")
    before = contents(".")
    module = importlib.import_module(f"tools.analysis_tools.{program}")
    with pytest.raises(SystemExit) as end:
        module.main(arguments)
    assert end.value.code == 2 and "would replace an input" in last_error(capsys)
    assert contents(".") == before
