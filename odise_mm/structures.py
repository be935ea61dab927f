"""What the package hands to people: one picture's segments, with their names."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np


@dataclass(frozen=True)
class NamedSegment:
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
    """What was found in one picture of H x W pixels, or why it could not be read.

    ``error`` is set when the picture was unusable; everything found is then empty or None.
    """

    image_path: str | None = None
    """The file it was read from; None for arrays and PIL images."""
    image_name: str = "image"
    """What messages call it: the path, or "images[3]"."""
    height: int = 0
    width: int = 0
    panoptic: np.ndarray | None = None
    """(H, W) int32: segment ids, 0 where there is none."""
    segments: list[NamedSegment] = field(default_factory=list)
    semantic: np.ndarray | None = None
    """(H, W) int32: class indices."""
    instances: Instances | None = None
    class_names: tuple[str, ...] = ()
    """Names of the vocabulary's classes, by index."""
    made_up_weights: bool = False
    """True: the model had no trained weights, so that the result means nothing."""
    picture: np.ndarray | None = None
    """(H', W', 3) uint8 BGR with the segments drawn, when asked for."""
    files: dict[str, str] = field(default_factory=dict)
    """What was written: "picture" and "panoptic" to the file's path."""
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        return self.error is None

    def share(self, segment: NamedSegment) -> float:
        """Part of the picture that a segment covers, 0 to 1."""
        return segment.area / max(self.height * self.width, 1)

    def mask(self, segment: NamedSegment) -> np.ndarray:
        """(H, W) bool, where a segment is.

        Raises:
            ValueError: the result has no panoptic map.
        """
        if self.panoptic is None:
            raise ValueError(f"{self.image_name}: the result has no panoptic map")
        return self.panoptic == segment.id

    def drop_maps(self) -> SegmentationResult:
        """Let go of everything that grows with the picture; the list of segments stays."""
        self.panoptic = self.semantic = self.instances = self.picture = None
        return self

    def to_dict(self) -> dict:
        """What fits in a JSON file: all but the maps."""
        return dict(
            image=self.image_name,
            height=self.height,
            width=self.width,
            made_up_weights=self.made_up_weights,
            error=None if self.error is None else str(self.error),
            files=dict(self.files),
            segments=[{**asdict(s), "share": self.share(s)} for s in self.segments],
        )
