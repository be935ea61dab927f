"""Checks that a model's parts fit its supervision: labels, captions, or masks alone."""

from torch import nn

from odise_mm.errors import ConfigError, TrainingError
from odise_mm.models.classifiers.base import TrainableClassifier, require_trainable


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


def check_embeddings(head: nn.Module, own: nn.Module) -> None:
    """Check that the head computes the mask embeddings that the first classifier needs.

    Args:
        head: the head.
        own: the model's first classifier.

    Raises:
        ConfigError: the head does not embed masks.
    """
    # Other heads may compute embeddings in other ways.
    embeds_masks = getattr(head, "mask_embedding", head) is not None
    if isinstance(own, TrainableClassifier) and not embeds_masks:
        raise ConfigError(
            f"{type(own).__name__} compares mask embeddings with class names: remove "
            "embed_masks=False from the head, or name the masks by a classifier that needs no "
            "embeddings, such as MaskCLIPClassifier"
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


def _predicts_objectness(head: nn.Module) -> bool:
    return getattr(head, "cls_embed", None) is not None
