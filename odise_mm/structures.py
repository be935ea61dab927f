"""What the package hands to people: one image's segments, with their names.

The model writes the same into the fields of mmdet's ``DetDataSample``, where segments are
dictionaries (``segments_info``); here is what turns one into the other, and both into mmdet's
panoptic maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mmdet.structures import DetDataSample
    from mmengine.structures import PixelData

INSTANCE_OFFSET = 1000
"""mmdet's constant of this name: its panoptic maps hold class + 1000 x object. It is repeated here
because importing it from mmdet takes seconds."""
_ENCODING = f"class + {INSTANCE_OFFSET} x object"
_MAX_NUMBER = 2**24 - 1  # mmdet's metric writes the maps as PNG files, with 24 bits a pixel


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

    @classmethod
    def from_info(
        cls, info: Mapping[str, Any], names: Sequence[str], ids: np.ndarray | None = None
    ) -> Segment:
        """A segment from an entry of a sample's ``segments_info``.

        Args:
            info: ``id``, ``category_id`` (class index), ``isthing``; perhaps ``category_name``,
                ``score`` (else 1) and ``area``.
            names: of the classes, by index.
            ids: (H, W), the map where pixels are counted if ``info`` has no ``area``.
        """
        label = int(info["category_id"])
        return cls(
            id=int(info["id"]),
            label=label,
            name=str(info.get("category_name") or names[label]),
            score=float(info.get("score", 1.0)),
            area=int(info["area"] if "area" in info else (ids == info["id"]).sum()),
            is_thing=bool(info["isthing"]),
        )

    def to_info(self) -> dict[str, Any]:
        """The entry of ``segments_info`` that :meth:`from_info` reads."""
        return dict(
            id=self.id,
            category_id=self.label,
            category_name=self.name,
            isthing=self.is_thing,
            score=self.score,
            area=self.area,
        )

    def to_coco(self, category_id: int, mask: np.ndarray) -> dict[str, Any]:
        """The entry of ``segments_info`` in COCO's panoptic JSON files.

        Args:
            category_id: the number of its class there.
            mask: (H, W) bool, its pixels, at least one; area and box (x, y, width, height) are
                theirs.
        """
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        x, y = int(columns[0]), int(rows[0])
        return dict(
            id=int(self.id),
            category_id=int(category_id),
            iscrowd=0,
            bbox=[x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
            area=int(mask.sum()),
            score=round(float(self.score), 5),
        )


@dataclass(frozen=True)
class Instances:
    """Scored masks that may overlap, best first.

    Masks are kept packed, 8 pixels in a byte: 100 of them at 1024 x 1365 take 17 MB, not 140.
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

    @property
    def masks(self) -> np.ndarray:
        """(N, H, W) bool, unpacked at every access."""
        return np.unpackbits(self.packed_masks, axis=2, count=self.width).view(np.bool_)

    @classmethod
    def pack(
        cls, labels: np.ndarray, scores: np.ndarray, boxes: np.ndarray, masks: np.ndarray
    ) -> Instances:
        """From masks (N, H, W) bool."""
        packed = np.packbits(masks.astype(np.bool_, copy=False), axis=2)
        return cls(labels, scores, boxes, packed, masks.shape[2])


@dataclass
class SegmentationResult:
    """What was found in one image of H x W pixels, or why it could not be read.

    ``error`` is set when the image was unusable; everything found is then empty or None.
    """

    image_path: str | None = None
    """The file it was read from; None for arrays and PIL images."""
    image_name: str = "image"
    """What messages call it: the path, or "images[3]"."""
    height: int = 0
    width: int = 0
    panoptic: np.ndarray | None = None
    """(H, W) int32: segment ids, 0 where there is none."""
    segments: list[Segment] = field(default_factory=list)
    semantic: np.ndarray | None = None
    """(H, W) int32: class indices."""
    instances: Instances | None = None
    class_names: tuple[str, ...] = ()
    """Names of the vocabulary's classes, by index."""
    random_weights: bool = False
    """True: the model had no trained weights, so that the result means nothing."""
    visualization: np.ndarray | None = None
    """(H', W', 3) uint8 BGR with the segments drawn, when asked for."""
    files: dict[str, str] = field(default_factory=dict)
    """What was written: "vis" and "panoptic" to the file's path."""
    error: Exception | None = None

    @classmethod
    def from_panoptic(
        cls, panoptic_seg: PixelData, class_names: Sequence[str], **fields: Any
    ) -> SegmentationResult:
        """A result from a panoptic map: ours (ids, ``segments_info``) or mmdet's (class + 1000 n).

        Args:
            panoptic_seg: ``sem_seg`` (1, H, W).
            class_names: by class index. In mmdet's map a number of no class is void: mmdet's
                models write ``len(class_names)``. Ids are then one more than its numbers, as 0
                is the first class there and no segment here.
            fields: further fields of the result.

        Raises:
            ValueError: mmdet's map of so many classes that the numbers of classes and of objects
                mix.
        """
        ids = np.asarray(panoptic_seg.sem_seg)[0]
        void = panoptic_seg.metainfo.get("ignore_index")
        infos = panoptic_seg.metainfo.get("segments_info")
        if infos is None:
            if len(class_names) >= INSTANCE_OFFSET:
                raise ValueError(
                    f"a panoptic map without segments_info holds {_ENCODING}, which cannot tell "
                    f"{len(class_names)} classes and void apart; at most {INSTANCE_OFFSET - 1} "
                    "classes"
                )
            labels = {int(i): int(i) % INSTANCE_OFFSET for i in np.unique(ids)}
            infos = [
                dict(id=i + 1, category_id=label, isthing=i >= INSTANCE_OFFSET)
                for i, label in labels.items()
                if label < len(class_names)
            ]
            ids = ids + 1  # 0 is the first class there, and nothing here
        elif void is not None:  # of to_mmdet_panoptic
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
        """A result from what a model wrote into a sample, on the CPU.

        Args:
            sample: with any of ``pred_panoptic_seg`` (see :meth:`from_panoptic`),
                ``pred_sem_seg`` and ``pred_instances``.
            class_names: by class index.
            fields: further fields of the result; ``height`` and ``width`` where there may be no
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
        return result

    @property
    def ok(self) -> bool:
        return self.error is None

    def share(self, segment: Segment) -> float:
        """Part of the image that a segment covers, 0 to 1."""
        return segment.area / max(self.height * self.width, 1)

    def mask(self, segment: Segment) -> np.ndarray:
        """(H, W) bool, where a segment is.

        Raises:
            ValueError: the result has no panoptic map.
        """
        if self.panoptic is None:
            raise ValueError(f"{self.image_name}: the result has no panoptic map")
        return self.panoptic == segment.id

    def drop_maps(self) -> SegmentationResult:
        """Let go of everything that grows with the image; the list of segments stays."""
        self.panoptic = self.semantic = self.instances = self.visualization = None
        return self

    def to_dict(self) -> dict:
        """What fits in a JSON file: all but the maps."""
        return dict(
            image=self.image_name,
            height=self.height,
            width=self.width,
            random_weights=self.random_weights,
            error=None if self.error is None else str(self.error),
            files=dict(self.files),
            segments=[{**asdict(s), "share": self.share(s)} for s in self.segments],
        )


def to_mmdet_panoptic(sample: DetDataSample, class_names: Sequence[str]) -> DetDataSample:
    """A sample whose panoptic map is mmdet's, for mmdet's metrics and visualizers.

    Pixels are class + 1000 x object, and void is ``len(class_names)``. Objects of a class are
    counted from 1, and so is stuff of class 0, whose number would otherwise be 0, which COCO's PNG
    files have for void; other stuff is its class alone. The segments stay in the map's metainfo,
    with their new ids.

    mmdet's ``CocoPanopticMetric`` takes the names of the classes from the annotation file in the
    order of its categories: with ``ann_file`` the vocabulary must have that order, too.

    Args:
        sample: with ``pred_panoptic_seg`` as the segmentor writes it; it stays as it is.
        class_names: by class index.

    Raises:
        ValueError: more than 999 classes, or an image with more objects of a class than COCO's
            PNG files have numbers for.
    """
    import torch
    from mmengine.structures import PixelData

    void = len(class_names)
    if void >= INSTANCE_OFFSET:
        raise ValueError(
            f"mmdet's panoptic maps hold {_ENCODING}: {void} classes and void do not fit, at most "
            f"{INSTANCE_OFFSET - 1} classes do"
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
                f"mmdet's panoptic maps hold {_ENCODING} up to {_MAX_NUMBER}: more than "
                f"{counted[segment.label]} objects of {segment.name!r} do not fit"
            )
        counted[segment.label] += 1
        if segment.id < len(numbers):  # else no pixel is left of it
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
