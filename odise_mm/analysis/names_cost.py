"""Cost of classifying the masks of an image, from mask embeddings to class probabilities."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from odise_mm.models import MaskPrediction, OpenVocabSegmentor
from odise_mm.vocabulary import Vocabulary


@dataclass
class NamesCost:
    """Cost of classifying the masks of a sequence of images.

    Attributes:
        rows_stacked: Number of text embeddings stacked into matrices, for the last image.
        rows_mapped: Number of text embeddings that pass the first classifier's linear layer, for
            the last image; 0 for a classifier without such a layer (FC-CLIP).
        cpu_seconds: CPU time of the process, for every image after the warm-up.
    """

    rows_stacked: int = 0
    rows_mapped: int = 0
    cpu_seconds: list[float] = field(default_factory=list)


class _RowCounter(TorchFunctionMode):
    def __init__(self, weight: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.stacked = self.mapped = 0

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.stack:
            self.stacked += len(args[0])
        elif (
            self.weight is not None
            and func is torch.nn.functional.linear
            and args[1] is self.weight
        ):
            self.mapped += len(args[0])
        return func(*args, **(kwargs or {}))


def other_orders(vocabulary: Vocabulary, count: int) -> list[Vocabulary]:
    """Make different vocabularies of the same classes by rotating their order.

    Args:
        vocabulary: The classes.
        count: Number of vocabularies to make.
    """
    rotated = []
    for start in range(1, count + 1):
        places = [(start + i) % len(vocabulary) for i in range(len(vocabulary))]
        fields = (vocabulary.synonyms, vocabulary.is_thing, vocabulary.source_names)
        synonyms, flags, sources = (tuple(values[i] for i in places) for values in fields)
        rotated.append(Vocabulary(synonyms, flags, vocabulary.name, sources))
    return rotated


@torch.no_grad()
def measure_names(
    model: OpenVocabSegmentor, vocabularies: Sequence[Vocabulary], masks: int, repeats: int
) -> NamesCost:
    """Classify random mask embeddings, without running CLIP's image tower.

    Args:
        model: The model. Further classifiers than the first must have ``name_embeddings``.
        vocabularies: Image i uses vocabulary i modulo their number. The warm-up, which uses each
            of them once, embeds their names.
        masks: Number of masks per image.
        repeats: Number of measured images after the warm-up.

    Returns:
        Counted rows and CPU times.
    """
    own, others = model.classifiers[0], model.classifiers[1:]
    device = own.logit_scale.device
    draw = torch.Generator().manual_seed(0)
    embeddings = torch.randn(1, masks, own.mask_embed_dim, generator=draw).to(device)
    of_clip = torch.randn(1, masks, own.text_encoder.embed_dim, generator=draw).to(device)
    prediction = MaskPrediction(embeddings.new_zeros(1, masks, 4, 4), embeddings)

    def name(vocabulary: Vocabulary) -> Tensor:
        class_predictions = [own(prediction, [], vocabulary)]
        class_predictions += [other.name_embeddings(of_clip, vocabulary) for other in others]
        return model.ensemble(class_predictions, vocabulary)

    for vocabulary in vocabularies:
        name(vocabulary)
    cost = NamesCost()
    for i in range(repeats):
        start = time.process_time()
        name(vocabularies[i % len(vocabularies)])
        cost.cpu_seconds.append(time.process_time() - start)
    weight = None if own.text_proj is None else own.text_proj.weight
    with _RowCounter(weight) as counter:
        name(vocabularies[repeats % len(vocabularies)])
    cost.rows_stacked, cost.rows_mapped = counter.stacked, counter.mapped
    return cost
