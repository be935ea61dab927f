#!/usr/bin/env python
"""Draw a sheet of held-out scenes: image, ground truth, prediction, and k-means of two features.

The scenes are the first ones of split `val` with at least three things, including a novel one.
Segments are drawn in their mean colors. A star marks novel names, for which there were no training
masks. A checkerboard marks pixels without a segment. In the prediction, a name on red is wrong. A
name in parentheses on gray belongs to a region that matches no true segment (IoU of at most 0.5).
The model chooses among all names of the toy world.

The last two columns cluster the model's diffusion features, and the last features of CLIP's image
tower, at the same stride. k is the number of true segments.

Example:
    python projects/toy_world/generate.py demo_output/data/toy_world --splits val --number 50
    python projects/toy_world/sheet.py --data-root demo_output/data/toy_world --rows 4
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from odise_mm.benchmarks.tables import write_figure
from odise_mm.errors import ConfigError, DatasetError
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int
from odise_mm.utils.display import printable
from odise_mm.utils.outputs import InputFiles, check_outputs
from projects.toy_world.arguments import image_file
from projects.toy_world.names import names_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import nn

    from odise_mm.apis import OpenVocabInferencer
    from odise_mm.structures import Segment, SegmentationResult

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "toy" / "odise_toy_label.py"
WEIGHTS = ROOT / "projects" / "toy_world" / "weights" / "odise_label.safetensors"
VOCABULARY = ROOT / "projects" / "toy_world" / "vocabularies" / "all.txt"
THINGS = 3  # smallest number of things in a scene of the sheet
STRIDE = 8  # stride of the features, the smallest that CLIP has

_TITLES = ("image", "truth", "found", "k-means: diffusion", "k-means: CLIP")
_INK, _FAINT, _GREEN, _RED = "#1c1c1e", "#77777c", "#0b6e2d", "#b3141d"
_NOTE = (
    "Green*: novel, no mask of this name was seen in training.  Red: wrong name.  "
    "(Gray): fits no true region, IoU of at most 0.5.\n"
    "Checkerboard: nothing found.  k: number of true segments."
)


class Verdict(Enum):
    """Verdict on a predicted segment; the first two match a true segment (IoU above 0.5)."""

    RIGHT = "right"
    WRONG = "wrong name"
    LOOSE = "fits no true region"


@dataclass(frozen=True)
class Row:
    """Scene of the sheet.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        truth: Ground truth.
        found: Prediction.
        clusters: (H, W) cluster indices from 0, one array per kind of features.
    """

    image: np.ndarray
    truth: SegmentationResult
    found: SegmentationResult
    clusters: Sequence[np.ndarray]


def choose(truths: Sequence[SegmentationResult], novel: Collection[str], rows: int) -> list[int]:
    """Choose the scenes of the sheet by the rule in this module's docstring.

    Args:
        truths: Ground truth of all scenes.
        novel: Novel names.
        rows: Number of scenes to choose.

    Returns:
        Indices in ``truths``.

    Raises:
        DatasetError: There are too few scenes.
    """
    chosen = []
    for index, truth in enumerate(truths):
        things = [segment.name for segment in truth.segments if segment.is_thing]
        if len(things) >= THINGS and not novel.isdisjoint(things):
            chosen.append(index)
    if len(chosen) < rows:
        raise DatasetError(
            f"{len(chosen)} of {len(truths)} scenes have at least {THINGS} things including a "
            f"novel one; draw more scenes, or use fewer than {rows} rows (--rows)"
        )
    return chosen[:rows]


def judge(found: SegmentationResult, truth: SegmentationResult) -> dict[int, Verdict]:
    """Return the verdicts by ids of predicted segments; pixels without ground truth are ignored."""
    known = truth.panoptic > 0
    verdicts = {}
    for segment in found.segments:
        mask = found.mask(segment) & known
        fitting = [s for s in truth.segments if _iou(mask, truth.mask(s)) > 0.5]  # at most one
        if not fitting:
            verdicts[segment.id] = Verdict.LOOSE
        else:
            same = fitting[0].name == segment.name
            verdicts[segment.id] = Verdict.RIGHT if same else Verdict.WRONG
    return verdicts


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / max((one | other).sum(), 1)


def count(rows: Sequence[Row], novel: Collection[str]) -> dict[str, tuple[int, int]]:
    """Count things that were found with the right name, and all true things.

    At most one predicted segment matches a true one, so none is counted twice.

    Returns:
        (right, all) for "novel" and "base".
    """
    counts = {}
    for kind, wanted in (("novel", True), ("base", False)):
        right = total = 0
        for row in rows:
            verdicts = judge(row.found, row.truth)
            things = [s for s in row.truth.segments if s.is_thing]
            total += sum((s.name in novel) == wanted for s in things)
            right += sum(
                s.is_thing and (s.name in novel) == wanted and verdicts[s.id] is Verdict.RIGHT
                for s in row.found.segments
            )
        counts[kind] = (right, total)
    return counts


def draw(rows: Sequence[Row], novel: Collection[str]) -> Figure:
    """Draw the sheet, with one row of panels per scene."""
    from matplotlib.figure import Figure

    columns = len(_TITLES)
    figure = Figure(figsize=(2.2 * columns, 2.2 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, title in zip(axes[0], _TITLES, strict=True):
        axis.set_title(title, fontsize=9, color=_INK)
    for (image_axis, truth_axis, found_axis, *feature_axes), row in zip(axes, rows, strict=True):
        image_axis.imshow(row.image)
        draw_segments(truth_axis, row.image, row.truth, novel)
        draw_segments(found_axis, row.image, row.found, novel, judge(row.found, row.truth))
        for axis, labels in zip(feature_axes, row.clusters, strict=True):
            axis.imshow(labels, cmap="tab10", vmin=0, vmax=9, interpolation="nearest")
    figure.supxlabel(_NOTE, fontsize=7.5, color=_INK)
    return figure


def draw_segments(
    axis: Axes,
    image: np.ndarray,
    result: SegmentationResult,
    novel: Collection[str],
    verdicts: dict[int, Verdict] | None = None,
) -> None:
    """Draw segments with their names.

    Pixels outside of all segments get a checkerboard pattern.

    Args:
        axis: Axis to draw on.
        image: (H, W, 3) uint8 RGB.
        result: The segments.
        novel: Novel names.
        verdicts: Verdicts by segment id; None: all segments are right.
    """
    y, x = np.indices(image.shape[:2]) // 4
    canvas = np.where((x + y) % 2, 245, 215).astype(np.uint8)[..., None].repeat(3, -1)
    for segment in result.segments:
        mask = result.mask(segment)
        canvas[mask] = image[mask].mean(axis=0)
    axis.imshow(canvas)
    places = _Places()
    for segment in sorted(
        result.segments, key=lambda s: s.area
    ):  # small ones first: they have less space
        verdict = Verdict.RIGHT if verdicts is None else verdicts[segment.id]
        mask = result.mask(segment)
        if not mask.all():
            axis.contour(mask, levels=[0.5], colors="white", linewidths=1.0)
        text = label(segment, segment.name in novel, verdict)
        ink, paper = _GREEN if segment.name in novel else _INK, "white"
        if verdict is Verdict.WRONG:
            ink, paper = "white", _RED
        elif verdict is Verdict.LOOSE:
            ink, paper = _FAINT, "#e4e4e6"
        x, y = places.find(mask, text)
        axis.text(
            x, y, text, fontsize=6, color=ink, ha="center", va="center", linespacing=0.95,
            bbox=dict(boxstyle="round,pad=0.15", facecolor=paper, alpha=0.85, linewidth=0),
        )  # fmt: skip


def label(segment: Segment, is_novel: bool, verdict: Verdict = Verdict.RIGHT) -> str:
    """Return the text on a segment: its name in short lines, with a star if it is novel."""
    text = segment.name + "*" * is_novel
    if verdict is Verdict.LOOSE:
        text = f"({text})"
    return "\n".join(textwrap.wrap(text, 11, break_long_words=False, break_on_hyphens=False))


class _Places:
    """Positions of names: far inside their segments, without overlaps."""

    _CHARACTER, _LINE = 3.1, 7.2  # size of text, in pixels of a 128-pixel scene

    def __init__(self) -> None:
        self._taken: list[tuple[float, float, float, float]] = []  # x0, y0, x1, y1

    def find(self, mask: np.ndarray, text: str) -> tuple[float, float]:
        import cv2

        height, width = mask.shape
        scale = max(mask.shape) / 128
        lines = text.split("\n")
        half_x = scale * (self._CHARACTER * max(map(len, lines)) / 2 + 1)
        half_y = scale * (self._LINE * len(lines) / 2 + 1)
        # the image's border also counts as a border
        padded = np.pad(mask.astype(np.uint8), 1)
        inside = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        ys, xs = np.nonzero(mask)
        score = np.minimum(inside[ys, xs], half_x)
        x = np.clip(xs, half_x, max(half_x, width - half_x))
        y = np.clip(ys, half_y, max(half_y, height - half_y))
        for x0, y0, x1, y1 in self._taken:
            across = np.minimum(x + half_x, x1) - np.maximum(x - half_x, x0)
            down = np.minimum(y + half_y, y1) - np.maximum(y - half_y, y0)
            score = score - 4 * np.minimum(np.clip(across, 0, None), np.clip(down, 0, None))
        # among equally good positions, prefer the one closest to the middle of the segment
        score = score - 0.02 * np.hypot(x - xs.mean(), y - ys.mean()) / scale
        best = int(score.argmax())
        x, y = float(x[best]), float(y[best])
        self._taken.append((x - half_x, y - half_y, x + half_x, y + half_y))
        return x, y


def make_rows(args: argparse.Namespace, novel: Collection[str]) -> list[Row]:
    """Run the model and k-means on the scenes of the sheet.

    Raises:
        DatasetError: There are no scenes, or too few.
    """
    from rich.console import Console
    from rich.progress import track

    from odise_mm.analysis.clustering import alike, choose_maps
    from odise_mm.analysis.feature_maps import cluster_image
    from odise_mm.annotations.panoptic_io import read_coco_panoptic
    from odise_mm.apis import OpenVocabInferencer
    from odise_mm.config.finding import load_config
    from odise_mm.utils.image import read_image

    file = args.data_root / "annotations" / "panoptic_val2017.json"
    if not file.is_file():
        raise DatasetError(
            f"{file}: no such file; draw scenes with "
            f"python projects/toy_world/generate.py {args.data_root} --splits val --number 50"
        )
    truths = read_coco_panoptic(file)
    truths = [truths[index] for index in choose(truths, novel, args.rows)]
    cfg = load_config(args.config)
    options = {"model.test_cfg.semantic": False, "model.test_cfg.instance": False}
    inferencer = OpenVocabInferencer(cfg, args.checkpoint, args.device, cfg_options=options)
    features = [inferencer.model, clip_features(inferencer)]
    rows = []
    console = Console(stderr=True)
    for truth in track(truths, "sheet", console=console, disable=not console.is_terminal):
        image = read_image(args.data_root / "val2017" / truth.image_name)
        (found,) = inferencer(image, vocabulary=str(VOCABULARY))
        k = max(len(truth.segments), 2)  # at most eight
        clusters: list[np.ndarray] = []
        for parts in features:
            backbone = parts.backbone
            maps = choose_maps(backbone.strides, backbone.channels, wanted=STRIDE)
            labels = cluster_image(
                parts, inferencer.cfg, image, maps, k, type(backbone).__name__, inferencer.device
            )
            clusters.append(alike(labels, clusters[0]) if clusters else labels)
        rows.append(Row(image[..., ::-1], truth, found, clusters))
    return rows


def clip_features(inferencer: OpenVocabInferencer) -> nn.Module:
    """Return a module with the parts that k-means needs, whose backbone is the CLIP of the config.

    Raises:
        ConfigError: The config has no CLIP.
    """
    from torch import nn

    from odise_mm.models import OpenCLIPBackbone

    if inferencer.model.clip is None:
        raise ConfigError(
            f"{inferencer.cfg.filename}: `model.clip` is needed for the comparison, but not set"
        )
    parts = nn.Module()
    parts.backbone = OpenCLIPBackbone(clip=inferencer.model.clip)
    parts.captioner = None
    return parts.to(inferencer.device)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        default=str(WEIGHTS),
        help="trained weights (default: projects/toy_world/weights/odise_label.safetensors)",
    )
    parser.add_argument(
        "--config",
        default=str(CONFIG),
        help="config file, or its name in configs/ (default: odise_toy_label)",
    )
    parser.add_argument(
        "--data-root",
        type=Path,
        default=Path("data/toy_world"),
        metavar="DIR",
        help="folder with scenes of generate.py (default: %(default)s)",
    )
    parser.add_argument(
        "--rows", type=positive_int, default=4, help="number of scenes (default: 4)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if available)")
    parser.add_argument(
        "--out",
        type=image_file,
        default=Path("work_dirs/toy_world_sheet.png"),
        metavar="FILE",
        help="image to write, .png or .jpg (default: %(default)s)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with one_line_errors():
        inputs = InputFiles(args.checkpoint, args.config, VOCABULARY)
        inputs.add_below(args.data_root)
        check_outputs([args.out], inputs)
        novel = {str(name) for name in names_of("novel")}
        rows = make_rows(args, novel)
        figure = draw(rows, novel)
        write_figure(args.out, figure, dpi=150)
        for kind, (right, total) in count(rows, novel).items():
            print(f"{kind} things of the sheet: {right} of {total} found with the right name")
        print(f"wrote {printable(args.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
