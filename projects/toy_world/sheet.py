#!/usr/bin/env python
"""A sheet of held-out scenes: image, truth, what a model finds, and k-means of two features.

The scenes are the first of split `val` that have three things or more, a novel one among them.
Segments are shown in the mean color of their pixels. Names that no mask of the training had are
marked with a star. In the prediction a name on red is wrong, and one in brackets on gray belongs to
a region that fits no true one (IoU of at most 0.5). The model chooses among all names of the world.

The k-means (k: the number of true segments) are those of the diffusion features that the model has
and of the last features of CLIP's image tower, of the same stride.

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
THINGS = 3  # at least so many in a scene of the sheet
STRIDE = 8  # of the features: the finest that CLIP has

_TITLES = ("image", "truth", "found", "k-means: diffusion", "k-means: CLIP")
_INK, _FAINT, _GREEN, _RED = "#1c1c1e", "#77777c", "#0b6e2d", "#b3141d"
_NOTE = (
    "Green*: novel, no mask of this name was seen in training.  Red: wrong name.  "
    "(Gray): fits no true region, IoU of at most 0.5.  k: number of true segments."
)


class Verdict(Enum):
    """What a found segment is worth; the first two fit a true one (IoU above 0.5)."""

    RIGHT = "right"
    WRONG = "wrong name"
    LOOSE = "fits no true region"


@dataclass(frozen=True)
class Row:
    """One scene of the sheet.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        truth, found: of (H, W).
        clusters: (H, W) int each, from 0.
    """

    image: np.ndarray
    truth: SegmentationResult
    found: SegmentationResult
    clusters: Sequence[np.ndarray]


def choose(truths: Sequence[SegmentationResult], novel: Collection[str], rows: int) -> list[int]:
    """Indices of the scenes for the sheet, by the rule of this module's docstring.

    Raises:
        DatasetError: there are fewer.
    """
    chosen = []
    for index, truth in enumerate(truths):
        things = [segment.name for segment in truth.segments if segment.is_thing]
        if len(things) >= THINGS and not novel.isdisjoint(things):
            chosen.append(index)
    if len(chosen) < rows:
        raise DatasetError(
            f"{len(chosen)} of {len(truths)} scenes have {THINGS} things and a novel one among "
            f"them: draw more scenes, or ask for fewer than {rows} rows (--rows)"
        )
    return chosen[:rows]


def judge(found: SegmentationResult, truth: SegmentationResult) -> dict[int, Verdict]:
    """Found segments' ids to what they are worth. Pixels without a true segment do not count."""
    known = truth.panoptic > 0
    verdicts = {}
    for segment in found.segments:
        mask = found.mask(segment) & known
        fitting = [s for s in truth.segments if _iou(mask, truth.mask(s)) > 0.5]  # one at most
        if not fitting:
            verdicts[segment.id] = Verdict.LOOSE
        else:
            same = fitting[0].name == segment.name
            verdicts[segment.id] = Verdict.RIGHT if same else Verdict.WRONG
    return verdicts


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / max((one | other).sum(), 1)


def count(rows: Sequence[Row], novel: Collection[str]) -> dict[str, tuple[int, int]]:
    """Of novel and of base things: how many were found and rightly named, and how many there are.

    At most one found segment fits a true one, so that none is counted twice.
    """
    counts = {}
    for kind, wanted in (("novel", True), ("base", False)):
        right = there = 0
        for row in rows:
            verdicts = judge(row.found, row.truth)
            things = [s for s in row.truth.segments if s.is_thing]
            there += sum((s.name in novel) == wanted for s in things)
            right += sum(
                s.is_thing and (s.name in novel) == wanted and verdicts[s.id] is Verdict.RIGHT
                for s in row.found.segments
            )
        counts[kind] = (right, there)
    return counts


def draw(rows: Sequence[Row], novel: Collection[str]) -> Figure:
    """The sheet: one row of panels for each scene."""
    from matplotlib.figure import Figure

    columns = len(_TITLES)
    figure = Figure(figsize=(2.2 * columns, 2.2 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, title in zip(axes[0], _TITLES, strict=True):
        axis.set_title(title, fontsize=9, color=_INK)
    for (picture, truth, found, *features), row in zip(axes, rows, strict=True):
        picture.imshow(row.image)
        draw_segments(truth, row.image, row.truth, novel)
        draw_segments(found, row.image, row.found, novel, judge(row.found, row.truth))
        for axis, labels in zip(features, row.clusters, strict=True):
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
    """Segments with their names; without verdicts all names are taken for right ones.

    What is in no segment is chequered.
    """
    y, x = np.indices(image.shape[:2]) // 4
    picture = np.where((x + y) % 2, 245, 215).astype(np.uint8)[..., None].repeat(3, -1)
    for segment in result.segments:
        mask = result.mask(segment)
        picture[mask] = image[mask].mean(axis=0)
    axis.imshow(picture)
    places = _Places()
    for segment in sorted(result.segments, key=lambda s: s.area):  # the small ones need their place
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
    """What is written on a segment: the name in short lines, a star if it is novel."""
    text = segment.name + "*" * is_novel
    if verdict is Verdict.LOOSE:
        text = f"({text})"
    return "\n".join(textwrap.wrap(text, 11, break_long_words=False, break_on_hyphens=False))


class _Places:
    """Where names go: as far inside of their segments as can be, not on each other."""

    _CHARACTER, _LINE = 3.1, 7.2  # of a label, in pixels of a scene of 128

    def __init__(self) -> None:
        self._taken: list[tuple[float, float, float, float]] = []  # x0, y0, x1, y1

    def find(self, mask: np.ndarray, text: str) -> tuple[float, float]:
        import cv2

        height, width = mask.shape
        scale = max(mask.shape) / 128
        lines = text.split("\n")
        half_x = scale * (self._CHARACTER * max(map(len, lines)) / 2 + 1)
        half_y = scale * (self._LINE * len(lines) / 2 + 1)
        # the image's border is one, too
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
        # of equally good places the one nearest the middle of the segment
        score = score - 0.02 * np.hypot(x - xs.mean(), y - ys.mean()) / scale
        best = int(score.argmax())
        x, y = float(x[best]), float(y[best])
        self._taken.append((x - half_x, y - half_y, x + half_x, y + half_y))
        return x, y


def make_rows(args: argparse.Namespace, novel: Collection[str]) -> list[Row]:
    """Run model and k-means on the scenes of the sheet."""
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
            f"there is no {file}; draw some scenes: "
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
        k = max(len(truth.segments), 2)  # eight at most
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
    """A model that sees through the image tower of the config's CLIP, as far as k-means needs it.

    Raises:
        ConfigError: there is none.
    """
    from torch import nn

    from odise_mm.models import OpenCLIPBackbone

    if inferencer.model.clip is None:
        raise ConfigError(f"{inferencer.cfg.filename}: has no `model.clip` to compare with")
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
        help="trained weights (default: those of projects/toy_world/weights/odise_label)",
    )
    parser.add_argument(
        "--config",
        default=str(CONFIG),
        help="config file or its name under configs/ (default: odise_toy_label)",
    )
    parser.add_argument(
        "--data-root",
        type=Path,
        default=Path("data/toy_world"),
        metavar="DIR",
        help="scenes, from generate.py (default: %(default)s)",
    )
    parser.add_argument("--rows", type=positive_int, default=4, help="scenes (default: 4)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    parser.add_argument(
        "--out",
        type=image_file,
        default=Path("work_dirs/toy_world_sheet.png"),
        metavar="FILE",
        help=".png or .jpg (default: %(default)s)",
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
        for kind, (right, there) in count(rows, novel).items():
            print(f"{kind} things of the sheet: {right} of {there} found and rightly named")
        print(f"wrote {printable(args.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
