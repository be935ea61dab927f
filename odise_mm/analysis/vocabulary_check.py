"""Check of class names before a run: names that CLIP can hardly tell apart or cuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.config import Config

from odise_mm.benchmarks.tables import Table
from odise_mm.config.building import build_part
from odise_mm.models.clip.prompts import Template, fill_template, templates_of
from odise_mm.models.clip.text_encoder import TextEncoder
from odise_mm.registry import MODELS
from odise_mm.vocabulary import Vocabulary

_ROWS_AT_A_TIME = 1024  # of the similarity matrix, which is never in memory as a whole


class NearPair(NamedTuple):
    """Two classes, with the pair of their names that is most similar."""

    similarity: float
    """Cosine of the text embeddings, -1 to 1."""
    first: str
    """Name of the first class."""
    second: str
    """Name of the second class."""
    classes: tuple[int, int]
    """Class indices."""


@dataclass
class VocabularyCheck:
    """What was found in a vocabulary."""

    vocabulary: Vocabulary
    near: list[NearPair]
    """The nearest pairs of classes, the nearest first."""
    cut: dict[str, int]
    """Names that are too long for CLIP in a prompt, with the number of tokens of the prompt."""
    unseen: list[str] = field(default_factory=list)
    """Classes that share no name with the training vocabulary."""
    train_vocabulary: Vocabulary | None = None

    def to_dict(self) -> dict:
        """Return the content in JSON types."""
        trained = self.train_vocabulary
        return dict(
            classes=len(self.vocabulary),
            things=sum(self.vocabulary.is_thing),
            names=len(self.vocabulary.flat[0]),
            near=[pair._asdict() for pair in self.near],
            cut=self.cut,
            train_vocabulary=None if trained is None else trained.name,
            unseen=None if trained is None else self.unseen,
        )

    def tables(self) -> list[Table]:
        """Return the content as tables."""
        things = sum(self.vocabulary.is_thing)
        notes = [
            f"{len(self.vocabulary):,} classes ({things:,} things, "
            f"{len(self.vocabulary) - things:,} stuff) with {len(self.vocabulary.flat[0]):,} names"
        ]
        if self.train_vocabulary is not None:
            seen = len(self.vocabulary) - len(self.unseen)
            line = f"{seen:,} classes are seen: they share a name with {self.train_vocabulary.name}"
            if self.unseen:
                shown = ", ".join(self.unseen[:12])
                more = f", and {len(self.unseen) - 12:,} more" if len(self.unseen) > 12 else ""
                line += f". Unseen: {shown}{more}"
            notes.append(line)
        rows = [[p.first, p.second, f"{p.similarity:.3f}"] for p in self.near]
        tables = [Table("Nearest pairs of classes", ["name", "name", "cosine"], rows, notes)]
        if self.cut:
            cut = [[name, str(count)] for name, count in self.cut.items()]
            tables.append(Table("Names that CLIP cuts", ["name", "tokens of the prompt"], cut))
        return tables


def check_vocabulary(
    vocabulary: Vocabulary,
    encoder: TextEncoder,
    template: Template = "a photo of a {}.",
    pairs: int = 20,
    train_vocabulary: Vocabulary | None = None,
) -> VocabularyCheck:
    """Check the names of a vocabulary.

    Args:
        vocabulary: the classes.
        encoder: CLIP's text encoder.
        template: see :data:`~odise_mm.models.clip.prompts.Template`.
        pairs: number of nearest pairs.
        train_vocabulary: the classes of the training data; None: seen and unseen are left out.
    """
    names, owners = vocabulary.flat
    embeddings = F.normalize(encoder.of_names(names, template), dim=-1)
    cut = {}
    for each in templates_of(template):
        for name, prompt in zip(names, fill_template(each, names), strict=True):
            for length in encoder.too_long([prompt]).values():
                cut[name] = max(length, cut.get(name, 0))
    unseen = []
    if train_vocabulary is not None:
        seen = vocabulary.overlap(train_vocabulary)
        unseen = [n for n, known in zip(vocabulary.names, seen, strict=True) if not known]
    near = nearest_pairs(embeddings, owners, names, pairs)
    return VocabularyCheck(vocabulary, near, cut, unseen, train_vocabulary)


def nearest_pairs(
    embeddings: torch.Tensor, owners: Sequence[int], names: Sequence[str], count: int
) -> list[NearPair]:
    """Return the nearest pairs of different classes.

    Args:
        embeddings: (S, C), L2-normalized.
        owners: class index of every name.
        names: S names.
        count: number of pairs.

    Returns:
        At most ``count`` pairs, the nearest first, each pair of classes once.
    """
    of_class = torch.as_tensor(owners, device=embeddings.device)
    best: dict[tuple[int, int], NearPair] = {}
    for start in range(0, len(names), _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        cosines = embeddings[rows] @ embeddings.T
        cosines[of_class[rows, None] >= of_class] = -2.0  # each pair of classes once
        # Several names of a pair of classes may be among the nearest ones.
        values, places = cosines.flatten().topk(min(cosines.numel(), 50 * count))
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            if value <= -2:
                break
            first, second = start + place // len(names), place % len(names)
            key = (owners[first], owners[second])
            if key not in best or value > best[key].similarity:
                best[key] = NearPair(value, names[first], names[second], key)
    return sorted(best.values(), key=lambda pair: (-pair.similarity, pair.classes))[:count]


def build_encoder(cfg: Config) -> TextEncoder:
    """Build the text encoder of a config, without the rest of the model.

    Raises:
        ConfigError: the config has no CLIP.
        CheckpointError: CLIP's weights are missing or damaged.
    """
    from odise_mm.errors import ConfigError

    if cfg.model.get("clip") is None:
        raise ConfigError(f"{cfg.filename}: the model has no CLIP, so names have no embeddings")
    clip = build_part(cfg.model.clip, MODELS)
    return build_part(cfg.model.get("text_encoder") or dict(type="TextEncoder"), MODELS, clip=clip)
