"""What every classifier takes and returns."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odise_mm.errors import ConfigError
from odise_mm.models.heads.mask2former_head import MaskPrediction
from odise_mm.utils.precision import full_precision
from odise_mm.vocabulary import Vocabulary


class Opinion(NamedTuple):
    """One classifier's view of Q masks of B images among K classes.

    Attributes:
        logits: (B, Q, K).
        p_void: probability that the mask is none of them, (B, Q), or None: no view on that.
    """

    logits: Tensor
    p_void: Tensor | None = None


class Classifier(nn.Module):
    """Base of all classifiers: ``forward`` is the whole contract."""

    def forward(
        self, prediction: MaskPrediction, images: Sequence[Tensor], vocabulary: Vocabulary
    ) -> Opinion:
        """Name the masks.

        Args:
            prediction: masks and their embeddings; the masks cover the *padded* images.
            images: the unpadded images, each (3, H, W) in [0, 1], RGB.
            vocabulary: the names; may differ from call to call.
        """
        raise NotImplementedError


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
    classes = torch.tensor(vocabulary.flat[1], device=similarity.device)
    best = similarity.new_full((*similarity.shape[:-1], len(vocabulary)), float("-inf"))
    return best.scatter_reduce(-1, classes.expand_as(similarity), similarity, reduce="amax")


def fill_template(template: str, names: Sequence[str]) -> list[str]:
    """Prompts from names; ``{}`` in the template stands for the name.

    Raises:
        ConfigError: the template has no ``{}``.
    """
    if not isinstance(template, str) or "{}" not in template:
        raise ConfigError(f"the prompt template {template!r} needs a {{}} for the name")
    return [template.replace("{}", name) for name in names]
