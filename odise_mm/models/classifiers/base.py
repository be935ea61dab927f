"""What every classifier takes and returns."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odise_mm.errors import ConfigError
from odise_mm.models.heads.mask2former_head import MaskPrediction
from odise_mm.utils.precision import full_precision
from odise_mm.vocabulary import Vocabulary


class ClassPrediction(NamedTuple):
    """One classifier's view of Q masks of B images among K classes.

    Attributes:
        logits: (B, Q, K).
        p_void: probability that the mask is none of them, (B, Q), or None: no view on that.
    """

    logits: Tensor
    p_void: Tensor | None = None


class Classifier(nn.Module):
    """Base of all classifiers: ``forward`` is the whole contract of inference.

    A model's first classifier is its own, which is trained, and does more: see
    :class:`TrainableClassifier`.
    """

    def forward(
        self, prediction: MaskPrediction, images: Sequence[Tensor], vocabulary: Vocabulary
    ) -> ClassPrediction:
        """Name the masks.

        Args:
            prediction: masks and their embeddings; the masks cover the *padded* images.
            images: the unpadded images, each (3, H, W) in [0, 1], RGB.
            vocabulary: the names; may differ from call to call.
        """
        raise NotImplementedError


class TrainableClassifier(Classifier):
    """What a model's first classifier must be where the model is trained.

    With labels, ``supervised_logits`` are compared with the annotated classes. With captions,
    ``word_embeddings`` and ``scale`` are compared with the mask embeddings.
    """

    @property
    def has_null_class(self) -> bool:
        """Whether it tells "none of the names" itself; else the head's objectness does."""
        raise NotImplementedError

    @property
    def scale(self) -> Tensor:
        """The factor on the cosine of masks and names, a scalar; with gradient if it is learned."""
        raise NotImplementedError

    def supervised_logits(
        self, embeddings: Sequence[Tensor], vocabulary: Vocabulary
    ) -> list[Tensor]:
        """What label supervision compares with the annotated classes, for several layers.

        Args:
            embeddings: of the masks after every decoder layer, each (B, Q, C).
            vocabulary: K classes.

        Returns:
            For every layer (B, Q, K + 1) float32, with gradient; the last column is void.
        """
        raise NotImplementedError

    def word_embeddings(self, words: Sequence[Sequence[str]]) -> Tensor:
        """Embeddings of the words of B captions, K of each: (B, K, C) float32, with gradient."""
        raise NotImplementedError


def require_trainable(classifier: nn.Module) -> TrainableClassifier:
    """The classifier, if training can use it.

    Raises:
        ConfigError: it is no :class:`TrainableClassifier`.
    """
    if not isinstance(classifier, TrainableClassifier):
        raise ConfigError(
            f"the model's first classifier, {type(classifier).__name__}, cannot be trained: to "
            "train the model put an OpenVocabClassifier, or another TrainableClassifier, first"
        )
    return classifier


def class_logits(
    embeddings: Tensor, text: Tensor, vocabulary: Vocabulary, scale: Tensor | float
) -> Tensor:
    """Scaled cosine of every mask with every class: the best of the class's synonyms.

    Args:
        embeddings: (B, Q, C).
        text: one embedding for every synonym of ``vocabulary.flat``, (S, C).
        scale: factor on the cosine.

    Returns:
        (B, Q, K) float32, K classes.
    """
    with full_precision(embeddings):
        similarity = F.normalize(embeddings.float(), dim=-1) @ F.normalize(text, dim=-1).T * scale
    classes = _class_of_synonym(vocabulary.synonyms).to(similarity.device)
    best = similarity.new_full((*similarity.shape[:-1], len(vocabulary)), float("-inf"))
    return best.scatter_reduce(-1, classes.expand_as(similarity), similarity, reduce="amax")


@lru_cache(maxsize=16)
def _class_of_synonym(synonyms: tuple[tuple[str, ...], ...]) -> Tensor:
    """The class index of every synonym, (S,), on the CPU; made once for many images."""
    with torch.inference_mode(False):  # training keeps it for the backward pass
        counts = torch.tensor([len(group) for group in synonyms], device="cpu")
        return torch.arange(len(synonyms), device="cpu").repeat_interleave(counts)
