"""Labels or captions: which of the two a model's parts are made for."""

from torch import nn

from odise_mm.errors import ConfigError, TrainingError
from odise_mm.models.classifiers.base import TrainableClassifier, require_trainable


def check_grounding(head: nn.Module, own: nn.Module) -> None:
    """Refuse a grounding loss in a model that is made for labels.

    Args:
        head: must tell objects from void where names come from captions.
        own: the model's first classifier, which must not.

    Raises:
        ConfigError: one of the two is made for labels.
    """
    has_null = isinstance(own, TrainableClassifier) and own.has_null_class
    if has_null or not _tells_objects(head):
        raise ConfigError(
            "grounding is for caption supervision: give the head objectness=True and the first "
            "classifier null_class=False, or leave grounding out to train with labels"
        )


def what_is_trained(
    head: nn.Module, own: nn.Module, grounding: nn.Module | None
) -> TrainableClassifier:
    """The model's first classifier, once it is known that the model can be trained.

    Raises:
        TrainingError: a head for captions without their loss.
        ConfigError: the first classifier cannot be trained.
    """
    if grounding is None and _tells_objects(head):
        raise TrainingError(
            "a head with objectness=True is trained with captions: add "
            "grounding=dict(type='GroundingLoss') to the model, or drop objectness"
        )
    return require_trainable(own)


def _tells_objects(head: nn.Module) -> bool:
    return getattr(head, "cls_embed", None) is not None
