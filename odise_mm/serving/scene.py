"""What the web page shows of one image: its views, regions, predictions and files.

Nothing here knows about the web. :mod:`odise_mm.serving.page` lays it out.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from odise_mm.errors import ConfigError, OutputError
from odise_mm.io import FORMATS
from odise_mm.io.conversion import MARK, write_labels
from odise_mm.models import Region, RegionMemory
from odise_mm.models.segmentors.queries import KeptQueries
from odise_mm.structures import REASONS, Evidence, Segment, SegmentationResult
from odise_mm.structures.geometry import box_of, parts_of
from odise_mm.utils.display import printable
from odise_mm.utils.thumbnails import thumbnail
from odise_mm.vocabulary import Vocabulary

if TYPE_CHECKING:
    from odise_mm.apis import OpenVocabInferencer

VIEWS = ("panoptic", "semantic", "instances", "predictions")
"""Views of a scene; "predictions" names the regions as one classifier would."""
ENSEMBLE = "ensemble"
"""Name of the ensemble among the classifiers."""
DROPPED = "dropped mask"
"""Name of masks that became no regions."""
UNKNOWN = "(none)"
"""Name of regions that a memory recognizes as none of the classes."""
DRAWING = "drawing"
"""Name of the drawn image among the formats of files."""
MAX_INSTANCES = 30
"""Maximum number of instances in their view, best first."""
MIN_INSTANCE_SCORE = 0.1
"""Instances with lower scores are not in their view: most of them are masks of nothing."""
MAX_SIDE = 1600
"""Drawings of larger images are reduced to this number of pixels."""
_MIN_SIDE = 700  # drawings of smaller images are enlarged, so that there is room for names
_MAX_ZOOM = 8


@dataclass(frozen=True)
class View:
    """One view of a scene: a drawing and its regions.

    Attributes:
        ids: (h, w) int32, the region of each pixel, 0 for none. Large images are reduced.
        regions: the regions, largest first; instances best first.
        drawing: (H', W', 3) uint8 RGB. The image is in the top left corner, a legend beside it.
        zoom: pixels of the drawing per pixel of ``ids``.
        share: fraction of the image that each region covers, by id.
        scored: whether the regions have scores.
        note: what to know about this view, one sentence; may be empty.
        masks: (h, w) bool of regions that others cover in part, by id.
        dropped: why masks that became no regions were dropped, by id, which is negative. They are
            the last of ``regions``.
    """

    ids: np.ndarray
    regions: tuple[Segment, ...]
    drawing: np.ndarray
    zoom: int
    share: dict[int, float]
    scored: bool = True
    note: str = ""
    masks: Mapping[int, np.ndarray] = field(default_factory=dict)
    dropped: Mapping[int, str] = field(default_factory=dict)

    def region_at(self, x: float, y: float) -> Segment | None:
        """Return the region at a pixel of the drawing; None outside of regions."""
        place = self.pixel(x, y)
        return None if place is None else self.region(int(self.ids[place]))

    def pixel(self, x: float, y: float) -> tuple[int, int] | None:
        """Return row and column in ``ids`` of a pixel of the drawing; None outside of the image."""
        row, column = int(y // self.zoom), int(x // self.zoom)
        height, width = self.ids.shape
        return (row, column) if 0 <= row < height and 0 <= column < width else None

    def region(self, number: int | None) -> Segment | None:
        """Return the region with an id; None if there is none."""
        return next((region for region in self.regions if region.id == number), None)

    def highlighted(self, number: int | None) -> np.ndarray:
        """Return the drawing with everything but a region darkened; None: the drawing itself."""
        if number is None or self.region(number) is None:
            return self.drawing
        mask = self.masks.get(number, self.ids == number).astype(np.float32)
        size = (mask.shape[1] * self.zoom, mask.shape[0] * self.zoom)
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR)  # as smooth as the drawing
        inside = (mask >= 0.5).astype(np.uint8)
        drawing = self.drawing.copy()
        part = drawing[: size[1], : size[0]]
        part[inside == 0] = part[inside == 0] // 5 * 2
        outlines, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        width = max(2, round(max(size) / 400))
        cv2.drawContours(part, outlines, -1, (255, 255, 255), width)
        return drawing

    def label(self, region: Segment) -> str:
        """Return a short line about a region: name, score and share of the image."""
        score = f" {region.score:.2f}" if self.scored and region.id not in self.dropped else ""
        return f"{printable(region.name, limit=40)}{score}, {percent(self.share[region.id])}"

    def labels(self) -> list[tuple[str, int]]:
        """Return the label and the id of every region. Equal labels are numbered."""
        shown: list[tuple[str, int]] = []
        count: dict[str, int] = {}
        for region in self.regions:
            label = self.label(region)
            count[label] = count.get(label, 0) + 1
            shown.append((f"{label} ({count[label]})" * (count[label] > 1) or label, region.id))
        return shown

    def describe(self, region: Segment) -> tuple[str, str]:
        """Return the name of a region, and its kind, score and area as text."""
        kind = self.dropped.get(region.id) or ("thing" if region.is_thing else "stuff")
        score = f", score {region.score:.3f}" if self.scored else ""
        area = f"{region.area:,} pixels, {percent(self.share[region.id])} of the image"
        return printable(region.name, limit=80), f"{kind}{score}, {area}"


@dataclass(frozen=True)
class Scene:
    """A segmented image.

    Attributes:
        name: name of the image file, without folders.
        image: (H, W, 3) uint8 BGR.
        vocabulary: the classes.
        result: the panoptic result, with ``queries``.
    """

    name: str
    image: np.ndarray
    vocabulary: Vocabulary
    result: SegmentationResult

    @property
    def classifiers(self) -> tuple[str, ...]:
        """The ensemble and each classifier; only the ensemble if there is one classifier.

        A memory without examples has nothing to say, and is left out.
        """
        queries = self.result.require_queries()
        classifiers = queries.classifiers
        if isinstance(queries, KeptQueries) and not queries.memory:
            classifiers = tuple(name for name in classifiers if name != queries.memory_name)
        return (ENSEMBLE, *classifiers) if len(classifiers) > 1 else (ENSEMBLE,)

    def with_settings(self, **settings: Any) -> Scene:
        """Return the scene with other settings, without running the model.

        Raises:
            ConfigError: a value is not allowed.
        """
        return replace(self, result=self.result.with_settings(**settings))

    def compared(self, memory: RegionMemory, taught: Vocabulary | None) -> Scene:
        """Return the scene with its masks compared with examples, without running the model.

        Args:
            memory: the examples, of the same model.
            taught: names to add to those of the scene when it was segmented.
        """
        result = self.result.with_memory(memory, taught)
        return replace(self, result=result, vocabulary=_kept(result).vocabulary)

    def examples_like(self, memory: RegionMemory, number: int) -> list[Region]:
        """Return the examples that are the same region as one of the panoptic view."""
        return _kept(self.result).examples_like(memory, self._query(number))

    def teach(self, memory: RegionMemory, number: int, name: str, is_thing: bool) -> Region:
        """Add a region of the panoptic view to a memory as an example.

        Args:
            memory: the memory; the scene does not change.
            number: id of the region.
            name: class name.
            is_thing: whether the class is a thing.

        Raises:
            ConfigError: there is no such region, or it is in the memory already.
        """
        query = self._query(number)
        mask = self.result.require_panoptic() == number  # other regions took pixels of the mask
        if number < 0:
            mask = parts_of(_kept(self.result).mask(query) >= 0.5)[0]  # without specks
        region = _kept(self.result).teach(
            memory, query, name, self.name, box_of(mask), is_thing, thumbnail(self.image, mask)
        )
        if region is None:
            raise ConfigError(f"the region is an example of {printable(name)!r} already")
        return region

    def same_region(self, number: int, other: Scene) -> int | None:
        """Return the id of a region in another result of the same masks; None if it is gone."""
        fates = other.result.require_queries().fates
        return fates[self._query(number)].segment or None

    def _query(self, number: int) -> int:
        """Return the index of the largest mask of a region."""
        queries = self.result.require_queries()
        if number < 0 and -number <= len(queries):
            return -number - 1
        segment = next((each for each in self.result.segments if each.id == number), None)
        if segment is None:
            raise ConfigError("There is no such region any more.")
        return max(queries.of(segment), key=lambda query: queries.fates[query].pixels)

    def view(self, kind: str, classifier: str = ENSEMBLE) -> View:
        """Return a view.

        Args:
            kind: one of ``VIEWS``.
            classifier: for "predictions", who names the regions.
        """
        if kind == "panoptic":
            return self._drawn(self._by_area(self.result.segments))
        if kind == "semantic":
            return self._semantic()
        if kind == "instances":
            return self._instances()
        if kind == "predictions":
            return self._predictions(classifier)
        raise ValueError(f"kind={kind!r} must be one of {', '.join(VIEWS)}")

    def with_dropped(self, view: View, x: float, y: float) -> tuple[View, int | None]:
        """Add the most certain mask at a pixel without a region to the panoptic view.

        Args:
            view: the panoptic view, or that of predictions.
            x: column in its drawing.
            y: row in its drawing.

        Returns:
            The view, and the id of the mask in it, which is negative; None if there is no mask.
        """
        place, queries = view.pixel(x, y), self.result.require_queries()
        if place is None or not len(queries):
            return view, None
        masks = queries.small_masks()
        row, column = (
            int((at + 0.5) * side / full)
            for at, side, full in zip(place, masks.shape[1:], view.ids.shape, strict=True)
        )
        inside = masks >= 0.5
        certain = (masks * inside).sum((1, 2)) / np.maximum(inside.sum((1, 2)), 1)
        certain *= masks[:, row, column] * inside[:, row, column]
        query = int(certain.argmax())
        mask = queries.mask(query) >= 0.5
        if not certain[query] or queries.fates[query].segment or not mask.any():
            return view, None
        number, label = -query - 1, int(queries.probabilities()[query, :-1].argmax())
        score = float(queries.probabilities()[query, label])
        thing = self.vocabulary.is_thing[label]
        added = Segment(number, label, DROPPED, score, int(mask.sum()), thing)
        kept = tuple(region for region in view.regions if region.id != number)
        return replace(
            view,
            regions=(*kept, added),
            share={**view.share, number: float(mask.mean())},
            masks={**view.masks, number: _resized(mask, view.ids.shape)},
            dropped={**view.dropped, number: REASONS[queries.fates[query].reason]},
        ), number

    def predictions(self, number: int, count: int = 5) -> dict[str, list[tuple[str, float]]]:
        """Return what each classifier predicts for a region of the panoptic view.

        Args:
            number: id of the region.
            count: number of names.

        Returns:
            The most probable names and their probabilities, best first, by classifier; empty if
            there is no such region.
        """
        segment = next((s for s in self.result.segments if s.id == number), None)
        if segment is None and number >= 0:
            return {}
        found = {}
        for classifier in self.classifiers:
            name = _or_none(classifier)
            if segment is not None:
                found[classifier] = self.result.top(segment, count, name)
            else:
                values = _kept(self.result).probabilities(name)[self._query(number)]
                best = np.argsort(-values[:-1], kind="stable")[:count]
                names = self.vocabulary.names
                found[classifier] = [(names[label], float(values[label])) for label in best]
        return found

    def evidence(self, number: int) -> tuple[Evidence, ...]:
        """Return the examples that a region of the panoptic view is most similar to."""
        if number < 0:
            return tuple(_kept(self.result).evidence(self._query(number)))
        segment = next((s for s in self.result.segments if s.id == number), None)
        return () if segment is None else segment.evidence

    def write(self, form: str, folder: str | os.PathLike) -> Path:
        """Write the panoptic result to a file.

        Args:
            form: "drawing" for the drawn image, or one of :func:`file_formats`.
            folder: empty folder for the file.

        Returns:
            A PNG image, or a ZIP archive of the files of the format.

        Raises:
            ConfigError: the format is unknown, or the result does not fit into it. The message
                does not contain the folder.
        """
        folder = Path(folder)
        stem = Path(self.name).stem
        if form == DRAWING:
            path = folder / f"{stem}_{form}.png"
            cv2.imwrite(os.fspath(path), self._drawn(self.result).drawing[..., ::-1])
            return path
        if form not in file_formats():
            raise ConfigError(f"unknown format {printable(form, limit=40)!r}")
        named = replace(self.result, image_path=self.name)
        work = folder / "work"
        try:
            (written,) = write_labels([named], self.vocabulary, [form], work)
        except OutputError as err:
            raise ConfigError(str(err).replace(f"{work}{os.sep}", "")) from err
        (written / MARK).unlink()
        archive = shutil.make_archive(os.fspath(folder / f"{stem}_{form}"), "zip", written)
        shutil.rmtree(work)
        return Path(archive)

    def _by_area(self, segments: Sequence[Segment], **fields: Any) -> SegmentationResult:
        """Return the result with other segments, largest first."""
        segments = sorted(segments, key=lambda segment: -segment.area)
        return replace(self.result, segments=segments, **fields)

    def _drawn(self, result: SegmentationResult, scored: bool = True, note: str = "") -> View:
        """Draw a result whose panoptic map has the size of the image."""
        from odise_mm.visualization import draw_panoptic

        ids, image = result.require_panoptic(), self.image
        share = {segment.id: result.share(segment) for segment in result.segments}
        longest = max(ids.shape)
        if longest > MAX_SIDE:
            height, width = (max(1, round(side * MAX_SIDE / longest)) for side in ids.shape)
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            ids = _resized(ids, (height, width))
        zoom = min(_MAX_ZOOM, max(1, math.ceil(_MIN_SIDE / max(ids.shape))))
        drawing = draw_panoptic(
            image, replace(result, panoptic=ids), legend=True, scores=scored, zoom=zoom
        )
        return View(ids, tuple(result.segments), drawing[..., ::-1], zoom, share, scored, note)

    def _semantic(self) -> View:
        made = self.result.with_settings(semantic=True, panoptic=False, instance=False)
        assert made.semantic is not None, "it was asked for"
        labels, areas = np.unique(made.semantic, return_counts=True)
        things, names = self.vocabulary.is_thing, self.vocabulary.names
        segments = [
            Segment(int(label) + 1, int(label), names[label], 0.0, int(area), things[label])
            for label, area in zip(labels, areas, strict=True)
        ]
        note = "Every pixel has a class; objects of a class are not separated."
        return self._drawn(self._by_area(segments, panoptic=made.semantic + 1), False, note)

    def _instances(self) -> View:
        made = self.result.with_settings(semantic=False, panoptic=False, instance=True)
        found, queries = made.instances, self.result.require_queries()
        assert found is not None, "they were asked for"
        least = max(MIN_INSTANCE_SCORE, queries.settings["score_threshold"])
        found = found[found.scores > least][:MAX_INSTANCES]
        ids = np.zeros(self.image.shape[:2], np.int32)
        masks, segments = found.masks, []
        for index in reversed(range(len(found))):  # the best one is on top
            ids[masks[index]] = index + 1
        for index, (label, score) in enumerate(zip(found.labels, found.scores, strict=True)):
            name, area = self.vocabulary.names[label], int(masks[index].sum())
            segments.append(Segment(index + 1, int(label), name, float(score), area, True))
        note = f"Things with a score above {least:g}, at most {MAX_INSTANCES}, the best on top."
        view = self._drawn(replace(self.result, panoptic=ids, segments=segments), note=note)
        reduced = (_resized(mask, view.ids.shape) for mask in masks)
        return replace(view, masks=dict(enumerate(reduced, start=1)))

    def _predictions(self, classifier: str) -> View:
        segments = []
        for segment in self.result.segments:
            ((name, score),) = self.result.top(segment, 1, _or_none(classifier))
            label = self.vocabulary.names.index(name)
            name = name if round(score, 2) else UNKNOWN
            segments.append(replace(segment, label=label, name=name, score=score))
        note = "The regions of the panoptic view, named by one classifier alone."
        if classifier == ENSEMBLE:
            note = "The regions of the panoptic view, named by all classifiers together."
        return self._drawn(self._by_area(segments), note=note)


def segment_scene(
    inferencer: OpenVocabInferencer,
    image: np.ndarray,
    name: str,
    vocabulary: Vocabulary,
    **settings: Any,
) -> Scene:
    """Segment an image.

    Args:
        inferencer: the model.
        image: (H, W, 3) uint8 BGR.
        name: name of the image file, which may come from a stranger.
        vocabulary: the classes.
        settings: settings of the result.

    Raises:
        DeviceMemoryError, ConfigError, FloatingPointError: see the inferencer.
    """
    (result,) = inferencer(
        image,
        vocabulary=vocabulary,
        progress=False,
        **{
            **settings,
            "keep_queries": True,
            "panoptic": True,
            "semantic": False,
            "instance": False,
        },
    )
    return Scene(safe_name(name), image, vocabulary, result)


def safe_name(name: str) -> str:
    """Return a file name from a stranger without folders and unusual signs, "image" if empty."""
    plain = re.sub(r"[^\w.() -]", "_", re.split(r"[/\\]", name)[-1]).strip(". ")
    return printable(plain, limit=80) or "image"


def percent(share: float) -> str:
    """Return a fraction of the image as text: ``12 %``, ``3.4 %`` or ``<0.1 %``."""
    if share < 0.001:
        return "<0.1 %"
    return f"{100 * share:.{0 if share >= 0.1 else 1}f} %"


def file_formats() -> list[str]:
    """Return the formats of the writers whose packages are installed."""
    found = []
    for name, writer in FORMATS.items():
        try:
            writer.check()
        except OutputError:
            continue
        found.append(name)
    return sorted(found)


def _resized(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resize ids (int32) or a mask (bool) to (h, w)."""
    if values.shape == shape:
        return values
    kind = values.dtype
    values = values.astype(np.uint8) if kind == np.bool_ else values
    resized = cv2.resize(values, shape[::-1], interpolation=cv2.INTER_NEAREST)
    return resized.astype(kind, copy=False)


def _kept(result: SegmentationResult) -> KeptQueries:
    queries = result.require_queries()
    assert isinstance(queries, KeptQueries), "the model made the masks"
    return queries


def _or_none(classifier: str) -> str | None:
    return None if classifier == ENSEMBLE else classifier
