"""Frames of videos: time stamps, selection, orientation, and files that are damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from odise_mm.errors import ConfigError, VideoError
from odise_mm.video.frames import Selection, VideoFrame, open_frames
from odise_mm.video.names import is_video
from odise_mm.video.writing import VideoFile

av = pytest.importorskip("av")


def picture(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Return a gray frame whose value tells its number."""
    return np.full((height, width, 3), 10 + 20 * index, np.uint8)


def number_of(frame: VideoFrame) -> int:
    """Return the number that :func:`picture` wrote into a frame."""
    return round((float(frame.image.mean()) - 10) / 20)


def write(path: Path, times: Sequence[float], **size: int) -> Path:
    with VideoFile(path) as file:
        for index, time in enumerate(times):
            file.add(time, picture(index, **size))
    return path


def read(path: object, **chosen: object) -> list[VideoFrame]:
    return list(open_frames(path, Selection(**chosen)))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_time_stamps_of_a_variable_rate(tmp_path: Path, suffix: str) -> None:
    times = [0, 0.04, 0.3, 0.31, 1.001]
    frames = read(write(tmp_path / f"a{suffix}", times))
    assert [number_of(frame) for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.time for frame in frames] == pytest.approx(times, abs=6e-4)  # .mkv: milliseconds


def test_odd_sizes_keep_their_size(tmp_path: Path) -> None:
    (frame,) = read(write(tmp_path / "a.mp4", [0], width=33, height=21))
    assert frame.image.shape == (21, 33, 3)


def test_selection(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [i / 10 for i in range(10)])
    chosen = dict(every=2, start=0.35, end=0.8, max_side=32)
    frames = read(path, **chosen)
    assert [(frame.index, number_of(frame)) for frame in frames] == [(4, 4), (6, 6)]
    assert {frame.image.shape for frame in frames} == {(24, 32, 3)}
    source = open_frames(path, Selection(**chosen))
    assert source.total == 3  # an estimate
    assert open_frames(path).total == 10


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (dict(every=0), "every=0: must be a whole number of at least 1"),
        (dict(start=-1), "start=-1: must be a number of at least 0"),
        (dict(start=3, end=2), "end=2 must be later than start=3"),
        (dict(max_side=0), "max_side=0: must be a whole number of at least 1"),
    ],
)
def test_bad_selections(chosen: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Selection(**chosen)


def in_header(a: int, b: int, c: int, d: int) -> bytes:
    """Return a matrix as the header of a track stores it."""
    return (65536 * np.array([a, b, 0, c, d, 0, 0, 0, 16384])).astype(">i4").tobytes()


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotated_videos_become_upright(tmp_path: Path, turns: int) -> None:
    """Phones store a matrix that players apply; its nine numbers are in the header of the track."""
    image = np.zeros((32, 48, 3), np.uint8)
    image[:16, :24] = 255
    with VideoFile(tmp_path / "a.mp4") as file:
        file.add(0, image)
    data = (tmp_path / "a.mp4").read_bytes()
    place = data.index(b"tkhd") + 44
    assert data[place : place + 36] == in_header(1, 0, 0, 1)
    c, s = np.rint([np.cos(np.pi / 2 * turns), np.sin(np.pi / 2 * turns)]).astype(int)
    clockwise = in_header(c, s, -s, c)
    (tmp_path / "b.mp4").write_bytes(data[:place] + clockwise + data[place + 36 :])
    (frame,) = read(tmp_path / "b.mp4")
    wanted = np.rot90(image, -turns)
    assert frame.image.shape == wanted.shape
    assert np.abs(frame.image.astype(int) - wanted).mean() < 4


def test_a_video_that_ends_early(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    with VideoFile(tmp_path / "a.mkv") as file:
        for index in range(12):
            noise = rng.integers(-9, 9, picture(index).shape)
            file.add(index / 10, np.clip(picture(index) + noise, 0, 255).astype(np.uint8))
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "b.mkv").write_bytes(data[: int(len(data) * 0.7)])
    frames = read(tmp_path / "b.mkv")
    assert 3 < len(frames) < 12
    assert [number_of(frame) for frame in frames] == list(range(len(frames)))


def test_broken_frames_do_not_end_the_video(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with VideoFile(tmp_path / "a.mkv") as file:
        for index in range(12):
            noise = rng.integers(-9, 9, picture(index).shape)
            file.add(index / 10, np.clip(picture(index) + noise, 0, 255).astype(np.uint8))
    data = bytearray((tmp_path / "a.mkv").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    (tmp_path / "b.mkv").write_bytes(data)
    frames = read(tmp_path / "b.mkv")
    assert number_of(frames[0]) == 0 and number_of(frames[-1]) == 11


def test_folders_of_images(tmp_path: Path) -> None:
    for index in range(12):
        cv2.imwrite(str(tmp_path / f"frame_{index}.png"), picture(index))
    (tmp_path / "notes.txt").write_text("no image")
    source = open_frames(tmp_path, Selection(every=5), rate=4)
    assert source.total == 3
    found = [(frame.index, frame.time, number_of(frame)) for frame in source]
    assert found == [(0, 0, 0), (5, 1.25, 5), (10, 2.5, 10)]


def test_unusable_sources(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match=r"text.mp4: not a readable video"):
        open_frames(tmp_path / "text.mp4")
    with pytest.raises(VideoError, match=r"no.mp4: no such video file, folder or stream"):
        open_frames(tmp_path / "no.mp4")
    with pytest.raises(VideoError, match="empty: no images in this folder"):
        open_frames(tmp_path / "empty")
    with pytest.raises(VideoError, match=r"a.mp4: frames of 64 x 48 have more than the allowed 99"):
        open_frames(write(tmp_path / "a.mp4", [0]), max_pixels=99)
    with pytest.raises(VideoError, match="camera:77: there is no such camera"):
        next(iter(open_frames("camera:77")))


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        samples = np.zeros((1, 2048), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(VideoError, match=r"sound.mp4: the file has no video track"):
        open_frames(path)


def test_a_playlist_in_a_file_opens_no_connection(tmp_path: Path) -> None:
    path = tmp_path / "list.mp4"
    path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError, match=r"list.mp4: not a readable video"):
        open_frames(path)


def test_newest_frames_of_a_stream(tmp_path: Path) -> None:
    """A slow reader of a stream gets the newest frames, in order, and always the last one."""
    import socket
    import threading
    import time

    path = tmp_path / "a.ts"
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(12):
            frame = av.VideoFrame.from_ndarray(picture(index), format="bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(2):  # opened once to look at it, once to read it
            connection, _ = server.accept()
            with connection:
                try:
                    connection.sendall(path.read_bytes())
                except OSError:
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    source = open_frames(f"tcp://127.0.0.1:{server.getsockname()[1]}")
    assert source.total is None
    seen = []
    for frame in source:
        seen.append(number_of(frame))
        time.sleep(0.05)
    thread.join(5)
    assert seen == sorted(set(seen)) and seen[-1] == 11


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a/clip.MP4", True),
        ("camera:0", True),
        ("rtsp://host/live", True),
        ("https://host/clip.mp4", True),
        ("https://host/image.jpg", False),
        ("image.jpg", False),
        (np.zeros(3), False),
    ],
)
def test_names_of_videos(name: object, wanted: bool) -> None:
    assert is_video(name) == wanted
