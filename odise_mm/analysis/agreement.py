"""Agreement of two sets of panoptic results, such as those of two precisions."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from odise_mm.annotations.ground_truth import TruthSegment, count_pairs
from odise_mm.annotations.panoptic_io import iterate_coco_panoptic
from odise_mm.benchmarks.tables import Table
from odise_mm.errors import PanopticFileError
from odise_mm.evaluation.panoptic_quality import PanopticCounts, match_segments, panoptic_quality
from odise_mm.structures import SegmentationResult
from odise_mm.utils.display import printable


@dataclass(frozen=True)
class Agreement:
    """How far two sets of results agree, over all images."""

    images: int
    equal_images: int
    """Images in which every pixel has the same class and segments have the same borders."""
    pixels: float
    """Share of the pixels that have the same class, or are void, in both, in percent."""
    segments: tuple[int, int]
    """Number of segments in each set."""
    pq: float
    """PQ of the second set with the first one as ground truth, in percent. Things and stuff."""
    rq: float
    """RQ, likewise: the share of segments that are found in both."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers in JSON types."""
        return asdict(self)

    def table(self, first: str, second: str) -> Table:
        """Return the numbers as a table."""
        rows = [
            ["images", f"{self.images:,}"],
            ["images with equal maps", f"{self.equal_images:,}"],
            ["pixels of the same class, %", f"{self.pixels:.3f}"],
            [f"segments, {first}", f"{self.segments[0]:,}"],
            [f"segments, {second}", f"{self.segments[1]:,}"],
            ["PQ of the second against the first", f"{self.pq:.2f}"],
            ["RQ of the second against the first", f"{self.rq:.2f}"],
        ]
        return Table(f"Agreement of {first} and {second}", ["", "value"], rows)


def compare_results(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> Agreement:
    """Compare two files of panoptic results in COCO's format, with their PNG files beside them.

    Args:
        first: the reference.
        second: results on the same images with the same class names.

    Raises:
        PanopticFileError: a file cannot be read, or the files have other images or classes.
    """
    equal = images = same = pixels = 0
    numbers = [0, 0]
    total: PanopticCounts | None = None
    results = [iter(iterate_coco_panoptic(path)) for path in (first, second)]
    while True:
        one, other = (next(part, None) for part in results)
        if one is None and other is None:
            break
        _check_same(one, other, first, second)
        assert one is not None and other is not None, "checked"
        ids, other_ids = one.require_panoptic(), other.require_panoptic()
        classes, other_classes = _classes(one), _classes(other)
        agree = int((classes == other_classes).sum())
        images, pixels, same = images + 1, pixels + ids.size, same + agree
        equal += agree == ids.size and _same_borders(ids, other_ids)
        for index, result in enumerate((one, other)):
            numbers[index] += len(result.segments)
        truth = [TruthSegment(s.id, s.label, s.is_thing, False) for s in one.segments]
        labels = {s.id: s.label for s in other.segments}
        count = len(one.class_names)
        counts = match_segments(ids, truth, other_ids, labels, count)
        total = total or PanopticCounts.zeros(count)
        total.add(counts)
    if total is None:
        raise PanopticFileError(f"{printable(first)}: the file has no results")
    found, _ = panoptic_quality(total, [True] * len(total.tp))
    return Agreement(
        images,
        equal,
        100 * same / pixels,
        (numbers[0], numbers[1]),
        found["PQ"],
        found["RQ"],
    )


def _check_same(
    one: SegmentationResult | None,
    other: SegmentationResult | None,
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
) -> None:
    why = ""
    if one is None or other is None:
        why = "one has more images than the other"
    elif one.class_names != other.class_names:
        why = "their categories differ"
    elif one.image_name != other.image_name or one.panoptic.shape != other.panoptic.shape:
        why = f"one has {printable(one.image_name)} where the other has "
        why += f"{printable(other.image_name)}, or its size differs"
    if why:
        raise PanopticFileError(f"{printable(first)} and {printable(second)}: {why}")


def _classes(result: SegmentationResult) -> np.ndarray:
    """Return (H, W) class indices + 1; 0 for void."""
    ids = result.require_panoptic()
    table = np.zeros(int(ids.max(initial=0)) + 1, np.int32)
    for segment in result.segments:
        if segment.id < len(table):
            table[segment.id] = segment.label + 1
    return table[ids]


def _same_borders(ids: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two maps have the same segments, whatever their numbers."""
    pairs, _ = count_pairs(ids, other)
    return len(np.unique(pairs >> 32)) == len(pairs) == len(np.unique(pairs & 0xFFFFFFFF))
