"""Cost of drawing and writing results, beside the model's."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from odise_mm.analysis.evaluation_cost import random_map
from odise_mm.benchmarks.tables import Table
from odise_mm.structures import Segment, SegmentationResult
from odise_mm.vocabulary import Vocabulary

MODEL, DRAWING, WRITING, RUN_LENGTHS = (
    "reading and segmenting",
    "drawing",
    "writing the map, the drawing and the journal",
    "run-length codes",
)


def random_result(size: tuple[int, int], segments: int, vocabulary: Vocabulary) -> tuple:
    """Draw a result with ellipses as segments, and a smooth image (H, W, 3) uint8 for it."""
    rng = np.random.default_rng(0)
    ids = random_map(rng, size, segments)
    labels = rng.integers(len(vocabulary), size=segments + 1)
    found = [
        Segment(
            id=int(number),
            label=int(label := labels[number]),
            name=vocabulary.names[label],
            score=0.9,
            area=int((ids == number).sum()),
            is_thing=vocabulary.is_thing[label],
        )
        for number in np.unique(ids)
        if number
    ]
    noise = rng.integers(256, size=(*size, 3), dtype=np.uint8)
    image = cv2.GaussianBlur(noise, (31, 31), 0)
    names = vocabulary.names
    return SegmentationResult(None, "image", *size, ids, found, names), image


def measure_writing(
    inferencer: Any,
    writer: Callable[..., Any],
    vocabulary: str,
    size: tuple[int, int],
    segments: int,
    repeats: int,
) -> dict[str, Any]:
    """Measure what a run with ``out_dir`` does for an image: segmenting, drawing and writing.

    Results of random weights have few segments. So drawing and writing are measured with a result
    of ``segments`` ellipses.

    Args:
        inferencer: an :class:`~odise_mm.apis.OpenVocabInferencer`.
        writer: :class:`~odise_mm.apis.output.ResultWriter`.
        vocabulary: name or file of the vocabulary.
        size: height and width of the image.
        segments: segments drawn into the result; some are covered by others.
        repeats: measured rounds after a warm-up.

    Returns:
        Median CPU seconds of every step.
    """
    cv2.setNumThreads(1)
    names = Vocabulary.load(vocabulary)
    result, image = random_result(size, segments, names)
    ok, encoded = cv2.imencode(".jpg", image)
    assert ok, "OpenCV has a JPEG encoder"
    content = encoded.tobytes()
    drawing = inferencer.draw(image, result)
    with TemporaryDirectory() as folder, writer(folder, names) as results:
        steps: dict[str, Callable[[], object]] = {
            MODEL: lambda: inferencer(content, vocabulary=names),
            DRAWING: lambda: inferencer.draw(image, result),
            WRITING: lambda: results.add(result, drawing),
            RUN_LENGTHS: lambda: result.to_coco(1),
        }
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for round_ in range(repeats + 1):
            for name, step in steps.items():
                begin = time.process_time()
                step()
                if round_:
                    seconds[name].append(time.process_time() - begin)
    return dict(
        size=list(size),
        segments=len(result.segments),
        cpu_seconds={name: median(times) for name, times in seconds.items()},
    )


def writing_table(result: dict[str, Any]) -> Table:
    """Make the table of a result of :func:`measure_writing`."""
    height, width = result["size"]
    table = Table(
        f"Drawing and writing: {width} x {height} pixels, {result['segments']} segments",
        ("step", "CPU ms per image", "share of the model's time"),
    )
    model = result["cpu_seconds"][MODEL]
    for name, value in result["cpu_seconds"].items():
        share = "" if name == MODEL else f"{100 * value / model:.2f} %"
        table.rows.append((name, f"{1e3 * value:.1f}", share))
    return table
