"""The masks and class predictions of one image, kept to make results from them again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from odise_mm.errors import ConfigError
from odise_mm.models.classifiers.base import ClassPrediction
from odise_mm.models.classifiers.region_memory import RegionMemory
from odise_mm.models.heads.mask2former_head import Frame
from odise_mm.models.postprocess import EXPONENTS, check_settings, confidence_map
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
        ensemble: the model's ensemble.
        precision: precision of the model.
        memory: memory of the model, if it has one.
    """

    masks: Tensor
    frame: Frame
    size: tuple[int, int]
    predictions: list[ClassPrediction]
    scores: Tensor
    mask_embeddings: Tensor | None
    vocabulary: Vocabulary
    ensemble: nn.Module
    precision: str
    settings: Mapping[str, Any]
    classifiers: tuple[str, ...]
    fates: list[MaskFate]
    memory: RegionMemory | None = None

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
            ConfigError: a value is not allowed, or the ensemble has no exponents.
        """
        settings = {**self.settings, **check_settings(settings, TypeError)}
        scores = self.scores
        if exponents_of(settings) != exponents_of(self.settings):
            scores = self._scores_with(settings)
        sample = DetDataSample(metainfo=dict(ori_shape=self.size))
        masks = resize_for_results(self.masks, self.frame, self.size, settings)
        fates = add_results(sample, masks, scores, self.vocabulary, settings)
        if self.memory is not None:
            batch = [_fields(prediction, lambda v: v[None]) for prediction in self.predictions]
            add_evidence(sample, batch, fates, self.memory, 0)
        sample.queries = replace(self, scores=scores, settings=settings, fates=fates)
        return sample

    def _scores_with(self, settings: Mapping[str, Any]) -> Tensor:
        ensemble = with_exponents(self.ensemble, settings, self.predictions)
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
    memory: RegionMemory | None = None,
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
        memory: memory of the model.
    """
    prediction = found.prediction
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
            ensemble=ensemble,
            precision=precision,
            settings={**dict.fromkeys(EXPONENTS), **settings},
            classifiers=tuple(classifiers),
            fates=fates[index],
            memory=memory,
        )


def exponents_of(settings: Mapping[str, Any]) -> tuple[float | None, ...]:
    """Return the settings that replace the exponents of the ensemble; None: its own."""
    return tuple(settings.get(name) for name in EXPONENTS)


def with_exponents(
    ensemble: nn.Module,
    settings: Mapping[str, Any],
    predictions: Sequence[ClassPrediction] | None = None,
) -> nn.Module:
    """Return the ensemble with the exponents that are set, if any.

    Args:
        ensemble: ensemble of the model.
        settings: settings of a call.
        predictions: those of the classifiers; None if there are none yet.

    Raises:
        ConfigError: the ensemble has no exponents, or there is only one classifier.
    """
    exponents = exponents_of(settings)
    if exponents == (None,) * len(EXPONENTS):
        return ensemble
    given = " and ".join(
        name for name, value in zip(EXPONENTS, exponents, strict=True) if value is not None
    )
    if not hasattr(ensemble, "with_exponents"):
        raise ConfigError(
            f"{given}: the model's ensemble, {type(ensemble).__name__}, has no such exponents"
        )
    if predictions is not None and sum(each.abstains is None for each in predictions) == 1:
        raise ConfigError(
            f"{given}: the model has one classifier, so there is nothing to weight against each "
            "other"
        )
    return ensemble.with_exponents(*exponents)


def _fields(prediction: ClassPrediction, change: Callable[[Tensor], Tensor]) -> ClassPrediction:
    return ClassPrediction(*(None if value is None else change(value) for value in prediction))


def numbered(names: Sequence[str]) -> tuple[str, ...]:
    """Number names that occur several times: ("A", "B", "A") becomes ("A", "B", "A 2")."""
    before = [list(names[:index]).count(name) for index, name in enumerate(names)]
    return tuple(
        f"{name} {count + 1}" if count else name for name, count in zip(names, before, strict=True)
    )
