"""Scores of single images in a test run, the worst images, and the confusion of classes."""

from __future__ import annotations

import csv
import heapq
import io
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmdet.structures import DetDataSample
from mmengine.dist import all_gather_object, broadcast_object_list, gather_object, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from PIL import Image, ImageDraw

from odise_mm.annotations.ground_truth import read_panoptic_truth, read_semantic_truth
from odise_mm.annotations.label_maps import IGNORED
from odise_mm.engine.loops import unwrapped
from odise_mm.errors import OdiseError, OutputError
from odise_mm.evaluation.base import to_numpy
from odise_mm.evaluation.confusion import (
    Confusion,
    add_panoptic,
    add_semantic,
    confused_pairs,
    suggest_synonyms,
)
from odise_mm.evaluation.panoptic_quality import match_segments
from odise_mm.registry import HOOKS
from odise_mm.structures import Segment, SegmentationResult
from odise_mm.utils.display import printable
from odise_mm.utils.files import replacing, write_json, write_text
from odise_mm.utils.image import read_image
from odise_mm.utils.outputs import check_folder, is_ours, stem_of, write_image
from odise_mm.utils.settings import check_whole
from odise_mm.visualization import draw_panoptic
from odise_mm.visualization.confusion import confusion_figure
from odise_mm.visualization.text import font_for

_COUNTS = ("images", "segments", "found segments")
_NOTHING = "(nothing)"
_PANEL = 512  # images of less than half of this width are enlarged in the sheets of the worst


@dataclass(frozen=True)
class ImageScore:
    """Scores of one image, in percent."""

    index: int
    """Its index in the dataset."""
    image: str
    """Path of the image."""
    score: float
    """PQ of the image, or mIoU for datasets without panoptic ground truth: the mean over the
    classes that are annotated or found. NaN if there are none."""
    matched: int | None
    """Number of annotated segments that are found; None without panoptic ground truth."""
    missed: int | None
    """Number of annotated segments that are not found."""
    wrong: int | None
    """Number of found segments that match none."""


@dataclass
class _Kept:
    """One of the worst images. The maps are compressed."""

    score: ImageScore
    shape: tuple[int, int]
    truth: bytes
    truth_segments: list[Segment]
    found: bytes
    found_segments: list[Segment]
    exif: bool


@HOOKS.register_module()
class ImageScoresHook(Hook):
    """Write the scores of every image, the worst images and the confusion of classes.

    ``folder/SET`` gets

    - ``classes.csv``: one row per class, with counts and all metrics;
    - ``images.csv`` and ``images.json``: one row per image, the worst first;
    - ``worst/001_NAME.jpg``, ...: image, ground truth and result beside each other;
    - ``confusions.csv``: pairs of classes that are confused, most segments first;
    - ``confusion_pixels.csv``, ``confusion_segments.csv``: the whole matrices, and ``.png`` figures
      of them;
    - ``suggestions.txt``: classes that may be synonyms.

    The scores need panoptic or semantic ground truth. Test sets with neither are left out, and the
    log says so. The files do not depend on the number of processes.

    Args:
        folder: output folder, created if missing.
        worst: number of images in ``worst/``.

    Raises:
        ConfigError: ``worst`` is not a whole number.
    """

    priority = "LOWEST"  # metrics are logged before

    def __init__(self, folder: str | os.PathLike[str], worst: int = 10) -> None:
        check_whole("worst", worst, 0)
        self.folder = Path(folder)
        self.worst = worst
        self.set_name = ""
        """Name of the current test set, which is also the name of its output folder."""
        self._task: str | None = None

    def check(self, set_name: str) -> None:
        """Check that files can be written, before a long evaluation starts.

        Raises:
            OutputError: the folder cannot be created or written to.
        """
        check_folder(self.folder / set_name)

    def before_test_epoch(self, runner: Runner) -> None:
        """Prepare for a test set, and let the model make the results that the scores need."""
        model = unwrapped(runner.model)
        self._vocabulary = model.vocabulary
        self._scores: list[ImageScore] = []
        self._heap: list[tuple[float, int, _Kept]] = []
        self._failure = ""  # why the scores of this set were stopped
        self._confusion = Confusion.zeros(len(self._vocabulary))
        self._counts = np.zeros((len(_COUNTS), len(self._vocabulary)), np.int64)
        dataset = runner.test_loop.dataloader.dataset
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        self._index: dict[str, list[int]] = {}
        for index, info in enumerate(infos):  # a dataset may repeat images
            self._index.setdefault(info["img_path"], []).append(index)
        self._exif = {info["img_path"]: info.get("exif", True) for info in infos}
        keys = {key for info in infos[:1] for key in info}
        self._task = None
        if {"seg_map_path", "segments_info"} <= keys:
            self._task = "panoptic"
        elif "sem_seg_path" in keys:
            self._task = "semantic"
        if self._task is None:
            print_log(
                f"{self.set_name}: no scores of single images, because the dataset has neither "
                "panoptic nor semantic ground truth",
                logger="current",
            )
        else:
            model.test_cfg = {**model.test_cfg, self._task: True}

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[DetDataSample] | None = None,
    ) -> None:
        """Score the images of a batch."""
        if self._task is None:
            return
        for output in outputs or ():
            sample = output.to_dict()
            index = self._index[sample["img_path"]].pop(0)
            add = self._add_panoptic if self._task == "panoptic" else self._add_semantic
            if self._failure:
                continue
            try:
                add(index, sample)
            except (OdiseError, OSError, ValueError, MemoryError) as err:
                if batch_idx == 0:  # nothing is lost yet
                    raise
                self._failure = f"{printable(sample['img_path'])} has no scores ({err})"
                runner.logger.error(f"{self._failure}; the test continues without these scores")

    def _add_panoptic(self, index: int, sample: Mapping[str, Any]) -> None:
        num_classes = len(self._vocabulary)
        found = sample["pred_panoptic_seg"]
        ids = to_numpy(found["sem_seg"])[0]
        infos = found["segments_info"]
        labels = {int(info["id"]): int(info["category_id"]) for info in infos}
        truth = read_panoptic_truth(sample, num_classes)
        counts = match_segments(truth.ids, truth.segments, ids, labels, num_classes)
        add_panoptic(self._confusion, truth, ids, labels)
        weight = counts.tp + 0.5 * counts.fp + 0.5 * counts.fn
        occurs = weight > 0
        pq = 100 * float((counts.iou[occurs] / weight[occurs]).mean()) if occurs.any() else math.nan
        segments_of = [segment.label for segment in truth.segments if not segment.is_crowd]
        for row, labels_of in enumerate((set(segments_of), segments_of, labels.values())):
            np.add.at(self._counts[row], list(labels_of), 1)
        score = ImageScore(
            index,
            str(sample["img_path"]),
            pq,
            int(counts.tp.sum()),
            int(counts.fn.sum()),
            int(counts.fp.sum()),
        )
        names = self._vocabulary.names
        segments = [
            Segment(s.id, s.label, names[s.label], 1.0, pixels, s.is_thing)
            for s, pixels in zip(truth.segments, truth.pixels, strict=True)
        ]
        results = [Segment.from_info(info, names, ids) for info in infos]
        self._keep(score, truth.ids, segments, ids, results)

    def _add_semantic(self, index: int, sample: Mapping[str, Any]) -> None:
        labels = to_numpy(sample["pred_sem_seg"]["sem_seg"])[0]
        truth, _ = read_semantic_truth(sample, len(self._vocabulary))
        one = Confusion.zeros(len(self._vocabulary))
        add_semantic(one, truth, labels)
        self._confusion.add(one)
        self._counts[0] += one.pixels.sum(axis=1)[:-1] > 0
        both = np.diag(one.pixels)[:-1]
        union = (one.pixels.sum(axis=0) + one.pixels.sum(axis=1))[:-1] - both
        occurs = union > 0
        iou = 100 * float((both[occurs] / union[occurs]).mean()) if occurs.any() else math.nan
        score = ImageScore(index, str(sample["img_path"]), iou, None, None, None)
        ignored = truth == IGNORED
        maps = [np.where(ignored, 0, truth.astype(np.int64) + 1), labels.astype(np.int64) + 1]
        (truth_ids, truth_segments), (ids, segments) = (self._as_segments(m) for m in maps)
        self._keep(score, truth_ids, truth_segments, ids, segments)

    def _as_segments(self, ids: np.ndarray) -> tuple[np.ndarray, list[Segment]]:
        names, is_thing = self._vocabulary.names, self._vocabulary.is_thing
        values, counts = np.unique(ids[ids > 0], return_counts=True)
        return ids, [
            Segment(value, value - 1, names[value - 1], 1.0, count, is_thing[value - 1])
            for value, count in zip(values.tolist(), counts.tolist(), strict=True)
        ]

    def _keep(
        self,
        score: ImageScore,
        truth: np.ndarray,
        truth_segments: list[Segment],
        found: np.ndarray,
        found_segments: list[Segment],
    ) -> None:
        """Store the score, and the maps if the image is one of the worst so far."""
        self._scores.append(score)
        if not self.worst or math.isnan(score.score):
            return
        rank = (-score.score, -score.index)  # the smallest entry of the heap is the best image
        if len(self._heap) == self.worst and rank < self._heap[0][:2]:
            return
        kept = _Kept(
            score,
            (found.shape[0], found.shape[1]),
            zlib.compress(truth.astype(np.int32).tobytes(), 1),
            truth_segments,
            zlib.compress(found.astype(np.int32).tobytes(), 1),
            found_segments,
            self._exif[score.image],
        )
        heapq.heappush(self._heap, (*rank, kept))
        if len(self._heap) > self.worst:
            heapq.heappop(self._heap)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the files of a test set.

        Raises:
            OutputError: an image could not be scored, or the files cannot be written; raised in
                all processes.
        """
        if self._task is None:
            return
        failure = next(filter(None, all_gather_object(self._failure)), None)
        if failure is not None:
            raise OutputError(failure)
        kept = [entry[2] for entry in self._heap]
        parts = gather_object((self._scores, kept, self._confusion, self._counts))
        outcome: list[str] = [""]
        if is_main_process():
            try:
                self._write(parts or [])
            except (OSError, OutputError) as err:
                outcome = [f"{printable(self.folder)}: cannot be written ({err})"]
        broadcast_object_list(outcome)
        if outcome[0]:
            raise OutputError(outcome[0])

    def write_classes(
        self, is_thing: Mapping[str, bool], per_class: Mapping[str, Mapping[str, Mapping]]
    ) -> None:
        """Write ``classes.csv``, in the main process.

        Args:
            is_thing: whether each class of the set is a thing, in the order of the vocabulary.
            per_class: prefix of a metric -> class -> name -> percent.

        Raises:
            OSError: the file cannot be written.
        """
        if self._task is None:
            return
        columns = [
            (prefix, key)
            for prefix, classes in per_class.items()
            for key in dict.fromkeys(key for values in classes.values() for key in values)
        ]
        rows = [["class", "kind", *_COUNTS, *("/".join(column) for column in columns)]]
        for index, (name, thing) in enumerate(is_thing.items()):
            row = [name, "thing" if thing else "stuff", *self._counts[:, index].tolist()]
            for prefix, key in columns:
                value = per_class[prefix].get(name, {}).get(key, math.nan)
                row.append(repr(float(value)) if math.isfinite(value) else "")
            rows.append(row)
        _write_csv(self.folder / self.set_name / "classes.csv", rows)

    def _write(self, parts: Sequence[tuple]) -> None:
        """Write the files of a set from what all processes collected."""
        folder = self.folder / self.set_name
        self._counts = sum(part[3] for part in parts)
        scores = sorted(
            (score for part in parts for score in part[0]),
            key=lambda s: (math.isnan(s.score), s.score if s.score == s.score else 0.0, s.index),
        )
        write_json(folder / "images.json", [_finite(asdict(score)) for score in scores], indent=1)
        name = "PQ" if self._task == "panoptic" else "mIoU"
        rows: list[list[Any]] = [["image", name, "matched", "missed", "wrong"]]
        for s in scores:
            value = "" if math.isnan(s.score) else repr(s.score)
            rows.append([s.image, value, s.matched, s.missed, s.wrong])
        _write_csv(folder / "images.csv", rows)
        confusion = Confusion.zeros(len(self._vocabulary))
        for part in parts:
            confusion.add(part[2])
        self._write_confusion(folder, confusion)
        worst = sorted(
            (kept for part in parts for kept in part[1]),
            key=lambda k: (k.score.score, k.score.index),
        )
        for old in (folder / "worst").glob("[0-9][0-9][0-9]*_*"):
            if is_ours(old):
                old.unlink()
        for number, kept in enumerate(worst[: self.worst], start=1):
            stem = f"{number:03d}_{stem_of(kept.score.image)}"
            write_image(folder / "worst", stem, self._sheet(kept, name))

    def _write_confusion(self, folder: Path, confusion: Confusion) -> None:
        names = [*self._vocabulary.names, _NOTHING]
        pairs: list[list[Any]] = [
            ["annotated", "found", "segments", "share", "pixels", "share of pixels"]
        ]
        for pair in confused_pairs(confusion):
            share = "" if math.isnan(pair.segment_share) else f"{pair.segment_share:.4f}"
            row = [names[pair.truth], names[pair.found], pair.segments, share]
            pairs.append([*row, pair.pixels, f"{pair.pixel_share:.4f}"])
        _write_csv(folder / "confusions.csv", pairs)
        kinds = self._vocabulary.is_thing
        lines = list(suggest_synonyms(confusion, self._vocabulary.names, kinds))
        write_text(folder / "suggestions.txt", "".join(f"{line}\n" for line in lines))
        for what, matrix in (("pixels", confusion.pixels), ("segments", confusion.segments)):
            if not matrix.any():
                continue
            table = [["annotated \\ found", *names]]
            table += [[n, *row] for n, row in zip(names, matrix.tolist(), strict=True)]
            _write_csv(folder / f"confusion_{what}.csv", table)
            figure = confusion_figure(matrix, self._vocabulary.names, what)
            with replacing(folder / f"confusion_{what}.png") as path:
                figure.savefig(path, format="png", dpi=110)

    def _sheet(self, kept: _Kept, name: str) -> np.ndarray:
        """Draw image, ground truth and result beside each other, (H, W, 3) uint8 BGR."""
        image = read_image(kept.score.image, exif=kept.exif, max_pixels=None)
        height, width = kept.shape
        scale = max(1, _PANEL // width)  # small images get room for names
        if scale > 1:
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        panels = [image]
        for data, segments in (
            (kept.truth, kept.truth_segments),
            (kept.found, kept.found_segments),
        ):
            ids = np.frombuffer(zlib.decompress(data), np.int32).reshape(kept.shape)
            result = SegmentationResult(
                height=height * scale,
                width=width * scale,
                panoptic=ids.repeat(scale, 0).repeat(scale, 1),
                segments=segments,
                class_names=self._vocabulary.names,
            )
            panels.append(draw_panoptic(image, result, scores=data is kept.found))
        return _beside(panels, self._titles(kept.score, name))

    def _titles(self, score: ImageScore, name: str) -> list[str]:
        found = f"result: {name} {score.score:.1f}"
        if score.matched is not None:
            found += f", {score.matched} right, {score.missed} missed, {score.wrong} wrong"
        return [printable(os.path.basename(score.image)), "ground truth", found]


def _beside(panels: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Join images of one size in a row, with a title above each."""
    height, width = panels[0].shape[:2]
    size = max(12, round(0.022 * width))
    gap, top = max(4, size // 3), 2 * size
    canvas = Image.new("RGB", (3 * width + 2 * gap, height + top), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        left = index * (width + gap)
        canvas.paste(Image.fromarray(np.ascontiguousarray(panel[..., ::-1])), (left, top))
        font = font_for(title, size)
        while title and draw.textlength(title, font=font) > width:
            title = title[:-1]
        draw.text((left, top // 2), title, font=font, anchor="lm", fill="black")
    return np.ascontiguousarray(np.asarray(canvas)[..., ::-1])


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    write_text(path, stream.getvalue())


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """Replace NaN, which JSON does not have, by None."""
    return {key: None if value != value else value for key, value in row.items()}
