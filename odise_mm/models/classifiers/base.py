"""Base classes of classifiers, and their output."""

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

NEVER = -1e4
"""Logit of a class that a classifier does not know; finite, because logarithms are weighted."""
CERTAIN = 5.0
"""Relative similarity of a mask that is an example itself, which no word outweighs."""


class NameTensors(NamedTuple):
    """Classes as tensors, instead of a :class:`~odise_mm.vocabulary.Vocabulary`.

    The exported graph of a model whose class names are inputs gets them like this, along with the
    embeddings of the names.

    Attributes:
        class_of_synonym: class index of each of S synonyms, (S,) int64.
        base: which of the K classes the training vocabulary has, (K,) bool.
    """

    class_of_synonym: Tensor
    base: Tensor


class ClassPrediction(NamedTuple):
    """A classifier's prediction for Q masks of B images and K classes.

    Attributes:
        logits: class logits, (B, Q, K).
        p_void: probability that a mask belongs to none of the classes, (B, Q). None if the
            classifier does not predict void.
        valid: whether a mask covers any position that the classifier looks at, (B, Q) bool. None if
            all masks count.
        embeddings: what the classifier compares with the names, (B, Q, C). None if that is the mask
            embeddings of the head, or nothing.
        abstains: classes about which the classifier says nothing, (B, K) bool, as a memory without
            examples of a class. ``p_void`` is then the probability that a mask is none of the
            others. None if the classifier knows all classes.
        neighbors: ids of the most similar regions of a memory, (B, Q, N) int64, best first; else
            None.
        similarities: cosines of these regions, (B, Q, N); else None.
        relative: similarity of each mask to a memory's examples of each class, (B, Q, K): 0 for
            unrelated regions, 1 for one more example of the class, ``NEVER`` for classes without
            an example nearby. None for other classifiers.
    """

    logits: Tensor
    p_void: Tensor | None = None
    valid: Tensor | None = None
    embeddings: Tensor | None = None
    abstains: Tensor | None = None
    neighbors: Tensor | None = None
    similarities: Tensor | None = None
    relative: Tensor | None = None


class Classifier(nn.Module):
    """Base class of all classifiers. For inference, a classifier only needs ``forward``.

    The first classifier of a model that is trained with labels or captions must be a
    :class:`TrainableClassifier`. If only the masks are trained, it may be any classifier.

    Attributes:
        reads_features: whether ``forward`` needs ``prediction.features``.
        reads_embeddings: whether ``forward`` needs ``prediction.named``, which classifiers before
            it in the list make.
    """

    reads_features = False
    reads_embeddings = False

    def check_features(self, backbone: nn.Module, neck: nn.Module | None) -> None:
        """Check, when the model is built, that ``prediction.features`` are what it needs.

        Raises:
            ConfigError: they are features of another network.
        """

    def forward(
        self, prediction: MaskPrediction, images: Sequence[Tensor], vocabulary: Vocabulary
    ) -> ClassPrediction:
        """Classify the masks.

        Args:
            prediction: masks and their embeddings. The masks cover the *padded* images.
            images: the unpadded images, each (3, H, W) in [0, 1], RGB.
            vocabulary: the K classes; may differ from call to call.

        Returns:
            Logits (B, Q, K), and possibly the probability of void. If the model's first classifier
            does not predict void, the head's objectness does.
        """
        raise NotImplementedError


class TrainableClassifier(Classifier):
    """Base class of classifiers that can be trained, as the first classifier of a model is.

    With label supervision, the class loss compares ``supervised_logits`` with the annotated
    classes. With caption supervision, the grounding loss compares the mask embeddings with
    ``word_embeddings``, scaled by ``scale``.
    """

    mask_embed_dim: int | None = None
    """Number of channels that mask embeddings must have; None: any."""

    @property
    def has_null_class(self) -> bool:
        """Whether the classifier predicts void itself; otherwise the head's objectness does."""
        raise NotImplementedError

    @property
    def scale(self) -> Tensor:
        """Factor on the cosine similarity, a scalar; has a gradient if it is learned."""
        raise NotImplementedError

    def supervised_logits(
        self, embeddings: Sequence[Tensor], vocabulary: Vocabulary
    ) -> list[Tensor]:
        """Compute class logits for label supervision, for all decoder layers.

        Args:
            embeddings: mask embeddings of every decoder layer, each (B, Q, C).
            vocabulary: the K classes.

        Returns:
            For every layer (B, Q, K + 1) float32 with gradient; the last column is void.
        """
        raise NotImplementedError

    def word_embeddings(self, words: Sequence[Sequence[str]]) -> Tensor:
        """Embed K words of each of B captions: (B, K, C) float32 with gradient."""
        raise NotImplementedError


def require_trainable(classifier: nn.Module) -> TrainableClassifier:
    """Return the classifier if it can be trained.

    Raises:
        ConfigError: it is not a :class:`TrainableClassifier`.
    """
    if not isinstance(classifier, TrainableClassifier):
        raise ConfigError(
            f"the model's first classifier, {type(classifier).__name__}, cannot be trained; to "
            "train the model, put an OpenVocabClassifier or another TrainableClassifier first"
        )
    return classifier


def with_void(own: ClassPrediction, prediction: MaskPrediction) -> ClassPrediction:
    """Complete the prediction of a model's first classifier with the probability of void.

    Args:
        own: prediction of the first classifier. It is returned as it is if it predicts void.
        prediction: the head's prediction. Its objectness predicts void, if it has any.
    """
    if own.p_void is not None or prediction.objectness is None:
        return own
    return own._replace(p_void=void_of_objectness(prediction.objectness))


def spread_over(prediction: ClassPrediction, places: Sequence[int], count: int) -> ClassPrediction:
    """Return a prediction for more classes.

    Args:
        prediction: prediction for some of the classes, with any number of leading dimensions.
        places: indices of these classes.
        count: number of all classes. The others get a probability of 0; a prediction with
            ``abstains`` abstains on them.
    """
    changes = {}
    for name, rest in (("logits", NEVER), ("abstains", True)):
        values = getattr(prediction, name)
        if values is not None:
            spread = values.new_full((*values.shape[:-1], count), rest)
            spread[..., list(places)] = values
            changes[name] = spread
    return prediction._replace(**changes)


def void_of_objectness(objectness: Tensor) -> Tensor:
    """Return the probability of "no object": logits (B, Q, 2) to (B, Q) float32."""
    return objectness.float().softmax(-1)[..., -1]


def class_logits(
    embeddings: Tensor, text: Tensor, vocabulary: Vocabulary, scale: Tensor | float
) -> Tensor:
    """Compute the scaled cosine similarity of every mask and class.

    The similarity to a class is the highest among its synonyms.

    Args:
        embeddings: mask embeddings, (B, Q, C).
        text: embeddings of the synonyms in ``vocabulary.flat``, (S, C).
        vocabulary: the K classes.
        scale: factor on the cosine.

    Returns:
        (B, Q, K) float32.
    """
    with full_precision(embeddings):
        similarity = F.normalize(embeddings.float(), dim=-1) @ F.normalize(text, dim=-1).T * scale
    return best_synonyms(similarity, vocabulary)


def best_synonyms(similarity: Tensor, vocabulary: Vocabulary | NameTensors) -> Tensor:
    """Return each class's largest similarity: (..., S) for S synonyms to (..., K)."""
    if isinstance(vocabulary, NameTensors):
        classes, count = vocabulary.class_of_synonym, vocabulary.base.shape[0]
    else:
        classes = class_of_synonym(vocabulary.synonyms).to(similarity.device)
        count = len(vocabulary)
    best = similarity.new_full((*similarity.shape[:-1], count), float("-inf"))
    return best.scatter_reduce(-1, classes.expand_as(similarity), similarity, reduce="amax")


@lru_cache(maxsize=16)
def class_of_synonym(synonyms: tuple[tuple[str, ...], ...]) -> Tensor:
    """Class index of every synonym, (S,), on the CPU."""
    with torch.inference_mode(False):  # training may use the cached tensor in a backward pass
        counts = torch.tensor([len(group) for group in synonyms], device="cpu")
        return torch.arange(len(synonyms), device="cpu").repeat_interleave(counts)
