"""Classification of masks by examples: a vote of the most similar named regions."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odise_mm.errors import ConfigError
from odise_mm.models.classifiers.base import CERTAIN, NEVER, Classifier, ClassPrediction
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
_ITSELF = 0.999  # cosine from which a mask is an example itself


@MODELS.register_module()
class MemoryClassifier(Classifier):
    """Names masks like the most similar regions of a memory.

    The similarity of a mask to a class is the logarithm of a kernel density of the class's regions
    i among the ``neighbors`` most similar ones (von Mises-Fisher kernels of width t, the weights
    of the kNN of arXiv 1805.01978, section 3.4). It is measured from the memory's baseline b, the
    cosine of unrelated regions, and its likeness l, the usual similarity of two regions with one
    name. So 0 means unrelated, and 1 another example:

    - ``S(c) = t * log(sum over i of c of exp(cos_i / t) / n_c)``
    - ``relative(c) = (S(c) - b) / (l - b) - margin / sqrt(n_c)``, for what few examples show is
      uncertain

    It is at most 4. A mask that is an example itself, with a cosine of at least 0.999, gets 5, so
    that what a user has named has that name. The ensemble weighs ``relative`` against what words
    say. Cosines are those of embeddings minus the memory's center, if it has one.

    The memory's own prediction only counts where it is looked at alone:

    - ``recognized = sigmoid((max relative - threshold) / t)``
    - ``p(c) = recognized * softmax(relative / t)(c)``

    Classes without a region get nothing, and neither does the rest, 1 - sum of p(c). Regions whose
    names are not in the vocabulary of a call count, too, but for no class. So a mask that looks
    like one of them is not taken for something else.

    kNN-CLIP (arXiv 2404.09447) and RetCLIP (arXiv 2601.12779) name masks by retrieval, too. The
    relative similarity is ours.

    Args:
        memory: a :class:`~odise_mm.models.RegionMemory` or its file. None: an empty one.
        sources: what embeds a mask: names of classifiers before this one, for what they compare
            with class names (CLIP's embedding of the mask, the head's mask embedding), and
            ``features`` for the pyramid that the head reads, averaged inside the mask at a stride
            of 8 pixels. Several are normalized and joined, so that the cosine is their mean. None:
            all classifiers that embed masks.
        neighbors: number of regions that a mask is compared with, and the largest n_c.
        threshold: relative similarity at which a mask is recognized with a probability of 0.5.
        temperature: t, above 0.
        margin: what is subtracted from the relative similarity to a class with one example; see
            above for more examples. Larger values protect the names without examples.

    Raises:
        ConfigError: a setting is not allowed.
        CheckpointError: the file cannot be read.
    """

    reads_embeddings = True

    def __init__(
        self,
        memory: RegionMemory | str | os.PathLike[str] | None = None,
        sources: Sequence[str] | None = None,
        neighbors: int = 64,
        threshold: float = 0.5,
        temperature: float = 0.05,
        margin: float = 0.08,
    ) -> None:
        super().__init__()
        check_whole("neighbors", neighbors)
        check_number("threshold", threshold, -1, 1)
        check_number("margin", margin, -1, 1)
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
        self.margin = margin
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
            A prediction with ``abstains`` and ``relative``. p(c) is the softmax of the logits,
            times 1 - ``p_void``.
        """
        batch, count = embeddings.shape[:2]
        places, cosines = found.places, found.similarities.float()
        classes = _classes_of(found, vocabulary, places.device)
        total = len(vocabulary)
        known = torch.zeros(total, dtype=torch.bool, device=places.device)
        known[classes[classes < total]] = True
        abstains = ~known.expand(batch, total)
        shape = (batch, count)
        if not places.shape[1]:
            relative = cosines.new_full((*shape, total), NEVER)
            logits = torch.zeros_like(relative)
            void = cosines.new_ones(shape)
        else:
            near = self._relative(cosines, places, classes, total)
            recognized = ((near.amax(-1) - self.threshold) / self.temperature).sigmoid()
            votes = (near / self.temperature).softmax(-1)[:, :total]
            void = (1 - recognized * votes.sum(-1)).unflatten(0, shape)
            relative = near[:, :total].unflatten(0, shape)
            logits = (relative / self.temperature).clamp_min(NEVER)
        return ClassPrediction(
            logits,
            p_void=void,
            embeddings=embeddings,
            abstains=abstains,
            neighbors=found.ids.unflatten(0, shape),
            similarities=cosines.unflatten(0, shape),
            relative=relative,
        )

    def _relative(self, cosines: Tensor, places: Tensor, classes: Tensor, total: int) -> Tensor:
        """Compute similarities to classes, (M, K'): first the K classes, then other names."""
        columns = max(total, int(classes.max()) + 1)
        sizes = classes.bincount(minlength=columns).clamp_min(1)
        best = cosines[:, :1]
        kernels = ((cosines - best) / self.temperature).exp()
        sums = cosines.new_zeros(len(cosines), columns).scatter_add_(1, classes[places], kernels)
        density = best + self.temperature * (sums / sizes.clamp_max(self.neighbors)).log()
        baseline = self.memory.baseline
        likeness = self.memory.likeness(self.temperature)
        relative = (density - baseline) / (likeness - baseline) - self.margin / sizes.sqrt()
        # A small likeness makes large numbers, but only the mask of an example is certain.
        relative = relative.clamp(max=CERTAIN - 1).masked_fill(sums == 0, NEVER)
        own = torch.where(cosines >= _ITSELF, CERTAIN, NEVER)
        return relative.scatter_reduce(1, classes[places], own, "amax")

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
    """Return the class of every region, (N,) int64; K and more for names not in the vocabulary."""
    owner: dict[str, int] = {}
    for index, group in enumerate(vocabulary.synonyms):
        for text in group:
            owner.setdefault(key_of(text), index)
    total, others = len(vocabulary), 0
    by_name: dict[str, int] = {}
    classes = []
    for region in found.regions:
        if region.name not in by_name:
            key = key_of(region.name)
            if key not in owner:
                owner[key] = total + others
                others += 1
            by_name[region.name] = owner[key]
        classes.append(by_name[region.name])
    return torch.tensor(classes, dtype=torch.int64, device=device)
