"""The trained classifier of mask embeddings (ODISE, section 3.5, equations 4 and 6)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from odise_mm.config.building import build_part
from odise_mm.models.classifiers.base import (
    ClassPrediction,
    TrainableClassifier,
    class_logits,
    void_of_objectness,
)
from odise_mm.models.classifiers.mapped_names import MappedNames
from odise_mm.models.clip.prompts import Template, templates_of
from odise_mm.models.clip.text_encoder import TextEncoder
from odise_mm.models.heads.mask2former_head import MaskPrediction
from odise_mm.registry import MODELS
from odise_mm.utils.precision import full_precision
from odise_mm.utils.settings import check_flag, check_whole
from odise_mm.vocabulary import Vocabulary


@MODELS.register_module()
class OpenVocabClassifier(TrainableClassifier):
    """Compares mask embeddings with linearly projected text embeddings of the class names.

    ODISE, equation 6: ``softmax(z . T(names) / tau)`` with a learned 1 / tau. ``logit_scale`` is
    its logarithm. 1 / tau starts at 1 / 0.07 and is clamped to at most 100.

    Args:
        text_encoder: a :class:`~odise_mm.models.clip.text_encoder.TextEncoder` or its config.
        embed_dim: width of the mask embeddings. None: text embeddings are not projected, and mask
            embeddings are as wide as CLIP's (FC-CLIP).
        null_class: whether to learn an embedding of void, as in models trained with labels.
            Otherwise ``p_void`` is computed from the head's objectness (captions).
        template: prompt around a class name: ``{}`` (labels), ``a photo of a {}.`` (captions), or
            the name of a set of templates (``vild``: FC-CLIP).
    """

    def __init__(
        self,
        text_encoder: TextEncoder | dict,
        embed_dim: int | None = 256,
        null_class: bool = True,
        template: Template = "{}",
    ) -> None:
        super().__init__()
        if embed_dim is not None:
            check_whole("embed_dim", embed_dim)
        check_flag("null_class", null_class)
        templates_of(template)
        self.text_encoder = build_part(text_encoder, MODELS)
        self.template = template
        self.text_proj = None
        if embed_dim is not None:
            self.text_proj = nn.Linear(self.text_encoder.embed_dim, embed_dim)
        self.mask_embed_dim = self.text_encoder.embed_dim if embed_dim is None else embed_dim
        self._mapped = MappedNames(self.text_encoder.cache_size)
        self.logit_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
        self.null_embedding = None
        if null_class:
            self.null_embedding = nn.Parameter(torch.empty(1, self.text_encoder.embed_dim))
            self.init_null_embedding()

    def init_null_embedding(self) -> None:
        """Initialize the embedding of void with the embedding of the empty text."""
        if not self.null_embedding.is_meta:
            self.null_embedding.data = self.text_encoder([""]).to(self.null_embedding.device)

    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        """Compute the projected embeddings of prompts: (len(texts), embed_dim) float32."""
        return self._project(self.text_encoder(texts))

    def class_embeddings(self, vocabulary: Vocabulary) -> Tensor:
        """Compute the projected embeddings of all S synonyms: (S, embed_dim) float32.

        For inference, they are cached until the projection changes. Do not modify them in place.
        """
        embeddings = self.text_encoder.of_vocabulary(vocabulary, self.template)
        if self.text_proj is None:
            return embeddings
        return self._mapped.map(self.text_proj, vocabulary.synonyms, embeddings)

    def forget_vocabularies(self) -> None:
        """Clear the cache of projected class names."""
        self._mapped.forget()

    @property
    def has_null_class(self) -> bool:
        """See :class:`~odise_mm.models.classifiers.base.TrainableClassifier`."""
        return self.null_embedding is not None

    @property
    def scale(self) -> Tensor:
        """Learned factor on the cosine similarity, a scalar."""
        return self.logit_scale.exp().clamp(max=100)

    def forward(
        self, prediction: MaskPrediction, images: Sequence[Tensor], vocabulary: Vocabulary
    ) -> ClassPrediction:
        """See :class:`~odise_mm.models.classifiers.base.Classifier`; ``images`` is ignored."""
        with full_precision(prediction.embeddings):
            text = self.class_embeddings(vocabulary)
            logits = class_logits(prediction.embeddings, text, vocabulary, self.scale)
            return ClassPrediction(logits, self._p_void(prediction, logits))

    def supervised_logits(
        self, embeddings: Sequence[Tensor], vocabulary: Vocabulary
    ) -> list[Tensor]:
        """See :class:`~odise_mm.models.classifiers.base.TrainableClassifier`.

        The class names are embedded only once for all layers. Void is the null embedding.
        """
        with full_precision(embeddings[0]):
            text = self.class_embeddings(vocabulary)
            return [
                torch.cat([class_logits(e, text, vocabulary, self.scale), self._void(e)], dim=-1)
                for e in embeddings
            ]

    def word_embeddings(self, words: Sequence[Sequence[str]]) -> Tensor:
        """Compute the projected embeddings of K words of B captions: (B, K, C) float32."""
        flat = [word for caption in words for word in caption]
        with full_precision(self.logit_scale):
            embeddings = self._project(self.text_encoder.of_names(flat, self.template))
        return embeddings.unflatten(0, (len(words), -1))

    def _project(self, embeddings: Tensor) -> Tensor:
        if self.text_proj is None:
            return embeddings
        return self.text_proj(embeddings.to(self.text_proj.weight))

    def _void(self, embeddings: Tensor) -> Tensor:
        """Compute the logits of void: (B, Q, 1) float32."""
        null = nn.functional.normalize(self._project(self.null_embedding), dim=-1)
        return self.scale * nn.functional.normalize(embeddings.float(), dim=-1) @ null.T

    def _p_void(self, prediction: MaskPrediction, logits: Tensor) -> Tensor | None:
        if self.null_embedding is None:
            if prediction.objectness is None:
                raise ValueError(
                    "void cannot be predicted: set null_class=True in the classifier (label "
                    "supervision) or objectness=True in the head (caption supervision)"
                )
            return void_of_objectness(prediction.objectness)
        void = self._void(prediction.embeddings)
        return torch.cat([logits, void], dim=-1).softmax(-1)[..., -1]
