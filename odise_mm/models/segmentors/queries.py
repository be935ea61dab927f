"""The masks and class predictions of one image, kept to make results from them again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from odise_mm.errors import ConfigError
from odise_mm.models.classifiers.base import ClassPrediction, spread_over
from odise_mm.models.classifiers.memory import MemoryClassifier
from odise_mm.models.classifiers.region_memory import Region, RegionMemory
from odise_mm.models.heads.mask2former_head import Frame
from odise_mm.models.postprocess import EXPONENTS, WEIGHTS, check_settings, confidence_map
from odise_mm.models.segmentors.regions import describe_regions
from odise_mm.models.segmentors.results import (
    SegmentedImages,
    add_evidence,
    add_results,
    evidence_of,
    frames_of,
    resize_for_results,
)
from odise_mm.structures import Evidence
from odise_mm.structures.queries import MaskFate, Queries
from odise_mm.utils.precision import autocast
from odise_mm.vocabulary import Vocabulary


@dataclass(repr=False)
class KeptQueries(Queries):
    """Queries of one image on the CPU.

    Attributes:
        masks: mask logits as the model made them, (Q, h, w).
        frame: area that they cover.
        size: height and width of the image.
        predictions: each classifier's prediction, without the batch dimension.
        scores: the ensemble's probabilities, (Q, K + 1).
        mask_embeddings: (Q, C) or None.
        vocabulary: the K classes.
        words: the first of these classes, which the classifiers of words know. The others are known
            from examples alone, see :meth:`with_memory`.
        ensemble: the model's ensemble.
        precision: precision of the model.
        memory_part: classifier of the model's memory, if it has one.
    """

    masks: Tensor
    frame: Frame
    size: tuple[int, int]
    predictions: list[ClassPrediction]
    scores: Tensor
    mask_embeddings: Tensor | None
    vocabulary: Vocabulary
    words: Vocabulary
    ensemble: nn.Module
    precision: str
    settings: Mapping[str, Any]
    classifiers: tuple[str, ...]
    fates: list[MaskFate]
    memory_part: MemoryClassifier | None = None

    @property
    def memory(self) -> RegionMemory | None:
        """The memory that the masks were compared with; None if the model has none."""
        return None if self.memory_part is None else self.memory_part.memory

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """See :class:`~odise_mm.structures.Queries`."""
        return self.vocabulary.names

    def __len__(self) -> int:
        return len(self.masks)

    def __repr__(self) -> str:
        return f"Queries({len(self)} masks, classifiers: {', '.join(self.classifiers)})"

    def probabilities(self, classifier: str | None = None) -> np.ndarray:
        """See :meth:`~odise_mm.structures.Queries.probabilities`."""
        if classifier is None:
            return self.scores.numpy()
        prediction = self._prediction_of(classifier)
        void = prediction.p_void
        classes = prediction.logits.float().softmax(-1)
        void = classes.new_zeros(len(classes)) if void is None else void.float()
        return torch.cat([classes * (1 - void)[:, None], void[:, None]], dim=-1).numpy()

    @property
    def embeddings(self) -> np.ndarray | None:
        """See :attr:`~odise_mm.structures.Queries.embeddings`."""
        return None if self.mask_embeddings is None else self.mask_embeddings.float().numpy()

    def embeddings_of(self, classifier: str) -> np.ndarray | None:
        """See :meth:`~odise_mm.structures.Queries.embeddings_of`."""
        prediction = self._prediction_of(classifier)
        if prediction.embeddings is not None:
            return prediction.embeddings.float().numpy()
        own = classifier == self.classifiers[0]
        return self.embeddings if own else None

    def _prediction_of(self, classifier: str) -> ClassPrediction:
        if classifier not in self.classifiers:
            raise ValueError(
                f"classifier {classifier!r} does not exist; the model has "
                f"{', '.join(self.classifiers)}"
            )
        return self.predictions[self.classifiers.index(classifier)]

    def mask(self, query: int) -> np.ndarray:
        """See :meth:`~odise_mm.structures.Queries.mask`."""
        query = range(len(self))[query]
        return self._full_size(self.masks[query : query + 1])[0].sigmoid().numpy()

    def small_masks(self) -> np.ndarray:
        """See :meth:`~odise_mm.structures.Queries.small_masks`."""
        sides = zip(self.masks.shape[-2:], self.frame.image, self.frame.padded, strict=True)
        height, width = (
            min(side, max(1, round(side * image / padded))) for side, image, padded in sides
        )
        return self.masks[:, :height, :width].float().sigmoid().numpy()

    def confidence(self) -> np.ndarray:
        """See :meth:`~odise_mm.structures.Queries.confidence`."""
        return confidence_map(self.scores, self._full_size(self.masks), self.fates).numpy()

    def evidence(self, query: int, count: int = 3) -> list[Evidence]:
        """See :meth:`~odise_mm.structures.Queries.evidence`."""
        found = next((each for each in self.predictions if each.neighbors is not None), None)
        if found is None or self.memory is None:
            return []
        return evidence_of(
            found.neighbors[query, :count], found.similarities[query, :count], self.memory
        )

    def segmented(self, settings: Mapping[str, Any]) -> DetDataSample:
        """See :meth:`~odise_mm.structures.Queries.segmented`.

        Raises:
            TypeError: a setting is unknown.
            ConfigError: a value is not allowed, or the ensemble has no such weights.
        """
        settings = {**self.settings, **check_settings(settings, TypeError)}
        scores = self.scores
        if weights_of(settings) != weights_of(self.settings):
            scores = self._scores_with(settings)
        sample = DetDataSample(metainfo=dict(ori_shape=self.size))
        masks = resize_for_results(self.masks, self.frame, self.size, settings)
        fates = add_results(sample, masks, scores, self.vocabulary, settings)
        if self.memory is not None:
            batch = [_fields(prediction, lambda v: v[None]) for prediction in self.predictions]
            add_evidence(sample, batch, fates, self.memory, 0)
        sample.queries = replace(self, scores=scores, settings=settings, fates=fates)
        return sample

    def with_memory(
        self, memory: RegionMemory, taught: Vocabulary | None, settings: Mapping[str, Any]
    ) -> DetDataSample:
        """See :meth:`~odise_mm.structures.Queries.with_memory`."""
        part = copy.copy(self._require_memory(memory))
        part.memory = memory
        parts = [self.words] if taught is None else [self.words, taught]
        vocabulary = Vocabulary.join(parts)
        known, count = range(len(self.words)), len(vocabulary)
        predictions = []
        for index, each in enumerate(self.predictions):
            if index == self._memory_place() and each.embeddings is not None:
                found = memory.search(each.embeddings, part.neighbors)
                voted = part.vote(found, vocabulary, each.embeddings[None])
                predictions.append(_fields(voted, lambda v: v[0]))
            else:
                before = each._replace(
                    logits=each.logits[..., : len(known)],
                    abstains=None if each.abstains is None else each.abstains[: len(known)],
                )
                predictions.append(spread_over(before, known, count))
        chosen = {**self.settings, **check_settings(settings, TypeError)}
        changed = replace(
            self,
            predictions=predictions,
            vocabulary=vocabulary,
            memory_part=part,
            settings=chosen,
        )
        changed.scores = changed._scores_with(chosen)
        return changed.segmented({})

    def teach(
        self,
        memory: RegionMemory,
        query: int,
        name: str,
        image: str,
        box: tuple[int, int, int, int],
        is_thing: bool = True,
        picture: bytes | None = None,
    ) -> Region | None:
        """Add a mask to a memory, with the embedding that the model's memory compares.

        Args:
            memory: a memory; not necessarily that of the model.
            query: index of the mask.
            name, image, box, is_thing: see :class:`~odise_mm.models.Region`.
            picture: see :meth:`~odise_mm.models.RegionMemory.add`.

        Returns:
            The region; None if it was there already with this name.

        Raises:
            ConfigError: the model has no memory.
            CheckpointError: the memory is from another embedder.
        """
        self._require_memory(memory)
        embeddings = self.predictions[self._memory_place()].embeddings
        assert embeddings is not None, "there are masks"
        chosen = [query]
        described = describe_regions(
            torch.cat([self.masks, self.masks[chosen]]).float(),
            torch.cat([embeddings, embeddings[chosen]]),
            1,
        )
        (region,) = memory.add(
            described.embeddings,
            [name],
            [image],
            [box],
            [is_thing],
            described.backgrounds.tolist(),
            [picture],
            described.surroundings,
        )
        return region

    def examples_like(self, memory: RegionMemory, query: int) -> list[Region]:
        """Return the regions of a memory that have the same embedding as a mask."""
        embeddings = self.predictions[self._memory_place()].embeddings
        assert embeddings is not None, "there are masks"
        return memory.same(embeddings[query])

    @property
    def memory_name(self) -> str | None:
        """Name of the classifier that compares masks with the memory; None if there is none."""
        return None if self.memory_part is None else self.classifiers[self._memory_place()]

    def _memory_place(self) -> int:
        places = [i for i, each in enumerate(self.predictions) if each.abstains is not None]
        return places[0]

    def _require_memory(self, memory: RegionMemory) -> MemoryClassifier:
        """Return the classifier of memories, and check that it can use a memory."""
        if self.memory_part is None:
            raise ConfigError(
                "the model has no memory: set inferencer.memory = RegionMemory() before the call"
            )
        embedder = self.memory_part.memory.embedder
        if embedder is not None:  # None: the image has no masks
            memory.require(embedder)
        return self.memory_part

    def _scores_with(self, settings: Mapping[str, Any]) -> Tensor:
        ensemble = with_weights(self.ensemble, settings, self.predictions)
        batch = [_fields(prediction, lambda v: v[None]) for prediction in self.predictions]
        with torch.no_grad(), autocast(self.masks, self.precision):
            return ensemble(batch, self.vocabulary)[0]

    def _full_size(self, masks: Tensor) -> Tensor:
        """Resize masks to the size of the image: logits (N, H, W)."""
        return resize_for_results(masks, self.frame, self.size, {**self.settings, "panoptic": True})


def keep_queries(
    found: SegmentedImages,
    scores: Tensor,
    samples: Sequence[DetDataSample],
    fates: Sequence[list[MaskFate]],
    settings: Mapping[str, Any],
    classifiers: Sequence[str],
    ensemble: nn.Module,
    precision: str,
    memory_part: MemoryClassifier | None = None,
) -> None:
    """Store the masks and class predictions of images in the field ``queries`` of their samples.

    Args:
        found: masks of B images.
        scores: the ensemble's probabilities, (B, Q, K + 1).
        samples: samples of these images.
        fates: what became of the masks of each image.
        settings: all settings of the results.
        classifiers: names of the classifiers.
        ensemble: ensemble of the model.
        precision: precision of the model.
        memory_part: classifier of the model's memory.
    """
    prediction = found.prediction
    memory_part = copy.copy(memory_part)  # the model's memory may be replaced
    for index, (sample, frame) in enumerate(zip(samples, frames_of(found, samples), strict=True)):

        def own(values: Tensor, index: int = index) -> Tensor:
            # A copy, because a view would keep the whole batch in memory.
            return values[index].detach().to("cpu", copy=True)

        sample.queries = KeptQueries(
            masks=own(prediction.masks),
            frame=frame,
            size=tuple(sample.ori_shape[:2]),
            predictions=[_fields(each, own) for each in found.class_predictions],
            scores=own(scores),
            mask_embeddings=None if prediction.embeddings is None else own(prediction.embeddings),
            vocabulary=found.vocabulary,
            words=found.vocabulary,
            ensemble=ensemble,
            precision=precision,
            settings={**dict.fromkeys(WEIGHTS), **settings},
            classifiers=tuple(classifiers),
            fates=fates[index],
            memory_part=memory_part,
        )


def weights_of(settings: Mapping[str, Any]) -> dict[str, float]:
    """Return the weights of the ensemble that the settings of a call change."""
    return {name: settings[name] for name in WEIGHTS if settings.get(name) is not None}


def with_weights(
    ensemble: nn.Module,
    settings: Mapping[str, Any],
    predictions: Sequence[ClassPrediction] | None = None,
) -> nn.Module:
    """Return the ensemble with the weights that are set, if any.

    Args:
        ensemble: ensemble of the model.
        settings: settings of a call.
        predictions: those of the classifiers; None if there are none yet.

    Raises:
        ConfigError: the ensemble has no such weights, or there is nothing to weight: the model has
            one classifier, or no memory.
    """
    weights = weights_of(settings)
    if not weights:
        return ensemble
    if not hasattr(ensemble, "with_weights"):
        raise ConfigError(
            f"{' and '.join(weights)}: the model's ensemble, {type(ensemble).__name__}, has no "
            "such weights"
        )
    if predictions is not None:
        exponents = " and ".join(name for name in weights if name in EXPONENTS)
        words = sum(each.abstains is None for each in predictions)
        if exponents and words == 1:
            raise ConfigError(
                f"{exponents}: the model has one classifier, so there is nothing to weight against "
                "each other"
            )
        if "memory_weight" in weights and words == len(predictions):
            raise ConfigError(
                "memory_weight: the model has no memory; teach it examples, or give it a memory "
                "file first"
            )
    return ensemble.with_weights(**weights)


def _fields(prediction: ClassPrediction, change: Callable[[Tensor], Tensor]) -> ClassPrediction:
    return ClassPrediction(*(None if value is None else change(value) for value in prediction))


def numbered(names: Sequence[str]) -> tuple[str, ...]:
    """Number names that occur several times: ("A", "B", "A") becomes ("A", "B", "A 2")."""
    before = [list(names[:index]).count(name) for index, name in enumerate(names)]
    return tuple(
        f"{name} {count + 1}" if count else name for name, count in zip(names, before, strict=True)
    )
