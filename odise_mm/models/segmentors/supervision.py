"""Checks that a model's parts fit the supervision, which is either labels or captions."""

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


def what_is_trained(
    head: nn.Module, own: nn.Module, grounding: nn.Module | None
) -> TrainableClassifier:
    """Return the model's first classifier if the model can be trained.

    Args:
        head: the head.
        own: the model's first classifier.
        grounding: the grounding loss; None for label supervision.

    Raises:
        TrainingError: the head is configured for caption supervision, but the grounding loss is
            missing.
        ConfigError: the first classifier cannot be trained.
    """
    if grounding is None and _predicts_objectness(head):
        raise TrainingError(
            "a head with objectness=True is trained with captions: add "
            "grounding=dict(type='GroundingLoss') to the model, or remove objectness"
        )
    return require_trainable(own)


def _predicts_objectness(head: nn.Module) -> bool:
    return getattr(head, "cls_embed", None) is not None
