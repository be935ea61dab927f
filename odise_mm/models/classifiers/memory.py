"""Classification of masks by examples: a vote of the most similar named regions."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odise_mm.errors import ConfigError
from odise_mm.models.classifiers.base import Classifier, ClassPrediction
from odise_mm.models.classifiers.clip_classifiers import pool_masks
from odise_mm.models.classifiers.region_memory import Embedder, Neighbors, RegionMemory
from odise_mm.models.heads.mask2former_head import MaskPrediction
from odise_mm.registry import MODELS
from odise_mm.utils.settings import check_number, check_text, check_whole
from odise_mm.vocabulary import Vocabulary
from odise_mm.vocabulary.files import key_of

FEATURES = "features"
"""Source of embeddings: the pyramid that the head reads, averaged inside the mask."""
_LEVEL = 1  # stride 8
_MOST_WEIGHTS = 256


@MODELS.register_module()
class MemoryClassifier(Classifier):
    """Names masks like the most similar regions of a memory.

    Let s_i be the similarity of a mask to region i, measured from the memory's baseline b, the
    cosine of unrelated regions: ``s_i = (cos_i - b) / (1 - b)``. The ``neighbors`` most similar
    regions N vote with the weights of a softmax (the weighted kNN of arXiv 1805.01978, section
    3.4), and the best similarity decides how far the memory recognizes the mask at all:

    - ``vote(c) = sum over i in N of class c of exp(s_i / t) / sum over N of exp(s_i / t)``
    - ``recognized = sigmoid((max s_i - threshold) / t)``
    - ``p(c) = recognized * vote(c)``

    Classes without a region get nothing, and neither does the rest, 1 - sum of p(c): there the
    memory abstains, and the ensemble keeps to the other classifiers. Regions whose names are not in
    the vocabulary of a call vote, too, but for no class. So a mask that looks like one of them is
    not taken for something else.

    kNN-CLIP (arXiv 2404.09447) and RetCLIP (arXiv 2601.12779) name masks by retrieval, too. The
    baseline and the threshold relative to it are ours.

    Args:
        memory: a :class:`~odise_mm.models.RegionMemory` or its file. None: an empty one.
        sources: what embeds a mask: names of classifiers before this one, for what they compare
            with class names (CLIP's embedding of the mask, the head's mask embedding), and
            ``features`` for the pyramid that the head reads, averaged inside the mask at a stride
            of 8 pixels. Several are normalized and joined, so that the cosine is their mean. None:
            all classifiers that embed masks.
        neighbors: number of regions that vote.
        threshold: similarity at which a mask is recognized with a probability of 0.5.
        temperature: t, above 0.

    Raises:
        ConfigError: a setting is not allowed.
        CheckpointError: the file cannot be read.
    """

    reads_embeddings = True

    def __init__(
        self,
        memory: RegionMemory | str | os.PathLike[str] | None = None,
        sources: Sequence[str] | None = None,
        neighbors: int = 16,
        threshold: float = 0.8,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        check_whole("neighbors", neighbors)
        check_number("threshold", threshold, -1, 1)
        check_number("temperature", temperature, 1e-4)
        if sources is not None:
            if isinstance(sources, str) or not len(sources):
                raise ConfigError(f"sources={sources!r} must be a list of names of classifiers")
            for source in sources:
                check_text("sources", source)
        if memory is None:
            memory = RegionMemory()
        elif not isinstance(memory, RegionMemory):
            memory = RegionMemory.load(memory)
        self.memory = memory
        self.sources = None if sources is None else tuple(sources)
        self.neighbors = neighbors
        self.threshold = threshold
        self.temperature = temperature
        self._sampled: tuple[object, tuple[float, ...]] | None = None

    @property
    def reads_pyramid(self) -> bool:
        """Whether ``forward`` needs ``prediction.pyramid``."""
        return self.sources is not None and FEATURES in self.sources

    @torch.no_grad()
    def forward(
        self, prediction: MaskPrediction, images: Sequence[Tensor], vocabulary: Vocabulary
    ) -> ClassPrediction:
        """See :class:`~odise_mm.models.classifiers.base.Classifier`; ``images`` is ignored.

        Raises:
            ConfigError: the masks have no embeddings of a source.
        """
        embeddings = self.embed(prediction)
        found = self.memory.search(embeddings.flatten(0, 1), self.neighbors)
        return self.vote(found, vocabulary, embeddings)

    def embed(self, prediction: MaskPrediction) -> Tensor:
        """Embed masks: (B, Q, C) float32, normalized.

        Raises:
            ConfigError: see :meth:`forward`.
        """
        parts = [F.normalize(part.float(), dim=-1) for part in self._parts(prediction).values()]
        return torch.cat(parts, dim=-1) / len(parts) ** 0.5

    def _parts(self, prediction: MaskPrediction) -> dict[str, Tensor]:
        named = dict(prediction.named or {})
        if prediction.pyramid is not None:
            named[FEATURES] = pool_masks(prediction.pyramid[_LEVEL], prediction.masks)[0]
        chosen = tuple(named) if self.sources is None else self.sources
        missing = [name for name in chosen if name not in named]
        if missing or not chosen:
            known = ", ".join(named) or "none"
            raise ConfigError(
                f"MemoryClassifier: {', '.join(missing) or 'no classifier'} embeds no masks here; "
                f"sources of this model: {known}"
            )
        return {name: named[name] for name in chosen}

    def vote(self, found: Neighbors, vocabulary: Vocabulary, embeddings: Tensor) -> ClassPrediction:
        """Turn neighbors into a class prediction.

        Args:
            found: neighbors of all masks, (B * Q, N).
            vocabulary: the K classes.
            embeddings: of the masks, (B, Q, C).

        Returns:
            A prediction with ``abstains``. p(c) is the softmax of the logits, times 1 - ``p_void``.
        """
        batch, count = embeddings.shape[:2]
        places, cosines = found.places, found.similarities.float()
        classes = _classes_of(found, vocabulary, places.device)
        total = len(vocabulary)
        known = torch.zeros(total + 1, dtype=torch.bool, device=places.device)
        known[classes] = True
        abstains = ~known[:total].expand(batch, total)
        shape = (batch, count)
        if not places.shape[1]:
            logits = cosines.new_zeros(*shape, total)
            void = cosines.new_ones(shape)
        else:
            similarity = self._relative(cosines)
            weights = (similarity / self.temperature).softmax(-1)
            votes = weights.new_zeros(len(weights), total + 1)
            votes.scatter_add_(1, classes[places], weights)  # the last column: other names
            recognized = ((similarity[:, :1] - self.threshold) / self.temperature).sigmoid()
            votes = votes[:, :total]
            void = (1 - recognized[:, 0] * votes.sum(-1)).unflatten(0, shape)
            logits = votes.log()
            logits[votes.sum(-1) == 0] = 0  # nothing to choose among, so p_void is 1
            logits = logits.unflatten(0, shape)
        return ClassPrediction(
            logits,
            p_void=void,
            embeddings=embeddings,
            abstains=abstains,
            neighbors=found.ids.unflatten(0, shape),
            similarities=cosines.unflatten(0, shape),
        )

    def _relative(self, cosines: Tensor) -> Tensor:
        baseline = self.memory.baseline
        return (cosines - baseline) / (1 - baseline)

    def embedder(self, prediction: MaskPrediction, model: nn.Module) -> Embedder:
        """Return what embeds masks in a segmentor.

        Args:
            prediction: masks that the segmentor made.
            model: the segmentor.
        """
        parts = self._parts(prediction)
        modules = [module for name in parts for module in model.embedding_modules(name)]
        dims = tuple(part.shape[-1] for part in parts.values())
        return Embedder(tuple(parts), dims, self._sample(modules))

    def _sample(self, modules: Sequence[nn.Module]) -> tuple[float, ...]:
        """Return one weight of each of some tensors; again only if weights were changed."""
        weights = list({id(p): p for m in modules for p in m.parameters()}.values())
        key = (len(weights), sum(weight._version for weight in weights))
        if self._sampled is None or self._sampled[0] != key:
            step = max(1, -(-len(weights) // _MOST_WEIGHTS))
            chosen = [w.detach().flatten()[w.numel() // 2].float() for w in weights[::step]]
            values = torch.stack(chosen).cpu().tolist() if chosen else []
            self._sampled = key, tuple(float(f"{value:.6g}") for value in values)
        return self._sampled[1]


def _classes_of(found: Neighbors, vocabulary: Vocabulary, device: torch.device) -> Tensor:
    """Return the class of every region, (N,) int64; K for names that are not in the vocabulary."""
    owner: dict[str, int] = {}
    for index, group in enumerate(vocabulary.synonyms):
        for text in group:
            owner.setdefault(key_of(text), index)
    by_name: dict[str, int] = {}
    classes = []
    for region in found.regions:
        if region.name not in by_name:
            by_name[region.name] = owner.get(key_of(region.name), len(vocabulary))
        classes.append(by_name[region.name])
    return torch.tensor(classes, dtype=torch.int64, device=device)
