"""Checks that a model's parts fit its supervision: labels, captions, or masks alone."""

from collections.abc import Iterable, Sequence

from torch import nn

from odise_mm.errors import ConfigError, TrainingError
from odise_mm.models.classifiers.base import TrainableClassifier, require_trainable
from odise_mm.models.classifiers.ensemble import GeometricEnsemble


def check_grounding(head: nn.Module, own: nn.Module) -> None:
    """Check that a model with a grounding loss is configured for caption supervision.

    Args:
        head: the head, which must predict objectness.
        own: the model's first classifier, which must not have a null class.

    Raises:
        ConfigError: one of the two is configured for label supervision.
    """
    has_null = isinstance(own, TrainableClassifier) and own.has_null_class
    if has_null or not _predicts_objectness(head):
        raise ConfigError(
            "grounding is for caption supervision: set objectness=True in the head and "
            "null_class=False in the first classifier, or remove grounding to train with labels"
        )


def check_embeddings(head: nn.Module, classifiers: Iterable[nn.Module]) -> None:
    """Check that the head computes the mask embeddings that the trainable classifiers need.

    Args:
        head: the head.
        classifiers: the model's classifiers.

    Raises:
        ConfigError: the head does not embed masks, or its embeddings have another width.
    """
    # Other heads may compute embeddings in other ways.
    embedding = getattr(head, "mask_embedding", head)
    for classifier in classifiers:
        if not isinstance(classifier, TrainableClassifier):
            continue
        kind = type(classifier).__name__
        if embedding is None:
            raise ConfigError(
                f"{kind} compares mask embeddings with class names: remove "
                "embed_masks=False from the head, or name the masks by a classifier that needs no "
                "embeddings, such as MaskCLIPClassifier"
            )
        given, needed = getattr(embedding, "embed_dim", None), classifier.mask_embed_dim
        if None not in (given, needed) and given != needed:
            raise ConfigError(
                f"the head's mask embeddings have {given} channels, but {kind} compares them with "
                f"class names of {needed} channels: set model.head.embed_dim={needed}. Without a "
                "projection of the names (embed_dim=None of the classifier), this is the width of "
                "CLIP's embeddings"
            )


def check_void(head: nn.Module, classifiers: Sequence[nn.Module], ensemble: nn.Module) -> None:
    """Check that the first classifier is the one that predicts void, if another one does.

    Args:
        head: the head.
        classifiers: the model's classifiers.
        ensemble: the model's ensemble.

    Raises:
        ConfigError: the classifiers are in the wrong order for a :class:`GeometricEnsemble`.
    """
    first, *others = classifiers
    if isinstance(first, TrainableClassifier) or _predicts_objectness(head):
        return
    if not isinstance(ensemble, GeometricEnsemble):
        return
    for place, other in enumerate(others, start=1):
        if isinstance(other, TrainableClassifier) and other.has_null_class:
            raise ConfigError(
                f"model.classifiers.{place}, {type(other).__name__}, predicts void, so it must be "
                f"the first classifier, before {type(first).__name__}: {type(ensemble).__name__} "
                "takes the first prediction for the model's own and the second for CLIP's"
            )


def what_is_trained(
    head: nn.Module, own: nn.Module, grounding: nn.Module | None
) -> TrainableClassifier | None:
    """Return the classifier that is trained, if the model can be trained.

    Args:
        head: the head.
        own: the model's first classifier.
        grounding: the grounding loss; None for supervision by labels, or by masks alone.

    Returns:
        The model's first classifier. None if only the masks are trained: the head predicts
        objectness, there is no grounding loss, and the first classifier is not trainable.

    Raises:
        TrainingError: the loss of a part that would be trained is missing.
        ConfigError: the first classifier cannot be trained.
    """
    if grounding is not None or not _predicts_objectness(head):
        return require_trainable(own)
    if isinstance(own, TrainableClassifier):
        raise TrainingError(
            "a head with objectness=True is trained with captions: add "
            "grounding=dict(type='GroundingLoss') to the model, or remove objectness"
        )
    if getattr(head, "mask_embedding", None) is not None:
        raise TrainingError(
            "no loss trains the mask embeddings of a model that is trained with masks alone: set "
            "embed_masks=False in the head"
        )
    return None


def trains_with_labels(head: nn.Module, grounding: nn.Module | None) -> bool:
    """Return whether a model is trained with labels, not with captions or with masks alone."""
    return grounding is None and not _predicts_objectness(head)


def _predicts_objectness(head: nn.Module) -> bool:
    return getattr(head, "cls_embed", None) is not None
