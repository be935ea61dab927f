"""The written video and its JSON file, also after an interruption."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from odise_mm.apis import OpenVocabInferencer
from odise_mm.cli.main import main
from odise_mm.errors import OutputError, VideoError
from odise_mm.structures import Segment, SegmentationResult
from odise_mm.utils.outputs import InputFiles
from odise_mm.video.frames import open_frames
from odise_mm.video.writing import VideoFile, VideoWriter
from odise_mm.vocabulary import Vocabulary

pytest.importorskip("av")

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "projects/toy_world/weights/odise_label.safetensors"
NAMES = Vocabulary.parse("ball; box", "sky")
TIMES = (0, 0.1, 0.5)


def result(shift: int, track: int = 4) -> SegmentationResult:
    panoptic = np.full((20, 31), 1, np.int32)
    panoptic[4:9, shift : shift + 6] = 2
    segments = [
        Segment(1, 2, "sky", 0.9, 0, False, track_id=1),
        Segment(2, 0, "ball", 0.8, 30, True, track_id=track),
        Segment(3, 1, "box", 0.8, 0, True, track_id=9),  # without pixels
    ]
    return SegmentationResult(height=20, width=31, panoptic=panoptic, segments=segments)


def add(writer: VideoWriter, index: int) -> None:
    writer.add(index, TIMES[index], result(index), np.full((20, 31, 3), 50 * index, np.uint8))


def test_both_files(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.mp4"
    with VideoWriter(path, NAMES, "clip.mp4") as writer:
        for index in range(3):
            add(writer, index)
        assert not path.exists()  # files appear when they are complete
    frames = list(open_frames(path))
    assert [frame.time for frame in frames] == pytest.approx(TIMES, abs=1e-4)
    assert {frame.image.shape for frame in frames} == {(20, 31, 3)}
    coco = COCO(str(path.with_suffix(".json")))
    assert [coco.imgs[i]["time"] for i in (1, 2, 3)] == list(TIMES)
    for index in range(3):
        sky, ball = coco.loadAnns(coco.getAnnIds(imgIds=[index + 1]))
        assert (sky["track_id"], ball["track_id"]) == (1, 4)
        assert coco.loadCats(ball["category_id"])[0]["name"] == "ball"
        assert np.array_equal(coco.annToMask(ball), result(index).panoptic == 2)
    assert coco.dataset["tracks"] == [
        dict(id=1, video_id=1, category_id=3),
        dict(id=4, video_id=1, category_id=1),
    ]
    assert coco.dataset["videos"][0]["name"] == "clip.mp4"
    assert sorted(os.listdir(path.parent)) == ["out.json", "out.mp4"]


def test_ctrl_c_keeps_the_frames_so_far(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        VideoWriter(tmp_path / "out.mkv", NAMES) as writer,
    ):
        add(writer, 0)
        add(writer, 1)
        signal.raise_signal(signal.SIGINT)
    assert len(list(open_frames(tmp_path / "out.mkv"))) == 2
    assert len(json.loads((tmp_path / "out.json").read_text())["images"]) == 2


def test_refused_outputs(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"out.avi: a video must end with .mkv, .mov, .mp4"):
        VideoWriter(tmp_path / "out.avi", NAMES)
    (tmp_path / "in.mp4").touch()
    with pytest.raises(OutputError, match=r"in.mp4: would replace an input"):
        VideoWriter(tmp_path / "in.mp4", NAMES, inputs=InputFiles(tmp_path / "in.mp4"))
    with VideoWriter(tmp_path / "out.mp4", NAMES):
        pass
    assert sorted(os.listdir(tmp_path)) == ["in.mp4"]  # no frames, no files
    with (
        pytest.raises(VideoError, match="a frame has 30 x 20 pixels, but the first one has 31 x 2"),
        VideoWriter(tmp_path / "out.mp4", NAMES) as writer,
    ):
        add(writer, 0)
        writer.add(1, 1.0, result(1), np.zeros((20, 30, 3), np.uint8))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clip of six frames of a scene of the toy world."""
    from projects.toy_world import clip as program

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    assert program.main([str(path), "--seconds", "0.6", "--rate", "10", "--seed", "3"]) == 0
    return path


def test_a_clip_of_the_toy_world(clip: Path, tmp_path: Path) -> None:
    """The trained model finds the objects, which keep their numbers; the time stamps stay."""
    inferencer = OpenVocabInferencer("odise_toy_label", WEIGHTS, device="cpu")
    names = dict(texts="purple ring; black triangle", stuff_texts="sky; water; snow")
    frames = list(inferencer.stream_video(clip, **names, progress=False, batch_size=2))
    assert [frame.index for frame in frames] == list(range(6))
    assert [frame.time for frame in frames] == pytest.approx([i / 10 for i in range(6)], abs=1e-4)
    found = [{s.name: s.track_id for s in frame.result.segments} for frame in frames]
    for name in ("purple ring", "sky", "water", "snow"):
        assert {ids.get(name) for ids in found} == {found[0][name]}, name
    done = inferencer.video(clip, tmp_path / "out.mp4", **names, every=3, progress=False)
    assert (done.frames, done.tracks) == (2, len(json.loads(Path(done.json).read_text())["tracks"]))
    written = list(open_frames(done.video))
    assert [frame.time for frame in written] == pytest.approx([0, 0.3], abs=1e-4)
    assert written[0].image.shape == frames[0].image.shape


def test_the_command(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["segment", str(clip), "--config", "odise_toy_label", "--weights", str(WEIGHTS)]
    command += ["--texts", "purple ring", "--stuff-texts", "sky; water", "--every", "6"]
    assert main([*command, "--out", str(tmp_path / "out"), "--no-progress"]) == 0
    printed = capsys.readouterr().out
    assert "1 frames, " in printed and "wrote " in printed
    assert sorted(os.listdir(tmp_path / "out")) == ["clip.json", "clip.mp4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a.mp4", "b.jpg"], "a video is segmented alone, not with 1 other input"),
        (["a.mp4", "--legend"], "--legend is for images, not for videos"),
        (["a.mp4", "--fill", "mean"], "--fill is for images, not for videos"),
        (["a.mp4", "--format", "coco"], "--format is for images"),
        (["a.jpg", "--every", "2"], "--every: only for videos"),
        (["a.mp4", "--start", "-1"], "must be a number of seconds from 0, not -1"),
    ],
)
def test_wrong_options(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["segment", *options, "--config", "odise_tiny"])
    assert message in capsys.readouterr().err


def test_odd_time_stamps_increase(tmp_path: Path) -> None:
    with VideoFile(tmp_path / "out.mp4") as file:
        for time in (0, 0.2, 0.2, 0.1):
            file.add(time, np.zeros((16, 16, 3), np.uint8))
    times = [frame.time for frame in open_frames(tmp_path / "out.mp4")]
    assert times == sorted(set(times)) and len(times) == 4
