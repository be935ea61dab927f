"""Vocabularies: the names that a model may give, as data.

A vocabulary is a list of classes, a class a list of synonyms and a flag, thing or stuff. It comes
from what a user typed, from a built-in list, from a file, or from a dataset's metainfo, and knows
nothing of prompts or embeddings. See docs/vocabularies.md for the formats.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from odise_mm.errors import VocabularyError
from odise_mm.utils.files import write_text
from odise_mm.vocabulary.files import (
    RawClass,
    classes_of_metainfo,
    format_classes,
    key_of,
)


@dataclass(frozen=True, repr=False)
class Vocabulary:
    """Classes, each with its synonyms and a thing or stuff flag. Immutable and hashable.

    Two vocabularies are equal when their classes, flags and dataset names are; ``name`` is a
    label for people.

    Args:
        synonyms: One tuple of names per class; the first is the one that is shown.
        is_thing: One flag per class.
        name: Where the classes come from, for logs and titles.
        source_names: The dataset's own class names, e.g. ``wall-other-merged`` where the first
            synonym is ``wall``. Empty: the first synonyms.

    Raises:
        VocabularyError: No class, a class without a name, or lengths that differ.
    """

    synonyms: tuple[tuple[str, ...], ...]
    is_thing: tuple[bool, ...]
    name: str = field(default="texts", compare=False)
    source_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(isinstance(group, str) for group in self.synonyms):
            raise VocabularyError("synonyms takes one tuple of names per class, not one name")
        # Lists are accepted and frozen here, so that every instance can be hashed.
        object.__setattr__(self, "synonyms", tuple(tuple(group) for group in self.synonyms))
        object.__setattr__(self, "is_thing", tuple(bool(flag) for flag in self.is_thing))
        count = len(self.synonyms)
        if count == 0:
            raise VocabularyError(f"vocabulary '{self.name}' has no class; give at least one name")
        for index, group in enumerate(self.synonyms):
            if not group or not all(isinstance(s, str) and s.strip() for s in group):
                raise VocabularyError(
                    f"class {index} of vocabulary '{self.name}' has an empty name: {group!r}"
                )
        object.__setattr__(self, "source_names", tuple(self.source_names) or self.names)
        for what in ("is_thing", "source_names"):
            if len(getattr(self, what)) != count:
                raise VocabularyError(
                    f"vocabulary '{self.name}' has {count} classes but "
                    f"{len(getattr(self, what))} entries in {what}"
                )

    def __len__(self) -> int:
        return len(self.synonyms)

    def __repr__(self) -> str:
        things = sum(self.is_thing)
        return (
            f"Vocabulary('{self.name}', {len(self)} classes: "
            f"{things} things, {len(self) - things} stuff)"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The first synonym of every class."""
        return tuple(group[0] for group in self.synonyms)

    @property
    def flat(self) -> tuple[list[str], list[int]]:
        """All synonyms in class order, and the class index of each."""
        texts = [text for group in self.synonyms for text in group]
        classes = [index for index, group in enumerate(self.synonyms) for _ in group]
        return texts, classes

    @property
    def metainfo(self) -> dict[str, tuple[str, ...]]:
        """``classes``, ``thing_classes``, ``stuff_classes`` by the dataset's own names.

        These are the names that mmdet's and mmseg's datasets look up in annotation files.
        """
        flagged = list(zip(self.source_names, self.is_thing, strict=True))
        return {
            "classes": self.source_names,
            "thing_classes": tuple(name for name, thing in flagged if thing),
            "stuff_classes": tuple(name for name, thing in flagged if not thing),
        }

    @classmethod
    def parse(
        cls,
        texts: "str | Vocabulary | Sequence[str | Vocabulary] | None",
        stuff_texts: str | Sequence[str] | None = None,
    ) -> "Vocabulary":
        """Makes a vocabulary of what a user typed.

        ``;`` stands between classes and ``,`` between the synonyms of a class; a sequence is as if
        its items stood between ``;``. (mmdet's open-vocabulary demos separate names with ``.``; a
        warning points out what looks like that, or like a list with commas alone.) Classes in
        ``texts`` are things, those in ``stuff_texts`` stuff. Where all that stands between two
        ``;`` are names of built-in vocabularies (in any case; ``-``, ``_`` and spaces don't matter)
        or paths of vocabulary files, their classes are taken with their own flags. Built-in and
        typed classes are joined in the order given, as by ``+``; typed stuff comes last.

        Args:
            texts: E.g. ``'black pickup truck, pickup truck; dune'``, ``'coco, ade20k'``,
                ``['coco', 'zeppelin; dune']``; None if there is only stuff.
            stuff_texts: Names of stuff classes.

        Raises:
            VocabularyError: No name at all, a name in two typed classes, a path without a file,
                or a built-in vocabulary as synonym of a typed name or as ``stuff_texts``.
        """
        from odise_mm.vocabulary.parsing import parse_names

        return parse_names(texts, stuff_texts)

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str],
        things: "str | Vocabulary | Iterable[int] | None" = None,
    ) -> "Vocabulary":
        """Loads a built-in vocabulary by name, or one from a file.

        Files: our own text format, the ``id:name,name`` text format, or JSON with mmdet's metainfo
        or with COCO's ``categories``. In the ``id:`` format classes come in ascending order of
        their ids, the entry ``invalid_class_id`` is skipped, and a name may stand in two classes.

        Args:
            name_or_path: One of ``BUILTIN`` or a path.
            things: Which classes of an ``id:name,name`` file are things, as the format does not
                say: their ids, or a vocabulary (or its name) to take the flags from. With as many
                classes, most of which share a name with the class at the same place, flags go by
                place, else by the first name that is known there. None: all are things.

        Raises:
            VocabularyError: Unknown name or path, unreadable file, bad line (``file:line`` in the
                message), or ``things`` that don't fit.
        """
        from odise_mm.vocabulary.loading import load_vocabulary

        return load_vocabulary(name_or_path, things)

    @classmethod
    def from_metainfo(cls, metainfo: Mapping[str, Any], name: str = "metainfo") -> "Vocabulary":
        """Takes over a dataset's metainfo, class names as they are spelled there.

        Args:
            metainfo: mmdet's or mmseg's metainfo with ``classes`` and optionally ``thing_classes``
                and ``stuff_classes`` (or only these two). Commas in a name separate synonyms. With
                one of the two lists the other classes are the other kind; with none, all are
                things.
            name: Label of the result.

        Raises:
            VocabularyError: No class names, or a thing or stuff name that is not a class.
        """
        return cls.from_classes(classes_of_metainfo(metainfo), name)

    @classmethod
    def join(cls, parts: "Sequence[Vocabulary]") -> "Vocabulary":
        """Joins vocabularies in order; classes that share a synonym become one.

        The classes of the first part keep their indices. A later class that shares a synonym with
        one of an earlier part is merged into it (its first known synonym decides): the earlier
        one's name, flag and dataset name stay, and gain the synonyms that no earlier part has.
        Classes of one part stay apart, even if a label file gives two of them the same name.

        Raises:
            VocabularyError: No part.
        """
        if not parts:
            raise VocabularyError("nothing to join; give at least one vocabulary")
        first, *others = parts
        if not others:
            return first
        groups = [list(group) for group in first.synonyms]
        flags, sources = list(first.is_thing), list(first.source_names)
        owner: dict[str, int] = {}
        for index, group in enumerate(groups):
            for text in group:
                owner.setdefault(key_of(text), index)
        for part in others:
            claimed: dict[str, int] = {}
            for other, flag, source in zip(
                part.synonyms, part.is_thing, part.source_names, strict=True
            ):
                index = next((owner[k] for k in map(key_of, other) if k in owner), len(groups))
                if index == len(groups):
                    groups.append([])
                    flags.append(flag)
                    sources.append(source)
                held = set(map(key_of, groups[index]))
                for text in other:
                    if key_of(text) not in owner and key_of(text) not in held:
                        groups[index].append(text)
                        claimed.setdefault(key_of(text), index)
            owner |= claimed
        label = "+".join(dict.fromkeys(part.name for part in parts))
        return cls(tuple(map(tuple, groups)), tuple(flags), label, tuple(sources))

    def __add__(self, other: "Vocabulary") -> "Vocabulary":
        """``join`` of the two."""
        return self.join((self, other)) if isinstance(other, Vocabulary) else NotImplemented

    def overlap(self, other: "Vocabulary") -> tuple[bool, ...]:
        """Whether each class of this vocabulary shares a synonym, spelled alike, with ``other``.

        Case and surrounding space don't matter. Classes that share one with the training
        vocabulary count as seen (ODISE, arXiv 2303.04803,
        open-vocabulary inference).
        """
        known = {key_of(text) for group in other.synonyms for text in group}
        return tuple(any(key_of(text) in known for text in group) for group in self.synonyms)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes our text format, which ``load`` reads back.

        Raises:
            VocabularyError: A name holds a character that separates names in the format.
        """
        rows = zip(self.synonyms, self.is_thing, self.source_names, strict=True)
        classes = [RawClass(group, thing, source) for group, thing, source in rows]
        write_text(path, format_classes(classes, repr(self)))

    @classmethod
    def from_classes(cls, classes: Sequence[RawClass], name: str) -> "Vocabulary":
        """Makes one of the classes that a file or a text holds."""
        return cls(
            tuple(item.synonyms for item in classes),
            tuple(item.is_thing for item in classes),
            name,
            tuple(item.source or item.synonyms[0] for item in classes),
        )
