"""Frames of videos, folders of frames, cameras and network streams, with their time stamps.

Videos are decoded by PyAV, the Python binding of FFmpeg's libraries, which keeps the time stamp of
every frame. OpenCV, which numbers frames at a constant rate, only reads cameras here.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time as clock
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import cv2
import numpy as np
from mmengine.logging import print_log

from odise_mm.errors import ConfigError, VideoError
from odise_mm.utils.display import printable
from odise_mm.utils.image import MAX_PIXELS, image_suffixes, read_image
from odise_mm.utils.settings import check_number, check_whole
from odise_mm.video.names import camera_of, is_stream

_TIMEOUT = 10  # seconds that a network stream may be silent
_FAILED_READS = 30  # of a camera in a row, after which it counts as disconnected


@dataclass(frozen=True)
class VideoFrame:
    """One frame of a video."""

    index: int
    """Its number in the source, from 0. Skipped and broken frames count."""
    time: float
    """Its time stamp in seconds, from the first frame of the source."""
    image: np.ndarray
    """(H, W, 3) uint8 BGR, upright."""


class FrameSource(Protocol):
    """An open video. Iterating yields its frames in order."""

    name: str
    """Name for messages."""
    total: int | None
    """Expected number of frames; None if it is unknown, as for cameras."""

    def __iter__(self) -> Iterator[VideoFrame]: ...


@dataclass(frozen=True)
class Selection:
    """The frames of a video that are used.

    Args:
        every: use every n-th frame, the first included.
        start: time of the first frame in seconds.
        end: frames from this time on are left out, in seconds; None: no limit.
        max_side: larger frames are reduced to this many pixels on their longer side; None: no
            limit.

    Raises:
        ConfigError: a value is not allowed.
    """

    every: int = 1
    start: float = 0.0
    end: float | None = None
    max_side: int | None = None

    def __post_init__(self) -> None:
        check_whole("every", self.every)
        check_number("start", self.start, 0, float("inf"))
        if self.end is not None:
            check_number("end", self.end, 0, float("inf"))
            if self.end <= self.start:
                raise ConfigError(f"end={self.end!r} must be later than start={self.start!r}")
        if self.max_side is not None:
            check_whole("max_side", self.max_side)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Return an image with at most ``max_side`` pixels on its longer side."""
        height, width = image.shape[:2]
        if self.max_side is None or max(height, width) <= self.max_side:
            return image
        scale = self.max_side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)

    def count(self, total: int | None, duration: float | None) -> int | None:
        """Return about how many of ``total`` frames are used; ``duration`` in seconds."""
        if total is None:
            return None
        if duration:
            used = min(duration, self.end or duration) - self.start
            total = round(total * max(0.0, used) / duration)
        return -(-total // self.every)


def open_frames(
    source: str | os.PathLike[str] | int,
    selection: Selection | None = None,
    *,
    rate: float = 25.0,
    max_pixels: int | None = MAX_PIXELS,
) -> FrameSource:
    """Open a video.

    Args:
        source: a video file; a folder of images, in the order of their names (numbers count as
            numbers); the index of a camera, also as ``camera:N``; or the address of a stream, such
            as ``rtsp://host/path``. Cameras and streams do not wait: frames that arrive while
            another one is processed are dropped, except for the newest.
        selection: the frames to use; None: all.
        rate: frames per second of a folder of images.
        max_pixels: larger frames are refused before they are converted; None: no limit.

    Raises:
        VideoError: the source does not exist or is not a video, or PyAV is missing.
        ConfigError: ``rate`` is not a positive number.
    """
    selection = selection or Selection()
    check_number("rate", rate, 0, 1e6)
    if not rate:
        raise ConfigError("rate=0: a video needs a positive number of frames per second")
    camera = camera_of(source)
    if camera is not None:
        return _Newest(_Camera(camera, selection))
    path = os.path.expanduser(os.fspath(source))
    if os.path.isdir(path):
        return _Folder(path, selection, rate, max_pixels)
    video = _File(path, selection, max_pixels)
    return _Newest(video) if is_stream(path) else video


def import_av() -> ModuleType:
    """Import PyAV.

    Raises:
        VideoError: it is not installed.
    """
    try:
        import av
    except ImportError as err:
        raise VideoError(
            f"videos need the package av (PyAV), which cannot be imported ({err}): "
            "pip install 'odise_mm[video]'"
        ) from err
    return av


def _check_pixels(name: str, width: int, height: int, max_pixels: int | None) -> None:
    if max_pixels is not None and width * height > max_pixels:
        raise VideoError(
            f"{printable(name)}: frames of {width} x {height} have more than the allowed "
            f"{max_pixels:,} pixels (max_pixels)"
        )


class _File:
    """A video file or a network stream."""

    def __init__(self, path: str, selection: Selection, max_pixels: int | None) -> None:
        self._av = import_av()
        self._selection = selection
        self._max_pixels = max_pixels
        self.name = path
        self._is_stream = is_stream(path)
        if not self._is_stream and not os.path.isfile(path):
            raise VideoError(f"{printable(path)}: no such video file, folder or stream")
        with self._open() as container:
            stream = container.streams.video[0]
            context = stream.codec_context
            _check_pixels(path, context.width, context.height, max_pixels)
            duration, rate = self._duration(container, stream), stream.average_rate
            total = stream.frames or (round(duration * rate) if duration and rate else None)
            self._announced = stream.frames or None
            self.total = None if self._is_stream else selection.count(total, duration)

    def _open(self) -> Any:
        # Playlists in a local file must not make FFmpeg read from the network.
        options = {"rtsp_transport": "tcp"} if self._is_stream else {"protocol_whitelist": "file"}
        timeout = (_TIMEOUT, _TIMEOUT) if self._is_stream else None
        try:
            container = self._av.open(self.name, options=options, timeout=timeout)
        except (self._av.FFmpegError, OSError, ValueError) as err:
            what = "no answer from the stream" if self._is_stream else "not a readable video"
            raise VideoError(f"{printable(self.name)}: {what} ({_reason(err)})") from err
        if not container.streams.video:
            container.close()
            raise VideoError(f"{printable(self.name)}: the file has no video track")
        return container

    @staticmethod
    def _duration(container: Any, stream: Any) -> float | None:
        if stream.duration:
            return float(stream.duration * stream.time_base)
        return container.duration / 1e6 if container.duration else None

    def __iter__(self) -> Iterator[VideoFrame]:
        index, broken = -1, 0
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            first: float | None = None
            step = 1 / float(stream.average_rate or 25)
            time = -step
            for packet in self._packets(container, stream):
                try:
                    frames = packet.decode()
                except self._av.error.InvalidDataError:
                    broken += 1
                    index += 1
                    continue
                for frame in frames:
                    index += 1
                    # Some streams have frames without time stamps.
                    time = time + step if frame.time is None else frame.time
                    first = time if first is None else first
                    used = self._use(frame, index, time - first)
                    if used is not None:
                        yield used
                    elif self._selection.end is not None and time - first >= self._selection.end:
                        self._report(broken, None)
                        return
        if index < 0:
            raise VideoError(f"{printable(self.name)}: the video has no readable frames")
        self._report(broken, index + 1)

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except self._av.FFmpegError as err:
                self._warn(f"the video ends early ({_reason(err)}); the frames before are used")
                return
            yield packet

    def _use(self, frame: Any, index: int, time: float) -> VideoFrame | None:
        chosen = self._selection
        if time < chosen.start or index % chosen.every:
            return None
        if chosen.end is not None and time >= chosen.end:
            return None
        _check_pixels(self.name, frame.width, frame.height, self._max_pixels)
        image = frame.to_ndarray(format="bgr24")
        turns = round(frame.rotation / 90) % 4  # counterclockwise
        return VideoFrame(index, time, chosen.resize(np.ascontiguousarray(np.rot90(image, turns))))

    def _report(self, broken: int, seen: int | None) -> None:
        if broken:
            self._warn(f"{broken} broken frames were skipped")
        if seen is not None and self._announced and seen < self._announced:
            self._warn(f"the video ends after {seen} of the {self._announced} frames that it lists")

    def _warn(self, text: str) -> None:
        print_log(f"{printable(self.name)}: {text}", logger="current", level=logging.WARNING)


def _reason(err: Exception) -> str:
    return str(getattr(err, "strerror", None) or err)


def _natural(name: str) -> list[Any]:
    """Sort key in which numbers are compared as numbers: ``2.jpg`` comes before ``10.jpg``."""
    pieces = re.split(r"(\d+)", name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in pieces if p] + [(2, 0, name)]


class _Folder:
    """A folder of images."""

    def __init__(
        self, folder: str, selection: Selection, rate: float, max_pixels: int | None
    ) -> None:
        self.name = folder
        self._selection, self._rate, self._max_pixels = selection, rate, max_pixels
        kinds = image_suffixes()
        files = [f for f in os.listdir(folder) if Path(f).suffix.lower() in kinds and f[0] != "."]
        if not files:
            raise VideoError(f"{printable(folder)}: no images in this folder")
        self._files = sorted(files, key=_natural)
        self.total = selection.count(len(files), len(files) / rate)

    def __iter__(self) -> Iterator[VideoFrame]:
        chosen = self._selection
        for index, file in enumerate(self._files):
            time = index / self._rate
            if chosen.end is not None and time >= chosen.end:
                return
            if time >= chosen.start and index % chosen.every == 0:
                image = read_image(os.path.join(self.name, file), max_pixels=self._max_pixels)
                yield VideoFrame(index, time, chosen.resize(image))


class _Camera:
    """A camera, read by OpenCV. Time stamps are those of the clock."""

    total = None

    def __init__(self, number: int, selection: Selection) -> None:
        self.name = f"camera:{number}"
        self._number, self._selection = number, selection

    def __iter__(self) -> Iterator[VideoFrame]:
        chosen = self._selection
        capture = cv2.VideoCapture(self._number)
        try:
            if not capture.isOpened():
                raise VideoError(f"{self.name}: there is no such camera, or it cannot be opened")
            begin, index, failed = clock.monotonic(), -1, 0
            while failed < _FAILED_READS:
                there, image = capture.read()
                if not there:
                    failed += 1
                    continue
                failed, index, time = 0, index + 1, clock.monotonic() - begin
                if chosen.end is not None and time >= chosen.end:
                    return
                if time >= chosen.start and index % chosen.every == 0:
                    yield VideoFrame(index, time, chosen.resize(image))
            raise VideoError(f"{self.name}: the camera stopped sending frames")
        finally:
            capture.release()


class _Newest:
    """Reads a live source in a thread and yields the newest frame whenever one is asked for."""

    total = None

    def __init__(self, source: FrameSource) -> None:
        self.name = source.name
        self._source = source

    def __iter__(self) -> Iterator[VideoFrame]:
        newest: deque[VideoFrame | None] = deque(maxlen=1)
        changed = threading.Condition()
        stopped = threading.Event()
        failures: list[Exception] = []

        def put(frame: VideoFrame | None) -> None:
            with changed:
                if frame is None and newest:  # the last frame is not replaced by the end
                    changed.wait_for(lambda: not newest or stopped.is_set())
                newest.append(frame)
                changed.notify_all()

        def read() -> None:
            try:
                for frame in self._source:
                    put(frame)
                    if stopped.is_set():
                        return
            except Exception as err:  # raised again below
                failures.append(err)
            finally:
                put(None)

        threading.Thread(target=read, name=f"frames of {self.name}", daemon=True).start()
        try:
            while True:
                with changed:
                    changed.wait_for(lambda: bool(newest))
                    frame = newest.popleft()
                    changed.notify_all()
                if frame is None:
                    break
                yield frame
        finally:
            stopped.set()
            with changed:
                changed.notify_all()
        if failures:
            raise failures[0]
