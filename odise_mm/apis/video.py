"""Segmentation of videos. The methods of ``OpenVocabInferencer`` call this."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from odise_mm.structures import SegmentationResult
from odise_mm.video.frames import FrameSource, VideoFrame
from odise_mm.video.tracks import Tracker
from odise_mm.video.writing import VideoWriter
from odise_mm.vocabulary import Vocabulary

if TYPE_CHECKING:
    from odise_mm.apis.inferencer import OpenVocabInferencer


@dataclass(frozen=True)
class SegmentedFrame:
    """A frame of a video and its result."""

    index: int
    """Number of the frame in the source, from 0."""
    time: float
    """Its time stamp in seconds, from the first frame of the source."""
    image: np.ndarray
    """(H, W, 3) uint8 BGR."""
    result: SegmentationResult
    """The result, with ``track_id`` in the segments."""


@dataclass(frozen=True)
class VideoSummary:
    """What :meth:`OpenVocabInferencer.video` did."""

    frames: int
    """Number of frames written."""
    tracks: int
    """Number of objects and classes of stuff."""
    video: str
    """The written video."""
    json: str
    """The written JSON file."""


def segment_frames(
    inferencer: OpenVocabInferencer,
    source: FrameSource,
    vocabulary: Vocabulary,
    tracker: Tracker,
    batch_size: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> Iterator[SegmentedFrame]:
    """Segment the frames of a video and link their segments.

    Yields:
        One item per frame, in order.

    Raises:
        VideoError, ImageError: the source cannot be read.
        DeviceMemoryError: a frame needs too much memory.
        FloatingPointError: the masks of a frame are not finite.
    """
    waiting: deque[VideoFrame] = deque()

    def images() -> Iterator[np.ndarray]:
        with closing(iter(source)) as frames:  # type: ignore[type-var]
            for frame in frames:
                waiting.append(frame)
                yield frame.image

    settings = {**(settings or {}), "panoptic": True, "semantic": False, "instance": False}
    keep = settings.pop("keep_queries", False)
    results = inferencer.stream(
        images(),
        vocabulary=vocabulary,
        batch_size=batch_size,
        progress=False,
        keep_queries=True,  # for the links and the names
        **settings,
    )
    with closing(results):  # type: ignore[type-var]
        for result in results:
            frame = waiting.popleft()
            if result.error is not None:
                raise result.error
            result.image_name = f"{source.name}, frame {frame.index}"
            tracked = tracker.update(result)
            if not keep:
                tracked.queries = None
            yield SegmentedFrame(frame.index, frame.time, frame.image, tracked)


def write_frames(
    inferencer: OpenVocabInferencer, frames: Iterator[SegmentedFrame], writer: VideoWriter
) -> Iterator[SegmentedFrame]:
    """Draw frames and write them. When the iterator ends or is closed, the files are complete."""
    with closing(frames), writer:  # type: ignore[type-var]
        for frame in frames:
            drawing = inferencer.draw(frame.image, frame.result)
            writer.add(frame.index, frame.time, frame.result, drawing)
            yield frame


def summarize(frames: Iterator[SegmentedFrame], out: str | os.PathLike[str]) -> VideoSummary:
    """Consume the frames of a video that is written to ``out``."""
    count = tracks = 0
    with closing(frames):  # type: ignore[type-var]
        for frame in frames:
            count += 1
            tracks = max([tracks, *(s.track_id or 0 for s in frame.result.segments)])
    video = Path(out)
    return VideoSummary(count, tracks, str(video), str(video.with_suffix(".json")))
