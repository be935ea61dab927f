"""Files of a segmented video: the drawn frames, and the segments with their tracks as JSON."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from odise_mm.errors import OutputError, VideoError
from odise_mm.structures import SegmentationResult
from odise_mm.utils.display import printable
from odise_mm.utils.files import replacing
from odise_mm.utils.outputs import InputFiles, check_outputs
from odise_mm.video.frames import import_av
from odise_mm.video.names import OUTPUT_SUFFIXES
from odise_mm.vocabulary import Vocabulary

_TIME_BASE = Fraction(1, 90_000)  # divides the usual frame rates, also 30000 / 1001
_CONTAINERS = dict(zip(OUTPUT_SUFFIXES, ("matroska", "mov", "mp4"), strict=True))


class VideoFile:
    """Writes a video without sound, H.264. Frames keep their size and their time stamps.

    Use it as a context manager. The file appears at its end, also if the block ends with an
    exception (or Ctrl-C): it then contains the frames so far. Without any frame, no file is
    written.

    Args:
        path: .mp4, .mkv or .mov.

    Raises:
        OutputError: the name has another extension, or the file cannot be written.
        VideoError: PyAV is missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.size: tuple[int, int] | None = None
        """Width and height in pixels, from the first frame on."""
        if self.path.suffix.lower() not in OUTPUT_SUFFIXES:
            raise OutputError(
                f"{printable(self.path)}: a video must end with {', '.join(OUTPUT_SUFFIXES)}"
            )
        self._av = import_av()
        self._file = ExitStack()
        self._container: Any = None
        self._stream: Any = None
        self._last_stamp = -1

    def __enter__(self) -> VideoFile:
        return self

    def add(self, time: float, image: np.ndarray) -> None:
        """Write a frame.

        Args:
            time: time stamp in seconds, later than that of the frame before.
            image: (H, W, 3) uint8 BGR.

        Raises:
            VideoError: the size differs from that of the first frame.
            OutputError: the file cannot be written.
        """
        height, width = image.shape[:2]
        try:
            if self._container is None:
                self._open(width, height)
            if self.size != (width, height):
                raise VideoError(
                    f"{printable(self.path)}: a frame has {width} x {height} pixels, but the first "
                    f"one has {self._stream.width} x {self._stream.height}"
                )
            frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="bgr24")
            # Encoders need increasing time stamps.
            self._last_stamp = max(self._last_stamp + 1, round(time / _TIME_BASE))
            frame.pts, frame.time_base = self._last_stamp, _TIME_BASE
            self._container.mux(self._stream.encode(frame))
        except (OSError, self._av.FFmpegError) as err:
            raise self._failed(err) from err

    def _open(self, width: int, height: int) -> None:
        temporary = self._file.enter_context(replacing(self.path))
        container = self._av.open(str(temporary), "w", format=_CONTAINERS[self.path.suffix.lower()])
        self._stream = container.add_stream("libx264", options={"crf": "18"})
        self._stream.width, self._stream.height = self.size = width, height
        # Halved color planes need even sizes.
        self._stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        self._stream.codec_context.time_base = _TIME_BASE
        self._container = container

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._container is None:
            return
        try:
            with self._file:
                self._container.mux(self._stream.encode(None))
                self._container.close()
        except (OSError, self._av.FFmpegError) as err:
            raise self._failed(err) from err

    def _failed(self, err: Exception) -> OutputError:
        reason = getattr(err, "strerror", None) or err
        return OutputError(f"{printable(self.path)}: the video cannot be written ({reason})")


class VideoWriter:
    """Writes a drawn video, see :class:`VideoFile`, and a JSON file with all segments.

    The JSON file has the form of TAO, which extends COCO's: ``videos``, ``images`` (the frames,
    with ``frame_index`` and ``time`` in seconds), ``tracks``, ``annotations`` (run-length encoded
    masks with ``track_id``) and ``categories``. The ids of categories are class indices + 1.

    Both files appear at the end of the ``with`` block, also if an exception ends it. Memory does
    not grow with the number of frames.

    Args:
        path: the video. The JSON file has the same name with .json.
        vocabulary: the class names.
        source: name of the source, for the JSON file.
        inputs: files that must not be overwritten.

    Raises:
        OutputError: the files cannot be written.
        VideoError: PyAV is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        vocabulary: Vocabulary,
        source: str = "",
        inputs: InputFiles | None = None,
    ) -> None:
        self._video = VideoFile(path)
        self._json = self._video.path.with_suffix(".json")
        check_outputs([self._video.path, self._json], inputs or InputFiles())
        self._vocabulary = vocabulary
        self._source = source
        self._stack = ExitStack()
        self._lines: dict[str, IO[str]] = {}  # temporary files: a line of JSON for each entry
        self._tracks: dict[int, dict[int, int]] = {}  # of every track: frames by category
        self._frames = self._count = 0

    def __enter__(self) -> VideoWriter:
        self._video.__enter__()
        for entries in ("images", "annotations"):
            file = tempfile.TemporaryFile("w+", encoding="utf-8")
            self._lines[entries] = self._stack.enter_context(file)
        return self

    def add(self, index: int, time: float, result: SegmentationResult, drawing: np.ndarray) -> None:
        """Write a frame.

        Args:
            index: number of the frame in its source.
            time: its time stamp in seconds.
            result: its result, with ``track_id`` in the segments.
            drawing: (H, W, 3) uint8 BGR; the same size for all frames.

        Raises:
            VideoError: the size differs from that of the first frame.
            OutputError: the files cannot be written.
        """
        self._video.add(time, drawing)
        self._frames += 1
        entry = dict(id=self._frames, video_id=1, frame_index=index, time=round(time, 6))
        entry |= dict(width=result.width, height=result.height)
        try:
            self._lines["images"].write(f"{json.dumps(entry)}\n")
            for entry in result.to_coco(self._frames, first_id=self._count + 1):
                self._lines["annotations"].write(f"{json.dumps(dict(entry, video_id=1))}\n")
                votes = self._tracks.setdefault(entry["track_id"], {})
                votes[entry["category_id"]] = votes.get(entry["category_id"], 0) + 1
                self._count += 1
        except OSError as err:
            raise self._failed(err) from err

    def __exit__(self, *error: Any) -> None:
        try:
            with self._stack:
                self._video.__exit__(*error)
                if self._frames:
                    with replacing(self._json) as path, open(path, "w", encoding="utf-8") as file:
                        self._write_json(file)
        except OSError as err:
            raise self._failed(err) from err

    def _write_json(self, file: IO[str]) -> None:
        assert self._video.size is not None, "there is a frame"
        size = dict(zip(("width", "height"), self._video.size, strict=True))
        kinds = zip(self._vocabulary.names, self._vocabulary.is_thing, strict=True)
        head = dict(
            videos=[dict(id=1, name=self._source, file_name=self._video.path.name, **size)],
            categories=[
                dict(id=index, name=name, isthing=int(thing))
                for index, (name, thing) in enumerate(kinds, start=1)
            ],
            tracks=[
                dict(id=track, video_id=1, category_id=max(votes, key=lambda k: (votes[k], -k)))
                for track, votes in sorted(self._tracks.items())
            ],
        )
        file.write(json.dumps(head, ensure_ascii=False)[:-1])
        for name, lines in self._lines.items():
            file.write(f',\n"{name}": [\n')
            lines.seek(0)
            for index, line in enumerate(lines):
                file.write(("," if index else "") + line)
            file.write("]")
        file.write("}\n")

    def _failed(self, err: OSError) -> OutputError:
        return OutputError(f"{printable(self._json)}: cannot be written ({err.strerror or err})")
