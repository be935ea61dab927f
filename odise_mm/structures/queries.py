"""The masks behind a result: what each of them was named, and what became of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

if TYPE_CHECKING:
    from mmdet.structures import DetDataSample

    from odise_mm.structures.result import Evidence, Segment


class ResultSettings(TypedDict, total=False):
    """Settings of results, which are arguments of a call. Defaults are those of the config."""

    score_threshold: float
    """A panoptic segment must have a larger class probability, 0 to 1."""
    overlap_threshold: float
    """A panoptic segment must keep at least this fraction of its mask, 0 to 1."""
    min_area: int
    """A panoptic segment must have at least this number of pixels."""
    alpha: float | None
    """Weight of CLIP's prediction for base classes, 0 to 1. None: that of the ensemble."""
    beta: float | None
    """The same for novel classes."""
    memory_weight: float | None
    """Factor on the weights of the memory's prediction, 0 to 1. None: 1, as in the config; 0: as if
    nothing was taught."""
    topk: int
    """Number of instances, counted before stuff is dropped."""
    instance_quality: Literal["probability", "logit"]
    """What the class probability of an instance is multiplied by."""
    mask_resize: Literal["logit", "probability"]
    """Which values of masks are resized to the size of the image."""
    semantic_resize: Literal["masks", "class_maps"]
    """What is resized to the size of the image for semantic results."""
    panoptic: bool
    """Whether to compute the panoptic map and its segments."""
    semantic: bool
    """Whether to compute the semantic map."""
    instance: bool
    """Whether to compute instances."""
    keep_queries: bool
    """Whether the result keeps the masks that the model made."""


REASONS = {
    "kept": "first mask of its segment",
    "merged": "added to the segment of the same class of stuff",
    "void": "more probably none of the classes",
    "score": "class probability not above score_threshold",
    "empty": "no pixel has a mask probability of 0.5",
    "overlap": "keeps less than overlap_threshold of its area",
    "area": "the segment has fewer pixels than min_area",
}
"""What can become of a mask in the panoptic map."""


@dataclass(frozen=True)
class MaskFate:
    """What became of one mask in the panoptic map."""

    reason: str
    """A key of ``REASONS``."""
    segment: int = 0
    """Id of its segment; 0 if it was dropped."""
    area: int = 0
    """Pixels with a mask probability of at least 0.5; 0 if it was dropped before they are counted
    (``void``, ``score``)."""
    pixels: int = 0
    """Those of them that no other mask won."""


class Queries(ABC):
    """The Q masks that the model made for an image, and the names that each classifier gave them.

    A result has it with ``keep_queries=True``. It keeps mask logits at the size at which the model
    made them; everything else is computed when it is asked for.

    Attributes:
        class_names: names of the K classes, by index.
        classifiers: names of the classifiers, as in the config: types, numbered if there are
            several of a type.
        settings: settings of the result.
        fates: what became of each mask in the panoptic map; empty if there is none.
    """

    class_names: tuple[str, ...]
    classifiers: tuple[str, ...]
    settings: Mapping[str, Any]
    fates: list[MaskFate]

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of masks, Q."""

    @abstractmethod
    def probabilities(self, classifier: str | None = None) -> np.ndarray:
        """Return the probabilities of the K classes and, in the last column, void.

        Args:
            classifier: one of :attr:`classifiers`. None: the ensemble of all of them, on which
                the results are based. If the classifier does not predict void, that column is 0.

        Returns:
            (Q, K + 1) float32.

        Raises:
            ValueError: If there is no such classifier.
        """

    @property
    @abstractmethod
    def embeddings(self) -> np.ndarray | None:
        """Mask embeddings, (Q, C) float32, not normalized; None if the model makes none."""

    @abstractmethod
    def embeddings_of(self, classifier: str) -> np.ndarray | None:
        """Return what a classifier compared with the names.

        Args:
            classifier: one of :attr:`classifiers`.

        Returns:
            (Q, C) float32, not normalized: CLIP's embeddings of the masks, or :attr:`embeddings`
            for the model's own classifier. None if the classifier compares no embeddings.

        Raises:
            ValueError: If there is no such classifier.
        """

    @abstractmethod
    def mask(self, query: int) -> np.ndarray:
        """Return the probabilities of a mask at the size of the image, (H, W) float32."""

    @abstractmethod
    def small_masks(self) -> np.ndarray:
        """Return the probabilities of all masks as the model made them, (Q, h, w) float32.

        They cover the image; h and w are usually a quarter of the sides of the model's input.
        """

    @abstractmethod
    def confidence(self) -> np.ndarray:
        """Return how sure the panoptic map is of each pixel, (H, W) float32.

        The product of class probability and mask probability by which the pixel's mask won it; 0
        for pixels without a segment.
        """

    @abstractmethod
    def segmented(self, settings: Mapping[str, Any]) -> DetDataSample:
        """Return new predictions from the same masks; see :meth:`SegmentationResult.with_settings`.

        The sample contains ``queries``, too.
        """

    def evidence(self, query: int, count: int = 3) -> list[Evidence]:
        """Return the regions of the model's memory that a mask is most similar to, best first.

        Args:
            query: index of the mask.
            count: number of regions.
        """
        return []

    def with_memory(self, memory: Any, taught: Any, settings: Mapping[str, Any]) -> DetDataSample:
        """Return new predictions from the same masks, compared with another memory.

        See :meth:`SegmentationResult.with_memory`. The sample contains ``queries``, too.

        Raises:
            ValueError: If these masks cannot be compared with a memory.
        """
        raise ValueError(f"{type(self).__name__} cannot be compared with a memory")

    def of(self, segment: Segment) -> list[int]:
        """Return the indices of a segment's masks. A thing has one; merged stuff may have more."""
        return [index for index, fate in enumerate(self.fates) if fate.segment == segment.id]

    def of_segment(self, values: np.ndarray, segment: Segment) -> np.ndarray:
        """Average the values of a segment's masks, weighted by their pixels in the map.

        Args:
            values: one row per mask, (Q, C).
            segment: a segment of the result.

        Returns:
            (C,) float32.

        Raises:
            ValueError: If the segment does not belong to these masks.
        """
        chosen = self.of(segment)
        if not chosen:
            raise ValueError(f"segment {segment.id} ({segment.name}) does not belong to the result")
        weights = np.array([self.fates[query].pixels for query in chosen], np.float64)
        return np.average(values[chosen], axis=0, weights=weights).astype(np.float32)
