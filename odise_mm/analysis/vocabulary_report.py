"""Properties of a vocabulary: similar, long and repeated names, and which classes are base classes.

No image is needed: only the text tower of a CLIP is run, once for each name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from odise_mm.analysis.meta import load_model_config
from odise_mm.benchmarks.tables import Table
from odise_mm.config.building import build_part
from odise_mm.config.changing import set_frozen_weights
from odise_mm.errors import ConfigError
from odise_mm.models import TextEncoder
from odise_mm.models.clip.prompts import Template, fill_each, templates_of
from odise_mm.registry import MODELS
from odise_mm.vocabulary import Vocabulary
from odise_mm.vocabulary.files import key_of

_ROWS = 1024  # similarities of so many names with all names are in memory at a time


@dataclass(frozen=True)
class Pair:
    """Two classes and their most similar names.

    Attributes:
        classes: First synonyms of the two classes.
        names: The most similar synonyms, one of each class.
        cosine: Cosine of the angle between the text embeddings of ``names``.
    """

    classes: tuple[str, str]
    names: tuple[str, str]
    cosine: float


@dataclass(frozen=True)
class ClassFacts:
    """Facts about a class.

    Attributes:
        name: First synonym.
        is_thing: Whether it is a thing.
        names: Number of synonyms.
        base: Whether it is a base class, that is, it shares a name with the training vocabulary.
            None without a training vocabulary.
        trained_as: Class of the training vocabulary that shares a name with it, if any.
        shared_name: First of these names, as it is written in this vocabulary.
        nearest: Class with the most similar name; None if there is only one class.
        cosine: Cosine of the angle between their most similar names.
    """

    name: str
    is_thing: bool
    names: int
    base: bool | None
    trained_as: str | None
    shared_name: str | None
    nearest: str | None
    cosine: float | None


@dataclass(frozen=True)
class VocabularyReport:
    """Properties of a vocabulary.

    Attributes:
        vocabulary: Its name.
        templates: Prompt templates of the text embeddings.
        context: Number of tokens that the text tower accepts, without start and end token.
        classes: One entry per class, in order.
        pairs: The most similar pairs of classes, most similar first.
        cut: Names that CLIP cuts off -> number of tokens of the longest prompt.
        repeated: Name -> first synonyms of the classes that have it, for names of several classes.
    """

    vocabulary: str
    templates: tuple[str, ...]
    context: int
    classes: list[ClassFacts]
    pairs: list[Pair]
    cut: dict[str, int]
    repeated: dict[str, list[str]]

    def to_dict(self) -> dict[str, Any]:
        """Return the report in JSON types."""
        return asdict(self)


def examine(
    encoder: TextEncoder,
    vocabulary: Vocabulary,
    template: Template,
    trained: Vocabulary | None = None,
    top: int = 20,
) -> VocabularyReport:
    """Examine a vocabulary.

    Args:
        encoder: Text encoder.
        vocabulary: The vocabulary.
        template: Prompt template, or set of templates, of the text embeddings.
        trained: Training vocabulary.
        top: Number of pairs to report.

    Raises:
        VocabularyError: A name has a word that the text encoder does not know (only encoders with
            their own list of words).
    """
    names, owners = vocabulary.flat
    embeddings = F.normalize(encoder.of_vocabulary(vocabulary, template), dim=-1)
    similar = class_similarities(embeddings, owners)
    similar.fill_diagonal_(-torch.inf)
    return VocabularyReport(
        vocabulary=vocabulary.name,
        templates=templates_of(template),
        context=encoder.clip.context_length - 2,
        classes=_class_facts(vocabulary, trained, similar),
        pairs=nearest_pairs(vocabulary, embeddings, similar, top),
        cut=cut_names(encoder, names, templates_of(template)),
        repeated=repeated_names(vocabulary),
    )


def class_similarities(embeddings: Tensor, owners: Sequence[int]) -> Tensor:
    """Return the similarity of the most similar names of every two classes.

    Args:
        embeddings: (S, C), L2-normalized embeddings of all names.
        owners: S class indices, ascending and without gaps.

    Returns:
        (K, K) cosines, symmetric.
    """
    index = torch.tensor(owners, device=embeddings.device)
    count = int(index[-1]) + 1
    between = embeddings.new_full((count, count), -torch.inf)
    for start in range(0, len(embeddings), _ROWS):
        rows = slice(start, start + _ROWS)
        cosines = embeddings[rows] @ embeddings.T
        of_class = cosines.new_full((len(cosines), count), -torch.inf)
        of_class.scatter_reduce_(1, index.expand_as(cosines), cosines, "amax")
        between.scatter_reduce_(0, index[rows, None].expand_as(of_class), of_class, "amax")
    return torch.maximum(between, between.T)


def nearest_pairs(
    vocabulary: Vocabulary, embeddings: Tensor, similar: Tensor, top: int
) -> list[Pair]:
    """Return the most similar pairs of classes, with the names that are most similar.

    Args:
        vocabulary: K classes with S names.
        embeddings: (S, C), L2-normalized embeddings of all names.
        similar: (K, K) from :func:`class_similarities`.
        top: Largest number of pairs.
    """
    _, owners = vocabulary.flat
    starts: dict[int, int] = {}
    for row, label in enumerate(owners):
        starts.setdefault(label, row)
    lower = torch.ones_like(similar, dtype=torch.bool).tril_()
    upper = similar.masked_fill(lower, -torch.inf)
    count = min(top, len(vocabulary) * (len(vocabulary) - 1) // 2)
    order = upper.flatten().topk(count).indices.tolist()
    pairs = []
    for place in order:
        one, other = divmod(place, len(vocabulary))
        groups = vocabulary.synonyms[one], vocabulary.synonyms[other]
        rows = [
            embeddings[starts[label] : starts[label] + len(group)]
            for label, group in zip((one, other), groups, strict=True)
        ]
        found = rows[0] @ rows[1].T
        i, j = divmod(int(found.argmax()), len(groups[1]))
        classes = (groups[0][0], groups[1][0])
        pairs.append(Pair(classes, (groups[0][i], groups[1][j]), float(found[i, j])))
    # cosines of other products differ in the last bits, which may change the order of equal ones
    return sorted(pairs, key=lambda pair: -pair.cosine)


def repeated_names(vocabulary: Vocabulary) -> dict[str, list[str]]:
    """Return the names that several classes have, with the first synonyms of these classes.

    Upper and lower case and extra white space don't matter.
    """
    owners: dict[str, list[int]] = defaultdict(list)
    for name, label in zip(*vocabulary.flat, strict=True):
        if label not in owners[key_of(name)]:
            owners[key_of(name)].append(label)
    return {
        name: [vocabulary.names[label] for label in labels]
        for name, labels in owners.items()
        if len(labels) > 1
    }


def cut_names(
    encoder: TextEncoder, names: Sequence[str], templates: Sequence[str]
) -> dict[str, int]:
    """Return the names whose longest prompt exceeds CLIP's context length, with its tokens."""
    prompts = {name: fill_each(templates, name) for name in names}
    lengths = encoder.too_long([prompt for each in prompts.values() for prompt in each])
    found = {name: max(lengths.get(p, 0) for p in each) for name, each in prompts.items()}
    return {name: length for name, length in found.items() if length}


def _class_facts(
    vocabulary: Vocabulary, trained: Vocabulary | None, similar: Tensor
) -> list[ClassFacts]:
    owner: dict[str, int] = {}
    for name, label in zip(*(trained.flat if trained else ((), ())), strict=True):
        owner.setdefault(key_of(name), label)
    flags = None if trained is None else vocabulary.overlap(trained)
    best = similar.max(1)
    facts = []
    for label, group in enumerate(vocabulary.synonyms):
        shared = next((name for name in group if key_of(name) in owner), None)
        cosine = float(best.values[label])
        alone = len(vocabulary) == 1
        facts.append(
            ClassFacts(
                name=group[0],
                is_thing=vocabulary.is_thing[label],
                names=len(group),
                base=None if flags is None else flags[label],
                trained_as=None
                if trained is None or shared is None
                else trained.names[owner[key_of(shared)]],
                shared_name=shared,
                nearest=None if alone else vocabulary.names[int(best.indices[label])],
                cosine=None if alone else cosine,
            )
        )
    return facts


def load_encoder(
    config: str, weights: str | None = None
) -> tuple[TextEncoder, Template, Vocabulary | None]:
    """Load the text encoder of a config.

    Args:
        config: Config file, or its name under ``configs/``. Its CLIP is loaded, or downloaded, and
            nothing else.
        weights: Weights of CLIP to use instead of the config's, a file or a tag of open_clip.

    Returns:
        The encoder, the prompt template of the config's first classifier, and its training
        vocabulary, if it has one.

    Raises:
        ConfigError: The config has no CLIP.
        CheckpointError: The weights of CLIP are missing.
    """
    loaded = load_model_config(config, weights=True)
    if weights is not None:
        set_frozen_weights(loaded, "clip", weights)
    cfg = loaded.model
    if not isinstance(cfg.get("clip"), dict):
        raise ConfigError(f"{config} has no CLIP (model.clip), which embeds the names")
    classifiers = cfg.get("classifiers") or [{}]
    template = classifiers[0].get("template", "{}")
    ensemble = cfg.get("ensemble") or {}
    trained = ensemble.get("train_vocabulary") or cfg.get("vocabulary")
    vocabulary = Vocabulary.load(trained) if isinstance(trained, str) else trained
    settings = cfg.get("text_encoder") or dict(type="TextEncoder")
    encoder = build_part(settings, MODELS, clip=build_part(cfg.clip, MODELS))
    return encoder, template, vocabulary


def make_tables(report: VocabularyReport, per_class: bool = False) -> list[Table]:
    """Make the tables of a report.

    Args:
        report: The report.
        per_class: Also make a table with one row per class.
    """
    count = len(report.classes)
    things = sum(facts.is_thing for facts in report.classes)
    known = [facts for facts in report.classes if facts.base is not None]
    novel = [facts.name for facts in known if not facts.base]
    summary = Table(f"Vocabulary {report.vocabulary}", ("", "number"))
    summary.rows = [
        ("classes", f"{count:,}"),
        ("things", f"{things:,}"),
        ("stuff", f"{count - things:,}"),
        ("names, with synonyms", f"{sum(facts.names for facts in report.classes):,}"),
        ("names in several classes", f"{len(report.repeated):,}"),
        (f"names cut at {report.context} tokens", f"{len(report.cut):,}"),
    ]
    if known:
        summary.rows += [
            ("base classes (name in the training vocabulary)", f"{count - len(novel):,}"),
            ("novel classes", f"{len(novel):,}"),
        ]
    number = len(report.templates)
    prompts = repr(report.templates[0]) if number == 1 else f"the mean of {number} templates"
    if known and novel:
        shown = ", ".join(novel[:20]) + (f", and {len(novel) - 20} more" * (len(novel) > 20))
        summary.notes.append(f"Novel: {shown}.")
    near = Table(
        f"Most similar names, in {prompts}", ("class", "other class", "names compared", "cosine")
    )
    near.rows = [
        (*pair.classes, f"{pair.names[0]} - {pair.names[1]}", f"{pair.cosine:.3f}")
        for pair in report.pairs
    ]
    tables = [summary, near]
    if report.repeated:
        table = Table("Names in several classes", ("name", "classes"))
        table.rows = [(name, "; ".join(classes)) for name, classes in report.repeated.items()]
        tables.append(table)
    if report.cut:
        table = Table(f"Names cut at {report.context} tokens", ("name", "tokens"))
        table.rows = [(name, f"{tokens:,}") for name, tokens in report.cut.items()]
        tables.append(table)
    if per_class:
        tables.append(_class_table(report))
    return tables


def _class_table(report: VocabularyReport) -> Table:
    columns = ("class", "kind", "names", "base or novel", "trained as", "nearest class", "cosine")
    table = Table("Classes", columns)
    for facts in report.classes:
        base = "-" if facts.base is None else "base" if facts.base else "novel"
        cosine = "-" if facts.cosine is None else f"{facts.cosine:.3f}"
        kind = "thing" if facts.is_thing else "stuff"
        named = (base, facts.trained_as or "-", facts.nearest or "-", cosine)
        table.rows.append((facts.name, kind, str(facts.names), *named))
    return table
