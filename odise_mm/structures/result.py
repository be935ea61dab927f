"""Segmentation results: the named segments, semantic map and instances of one image.

The model writes its predictions into the fields of mmdet's ``DetDataSample``, where segments are
dictionaries (``segments_info``). This module converts between the two, and to mmdet's panoptic
maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from odise_mm.structures import conversions
from odise_mm.structures.geometry import Outline, box_of, outlines_of, parts_of
from odise_mm.structures.queries import Queries, ResultSettings

if TYPE_CHECKING:
    import fiftyone
    import supervision
    from matplotlib.axes import Axes
    from mmdet.structures import DetDataSample
    from mmengine.structures import PixelData
    from typing_extensions import Unpack

INSTANCE_OFFSET = 1000
"""mmdet's constant of the same name: pixels of its panoptic maps are class + 1000 x object. Defined
here because importing it from mmdet takes seconds."""
_ENCODING = f"class + {INSTANCE_OFFSET} x object"
_MAX_NUMBER = 2**24 - 1  # mmdet's metric writes the maps as PNG files with 24 bits per pixel


@dataclass(frozen=True)
class Evidence:
    """A named region of the model's memory that looks like a segment."""

    name: str
    similarity: float
    """Cosine of the embeddings."""
    image: str
    """Name of the image that it is from."""
    box: tuple[int, int, int, int] | None
    """Left, top, right, bottom in pixels of that image; None: the whole image."""
    region: int
    """Its id in the memory. In a memory that was read from a file, its place there, from 0."""
    picture: bytes | None = field(default=None, repr=False, compare=False)
    """A small JPEG image of it; None if the memory has none. Files of results do not have it."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for a JSON file, without the picture."""
        return {name: value for name, value in vars(self).items() if name != "picture"}


@dataclass(frozen=True)
class Segment:
    """One region of the panoptic map."""

    id: int
    """Its value in the panoptic map, from 1."""
    label: int
    """Index of its class in the vocabulary."""
    name: str
    """First synonym of its class."""
    score: float
    """0 to 1."""
    area: int
    """Pixels."""
    is_thing: bool
    track_id: int | None = None
    """Number of the object, or of the class of stuff, in a video, from 1; None in images."""
    evidence: tuple[Evidence, ...] = ()
    """The most similar regions of the model's memory, best first; empty without a memory."""

    @classmethod
    def from_info(
        cls, info: Mapping[str, Any], names: Sequence[str], ids: np.ndarray | None = None
    ) -> Segment:
        """Create a segment from an entry of a sample's ``segments_info``.

        Args:
            info: ``id``, ``category_id`` (class index), ``isthing``, and optionally
                ``category_name``, ``score`` (default 1) and ``area``.
            names: Class names by index.
            ids: (H, W), map in which the pixels are counted if ``info`` has no ``area``.
        """
        label = int(info["category_id"])
        return cls(
            id=int(info["id"]),
            label=label,
            name=str(info.get("category_name") or names[label]),
            score=float(info.get("score", 1.0)),
            area=int(info["area"] if "area" in info else (ids == info["id"]).sum()),
            is_thing=bool(info["isthing"]),
            evidence=tuple(Evidence(**one) for one in info.get("evidence", ())),
        )

    def to_info(self) -> dict[str, Any]:
        """Return the entry of ``segments_info`` that :meth:`from_info` reads."""
        return dict(
            id=self.id,
            category_id=self.label,
            category_name=self.name,
            isthing=self.is_thing,
            score=self.score,
            area=self.area,
            **self._evidence(),
        )

    def _evidence(self) -> dict[str, Any]:
        """Return the evidence for a JSON file; nothing if there is none."""
        return {"evidence": [one.to_dict() for one in self.evidence]} if self.evidence else {}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for a table or a JSON file, without the pictures of the evidence."""
        return {**vars(self), "evidence": [one.to_dict() for one in self.evidence]}

    def to_coco(self, category_id: int, mask: np.ndarray) -> dict[str, Any]:
        """Return the entry of ``segments_info`` for COCO's panoptic JSON files.

        Args:
            category_id: Category id of its class in the file.
            mask: (H, W) bool, with at least one pixel. The area and the box (x, y, width, height)
                are computed from it.
        """
        left, top, right, bottom = box_of(mask)
        return dict(
            id=int(self.id),
            category_id=int(category_id),
            iscrowd=0,
            bbox=[left, top, right - left, bottom - top],
            area=int(mask.sum()),
            score=round(float(self.score), 5),
            **self._evidence(),
        )


@dataclass(frozen=True, repr=False)
class Instances:
    """Scored masks, which may overlap, sorted by descending score.

    Masks are packed, 8 pixels per byte: 100 masks of 1024 x 1365 pixels take 17 MB instead of 140.
    """

    labels: np.ndarray
    """(N,) int64, class indices."""
    scores: np.ndarray
    """(N,) float32."""
    boxes: np.ndarray
    """(N, 4) float32, x1 y1 x2 y2 in pixels."""
    packed_masks: np.ndarray
    """(N, H, ceil(W / 8)) uint8."""
    width: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: int | slice | np.ndarray | Sequence[int]) -> Instances:
        """Return some of the instances, as in ``instances[instances.scores > 0.3]``.

        Args:
            chosen: an index, a slice, indices, or one bool per instance.
        """
        if isinstance(chosen, int | np.integer):
            chosen = np.array([range(len(self))[int(chosen)]])  # IndexError ends a loop
        elif not isinstance(chosen, slice):
            chosen = np.asarray(chosen)
            if chosen.size == 0 and chosen.dtype != np.bool_:
                chosen = chosen.astype(np.int64)
        return Instances(
            self.labels[chosen],
            self.scores[chosen],
            self.boxes[chosen],
            self.packed_masks[chosen],
            self.width,
        )

    def __repr__(self) -> str:
        best = f", best score {float(self.scores.max()):.2f}" if len(self) else ""
        return f"Instances({len(self)} masks{best})"

    @property
    def masks(self) -> np.ndarray:
        """(N, H, W) bool, unpacked on every access."""
        return np.unpackbits(self.packed_masks, axis=2, count=self.width).view(np.bool_)

    @classmethod
    def pack(
        cls, labels: np.ndarray, scores: np.ndarray, boxes: np.ndarray, masks: np.ndarray
    ) -> Instances:
        """Create instances from unpacked masks, (N, H, W) bool."""
        packed = np.packbits(masks.astype(np.bool_, copy=False), axis=2)
        return cls(labels, scores, boxes, packed, masks.shape[2])


@dataclass(repr=False)
class SegmentationResult:
    """Predictions for one image of H x W pixels, or the reason why it could not be read.

    If the image was unusable, ``error`` is set and all predictions are empty or None.
    """

    image_path: str | None = None
    """Path of the image file; None for arrays and PIL images."""
    image_name: str = "image"
    """Name of the image in messages: its path, or "images[3]"."""
    height: int = 0
    width: int = 0
    panoptic: np.ndarray | None = None
    """(H, W) int32: segment ids, 0 for pixels without a segment."""
    segments: list[Segment] = field(default_factory=list)
    semantic: np.ndarray | None = None
    """(H, W) int32: class indices."""
    instances: Instances | None = None
    class_names: tuple[str, ...] = ()
    """Class names by index."""
    random_weights: bool = False
    """Whether the model had random weights, which makes the result meaningless."""
    visualization: np.ndarray | None = None
    """(H', W', 3) uint8 BGR with the segments drawn, if requested."""
    files: dict[str, str] = field(default_factory=dict)
    """Paths of the written files, by "vis" and "panoptic"."""
    error: Exception | None = None
    queries: Queries | None = None
    """The masks that the model made and their class probabilities, with ``keep_queries=True``."""

    @classmethod
    def from_panoptic(
        cls, panoptic_seg: PixelData, class_names: Sequence[str], **fields: Any
    ) -> SegmentationResult:
        """Create a result from our panoptic map (segment ids) or mmdet's (class + 1000 x object).

        Args:
            panoptic_seg: Panoptic map with ``sem_seg`` (1, H, W). Ours has ``segments_info``.
            class_names: Class names by index. In mmdet's maps, numbers without a class are void;
                mmdet's models write ``len(class_names)``. Segment ids of the result are mmdet's
                numbers + 1, because 0 is mmdet's first class, but our value for no segment.
            fields: Further fields of the result.

        Raises:
            ValueError: If mmdet's map has too many classes to tell classes and objects apart.
        """
        ids = np.asarray(panoptic_seg.sem_seg)[0]
        void = panoptic_seg.metainfo.get("ignore_index")
        infos = panoptic_seg.metainfo.get("segments_info")
        if infos is None:
            if len(class_names) >= INSTANCE_OFFSET:
                raise ValueError(
                    f"pixels of a panoptic map without segments_info are {_ENCODING}, which allows "
                    f"at most {INSTANCE_OFFSET - 1} classes and void, not {len(class_names)}"
                )
            labels = {int(i): int(i) % INSTANCE_OFFSET for i in np.unique(ids)}
            infos = [
                dict(id=i + 1, category_id=label, isthing=i >= INSTANCE_OFFSET)
                for i, label in labels.items()
                if label < len(class_names)
            ]
            ids = ids + 1  # mmdet's 0 is the first class, our 0 is no segment
        elif void is not None:  # written by to_mmdet_panoptic
            ids = np.where(ids == void, 0, ids)
        size = dict(height=ids.shape[0], width=ids.shape[1])
        return cls(
            panoptic=ids.astype(np.int32, copy=False),
            segments=[Segment.from_info(info, class_names, ids) for info in infos],
            class_names=tuple(class_names),
            **{**size, **fields},
        )

    @classmethod
    def from_sample(
        cls, sample: DetDataSample, class_names: Sequence[str], **fields: Any
    ) -> SegmentationResult:
        """Create a result from the predictions in a sample, which must be on the CPU.

        Args:
            sample: Sample with any of ``pred_panoptic_seg`` (see :meth:`from_panoptic`),
                ``pred_sem_seg``, ``pred_instances`` and ``queries``.
            class_names: Class names by index.
            fields: Further fields of the result; ``height`` and ``width`` if there may be no
                panoptic map.
        """
        if "pred_panoptic_seg" in sample:
            result = cls.from_panoptic(sample.pred_panoptic_seg, class_names, **fields)
        else:
            result = cls(class_names=tuple(class_names), **fields)
        if "pred_sem_seg" in sample:
            semantic = np.asarray(sample.pred_sem_seg.sem_seg)[0]
            result.semantic = semantic.astype(np.int32, copy=False)
        if "pred_instances" in sample:
            found = sample.pred_instances
            result.instances = Instances.pack(
                labels=np.asarray(found.labels),
                scores=np.asarray(found.scores.float()),
                boxes=np.asarray(found.bboxes.float()),
                masks=np.asarray(found.masks),
            )
        result.queries = sample.get("queries")
        return result

    @property
    def ok(self) -> bool:
        """Whether the image could be processed."""
        return self.error is None

    def share(self, segment: Segment) -> float:
        """Return the fraction of the image that a segment covers, 0 to 1."""
        return segment.area / max(self.height * self.width, 1)

    def require_panoptic(self) -> np.ndarray:
        """Return the panoptic map.

        Raises:
            ValueError: If the result has no panoptic map.
        """
        if self.panoptic is None:
            raise ValueError(f"{self.image_name}: the result has no panoptic map")
        return self.panoptic

    def mask(self, segment: Segment) -> np.ndarray:
        """Return the mask of a segment, (H, W) bool.

        Raises:
            ValueError: If the result has no panoptic map.
        """
        return self.require_panoptic() == segment.id

    def box(self, segment: Segment) -> tuple[int, int, int, int]:
        """Return the box of a segment: left, top, right, bottom in pixels, the latter exclusive."""
        return box_of(self.mask(segment))

    def parts(self, segment: Segment) -> list[np.ndarray]:
        """Return the connected parts of a segment, (H, W) bool each, largest first."""
        return parts_of(self.mask(segment))

    def outlines(self, segment: Segment) -> list[Outline]:
        """Return the outlines of a segment's connected parts, with their holes."""
        return outlines_of(self.mask(segment))

    def require_queries(self) -> Queries:
        """Return the masks and class probabilities that the model made.

        Raises:
            ValueError: If they were not kept.
        """
        if self.queries is None:
            raise ValueError(
                f"{self.image_name}: the masks of the model were not kept; call the inferencer "
                "with keep_queries=True"
            )
        return self.queries

    def with_settings(self, **settings: Unpack[ResultSettings]) -> SegmentationResult:
        """Make the result again with other settings, from the kept masks, without the model.

        The new result equals that of a new call with these settings. It has no drawn image and no
        files, and segments of videos have no ``track_id``.

        Args:
            settings: See :class:`ResultSettings`. Settings that are left out stay as they are.

        Raises:
            TypeError: If a setting is unknown.
            ConfigError: If a value is not allowed.
            ValueError: If the masks were not kept.
        """
        return self._remade(self.require_queries().segmented(settings))

    def with_memory(
        self, memory: Any, taught: Any = None, **settings: Unpack[ResultSettings]
    ) -> SegmentationResult:
        """Make the result again with another memory, from the kept masks, without the model.

        The masks were embedded when the model ran, so they only need to be compared. Example::

            inferencer.memory = RegionMemory()  # a model without a memory embeds nothing
            (result,) = inferencer("shelf.jpg", texts="bottle; box", keep_queries=True)
            taught = RegionMemory.load("crackers.safetensors")
            result = result.with_memory(taught, taught.vocabulary)

        Args:
            memory: A :class:`~odise_mm.models.RegionMemory` of the same model.
            taught: A :class:`~odise_mm.vocabulary.Vocabulary` of names to add to those of the call.
                A name that the call did not have is known from its examples alone: the classifiers
                of words give it a probability of 0. None: no names are added.
            settings: See :meth:`with_settings`.

        Raises:
            TypeError, ConfigError, ValueError: See :meth:`with_settings`; also if the model had no
                memory.
            CheckpointError: If the memory was made by another model.
        """
        return self._remade(self.require_queries().with_memory(memory, taught, settings))

    def _remade(self, sample: DetDataSample) -> SegmentationResult:
        return SegmentationResult.from_sample(
            sample,
            sample.queries.class_names,
            image_path=self.image_path,
            image_name=self.image_name,
            height=self.height,
            width=self.width,
            random_weights=self.random_weights,
        )

    def probabilities(self, segment: Segment, classifier: str | None = None) -> np.ndarray:
        """Return a segment's probabilities of the K classes and, at the end, void.

        For merged masks of stuff, this is their mean, weighted by their pixels.

        Args:
            segment: A segment of the result.
            classifier: One of ``queries.classifiers``. None: the ensemble of all of them.

        Returns:
            (K + 1,) float32.

        Raises:
            ValueError: If the masks were not kept, or there is no such classifier.
        """
        queries = self.require_queries()
        return queries.of_segment(queries.probabilities(classifier), segment)

    def top(
        self, segment: Segment, k: int = 5, classifier: str | None = None
    ) -> list[tuple[str, float]]:
        """Return the most probable names of a segment and their probabilities, best first.

        Args:
            segment: A segment of the result.
            k: Number of names.
            classifier: See :meth:`probabilities`.
        """
        values = self.probabilities(segment, classifier)[:-1]
        best = np.argsort(-values, kind="stable")[:k]
        return [(self.class_names[label], float(values[label])) for label in best]

    def embedding(self, segment: Segment, classifier: str | None = None) -> np.ndarray:
        """Return the normalized embedding of a segment's mask, (C,) float32.

        For merged masks of stuff, this is the mean of their normalized embeddings, weighted by
        their pixels.

        Args:
            segment: A segment of the result.
            classifier: One of ``queries.classifiers``, for what it compares with the names, such as
                CLIP's embedding of the mask. None: the model's own mask embedding.

        Raises:
            ValueError: If the masks were not kept, there is no such classifier, or there are no
                such embeddings.
        """
        queries = self.require_queries()
        values = queries.embeddings if classifier is None else queries.embeddings_of(classifier)
        if values is None:
            known = [
                name for name in queries.classifiers if queries.embeddings_of(name) is not None
            ]
            raise ValueError(
                f"{self.image_name}: {classifier or 'the model'} makes no mask embeddings; "
                f"classifiers with embeddings: {', '.join(known) or 'none'}"
            )
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        mean = queries.of_segment(values / np.maximum(norms, 1e-12), segment)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)

    def confidence(self) -> np.ndarray:
        """Return how sure the panoptic map is of each pixel, see :meth:`Queries.confidence`.

        Raises:
            ValueError: If the masks were not kept.
        """
        return self.require_queries().confidence()

    def to_coco(
        self, image_id: int = 0, category_ids: Sequence[int] | None = None, first_id: int = 1
    ) -> list[dict[str, Any]]:
        """Return the segments as annotations of COCO's instance format, masks run-length encoded.

        Use this to label data: segments don't overlap, unlike :attr:`instances`. Segments of videos
        have ``track_id``.

        Args:
            image_id: Id of the image in the file.
            category_ids: Category id of every class. None: class index + 1.
            first_id: Id of the first annotation.

        Raises:
            ValueError: If the result has no panoptic map, or ``category_ids`` is not one id per
                class.
        """
        return conversions.to_coco(self, image_id, category_ids, first_id)

    def to_supervision(self) -> supervision.Detections:
        """Return the segments as ``Detections`` of the library supervision.

        ``data`` has ``class_name``, ``is_thing`` and ``segment_id``. For frames of videos,
        ``tracker_id`` is set.

        Raises:
            ImportError: If supervision is not installed.
            ValueError: If the result has no panoptic map.
        """
        return conversions.to_supervision(self)

    def to_fiftyone(self) -> fiftyone.Detections:
        """Return the segments as ``Detections`` of FiftyOne, with boxes and masks inside of them.

        A detection also has ``segment_id`` and ``is_thing``; ``index`` is the ``track_id`` in
        videos. Assign the result to a field of a FiftyOne sample.

        Raises:
            ImportError: If fiftyone is not installed.
            ValueError: If the result has no panoptic map.
        """
        return conversions.to_fiftyone(self)

    def to_transformers(self) -> dict[str, Any]:
        """Return what panoptic post-processing of transformers returns for one image.

        ``segmentation`` is an (H, W) int32 tensor of segment ids. Its value for no segment is 0, as
        in transformers. ``segments_info`` has ``id``, ``label_id``, ``was_fused`` and ``score``.

        Raises:
            ValueError: If the result has no panoptic map.
        """
        return conversions.to_transformers(self)

    def to_detsample(self) -> DetDataSample:
        """Return a sample of mmdet with the predictions, which :meth:`from_sample` reads."""
        return conversions.to_detsample(self)

    def plot(self, axes: Axes | None = None) -> Axes:
        """Show the drawn image with matplotlib.

        Args:
            axes: Axes to draw into. None: new ones.

        Raises:
            ValueError: If the result has no drawn image.
        """
        if self.visualization is None:
            raise ValueError(
                f"{self.image_name}: the result has no drawn image; call the inferencer with "
                "return_vis=True"
            )
        if axes is None:
            from matplotlib import pyplot

            axes = pyplot.subplots()[1]
        axes.imshow(self.visualization[..., ::-1])
        axes.set_title(self.image_name)
        axes.axis("off")
        return axes

    def __repr__(self) -> str:
        if self.error is not None:
            return f"SegmentationResult({self.image_name!r}, error: {self.error})"
        listed = [f"{s.name} {s.score:.2f}" for s in sorted(self.segments, key=lambda s: -s.area)]
        more = f", and {len(listed) - 8} more" if len(listed) > 8 else ""
        count = f"{len(listed)} segment{'s' * (len(listed) != 1)}"
        shown = f"{count}: {', '.join(listed[:8])}{more}" if listed else count
        random = ", random weights" if self.random_weights else ""
        size = f"{self.width} x {self.height}"
        return f"SegmentationResult({self.image_name!r}, {size}, {shown}{random})"

    def _repr_html_(self) -> str:
        """Return the drawn image, if there is one, and a table of the segments, for notebooks."""
        from html import escape

        if self.error is not None:
            return f"<p>{escape(repr(self))}</p>"
        taught = any(s.evidence for s in self.segments)
        rows = "".join(
            f"<tr><td>{escape(s.name)}</td><td>{'thing' if s.is_thing else 'stuff'}</td>"
            f"<td>{s.score:.2f}</td><td>{100 * self.share(s):.1f} %</td>"
            + (f"<td>{''.join(map(_example, s.evidence))}</td>" if taught else "")
            + "</tr>"
            for s in sorted(self.segments, key=lambda s: -s.area)
        )
        heading = f"{escape(self.image_name)}, {self.width} x {self.height}"
        heading += ": random weights, meaningless" * self.random_weights
        table = (
            f"<table><caption>{heading}</caption><tr><th>segment</th><th>kind</th><th>score</th>"
            f"<th>area</th>{'<th>most similar examples</th>' * taught}</tr>{rows}</table>"
        )
        if self.visualization is None:
            return table
        import base64

        import cv2

        _, jpeg = cv2.imencode(".jpg", self.visualization)
        data = base64.b64encode(jpeg.tobytes()).decode()
        return f'<img src="data:image/jpeg;base64,{data}" style="max-width: 100%"/>{table}'

    def drop_maps(self) -> SegmentationResult:
        """Drop all maps, masks and images to free memory; the list of segments stays."""
        self.panoptic = self.semantic = self.instances = self.visualization = None
        self.queries = None
        return self

    def to_dict(self) -> dict:
        """Return the content for a JSON file, i.e. everything except the maps."""
        return dict(
            image=self.image_name,
            height=self.height,
            width=self.width,
            random_weights=self.random_weights,
            error=None if self.error is None else str(self.error),
            files=dict(self.files),
            segments=[{**_fields(s), "share": self.share(s)} for s in self.segments],
        )


def _example(one: Evidence) -> str:
    """Return an example with its picture as HTML, for notebooks."""
    import base64
    from html import escape

    picture = ""
    if one.picture is not None:
        data = base64.b64encode(one.picture).decode()
        style = "max-height: 3em; max-width: 4em; vertical-align: middle"
        picture = f'<img src="data:image/jpeg;base64,{data}" style="{style}"/> '
    text = f"{picture}{escape(one.name)} {one.similarity:.2f}"
    return f'<span style="white-space: nowrap; margin-right: 1em">{text}</span>'


def _fields(segment: Segment) -> dict[str, Any]:
    """Return the fields of a segment; ``track_id`` only in videos, evidence if there is any."""
    fields = segment.to_dict()
    if segment.track_id is None:
        del fields["track_id"]
    if not segment.evidence:
        del fields["evidence"]
    return fields


def to_mmdet_panoptic(sample: DetDataSample, class_names: Sequence[str]) -> DetDataSample:
    """Return a sample with a panoptic map in mmdet's encoding, for its metrics and visualizers.

    Pixels are class + 1000 x object, and void is ``len(class_names)``. Objects of a class are
    counted from 1. Stuff pixels are just the class, except that stuff of class 0 is counted like
    an object, as 0 means void in COCO's PNG files. The segments stay in the map's metainfo, with
    their new ids.

    mmdet's ``CocoPanopticMetric`` takes the class names from the annotation file, in the order of
    its categories. With ``ann_file``, the vocabulary must therefore have that order.

    Args:
        sample: Sample with ``pred_panoptic_seg`` as written by the segmentor. It is not changed.
        class_names: Class names by index.

    Raises:
        ValueError: If there are more than 999 classes, or more objects of a class than COCO's PNG
            files have numbers for.
    """
    import torch
    from mmengine.structures import PixelData

    void = len(class_names)
    if void >= INSTANCE_OFFSET:
        raise ValueError(
            f"pixels of mmdet's panoptic maps are {_ENCODING}: {void} classes and void do not fit, "
            f"at most {INSTANCE_OFFSET - 1} classes do"
        )
    pixels = sample.pred_panoptic_seg
    result = SegmentationResult.from_panoptic(pixels.cpu(), class_names)
    assert result.panoptic is not None
    numbers = np.full(int(result.panoptic.max(initial=0)) + 1, void, np.int32)
    counted, segments = [0] * void, []
    for segment in result.segments:
        first = 1 if segment.is_thing or segment.label == 0 else 0
        number = segment.label + INSTANCE_OFFSET * (first + counted[segment.label])
        if number > _MAX_NUMBER:
            raise ValueError(
                f"pixels of mmdet's panoptic maps are {_ENCODING}, up to {_MAX_NUMBER}: more than "
                f"{counted[segment.label]} objects of {segment.name!r} do not fit"
            )
        counted[segment.label] += 1
        if segment.id < len(numbers):  # otherwise the segment has no pixels
            numbers[segment.id] = number
        segments.append(replace(segment, id=number))
    ids = torch.from_numpy(numbers[result.panoptic][None])
    metainfo = dict(
        segments_info=[segment.to_info() for segment in segments],
        label_names=tuple(class_names),
        ignore_index=void,
    )
    converted = sample.new()
    converted.pred_panoptic_seg = PixelData(
        sem_seg=ids.to(torch.as_tensor(pixels.sem_seg).device), metainfo=metainfo
    )
    return converted
