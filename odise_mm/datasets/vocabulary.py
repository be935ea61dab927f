"""Vocabularies: the names that a model may give, as data.

A vocabulary is a list of classes, a class a list of synonyms and a flag, thing or stuff. It comes
from what a user typed, from a built-in list, from a file, or from a data set's metainfo, and knows
nothing of prompts or embeddings. See docs/vocabularies.md for the formats.
"""

import difflib
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from odise_mm.datasets.typed_names import KnownGroups, warn_of_other_conventions
from odise_mm.datasets.vocabulary_files import (
    RawClass,
    classes_of_metainfo,
    clean,
    format_classes,
    read_classes,
    split_synonyms,
)
from odise_mm.errors import VocabularyError
from odise_mm.utils.files import write_text

__all__ = ["BUILTIN", "Vocabulary", "VocabularyError"]

BUILTIN: tuple[str, ...] = (
    "coco",
    "ade20k",
    "lvis",
    "cityscapes",
    "pascal_context59",
    "voc20",
    "voc21",
    "mapillary",
)
_ALIASES = {"pc59": "pascal_context59"}
_FOLDER = Path(__file__).parent / "vocabularies"


@dataclass(frozen=True, repr=False)
class Vocabulary:
    """Classes, each with its synonyms and a thing or stuff flag. Immutable and hashable.

    Two vocabularies are equal when their classes, flags and data set names are; ``name`` is a
    label for people.

    Args:
        synonyms: One tuple of names per class; the first is the one that is shown.
        is_thing: One flag per class.
        name: Where the classes come from, for logs and titles.
        source_names: The data set's own class names, e.g. ``wall-other-merged`` where the first
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
        """``classes``, ``thing_classes``, ``stuff_classes`` by the data set's own names.

        These are the names that mmdet's and mmseg's data sets look up in annotation files.
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
        parts: list[Vocabulary] = []
        typed: list[RawClass] = []
        owner: dict[str, tuple[str, ...]] = {}
        as_typed: dict[str, list[tuple[str, tuple[str, ...]]]] = {}

        def flush() -> None:
            if typed:
                parts.append(cls._build(typed, "texts"))
                typed.clear()

        for argument, given in (("texts", texts), ("stuff_texts", stuff_texts)):
            thing = argument == "texts"
            for segment in () if given is None else _segments(given, argument):
                found = [segment] if isinstance(segment, Vocabulary) else _vocabularies_in(segment)
                if found and not thing:
                    raise VocabularyError(
                        f"stuff_texts takes names of classes; give the vocabulary {segment!r} "
                        "in texts, it knows which of its classes are stuff"
                    )
                if found:
                    flush()
                    parts.extend(found)
                else:
                    group = split_synonyms(segment)
                    _claim(owner, group)
                    as_typed.setdefault(argument, []).append((segment, group))
                    typed.append(RawClass(group, thing))
        flush()
        if not parts:
            raise VocabularyError(
                "no names given; write classes between ';' and synonyms between ',', for example "
                "'black pickup truck, pickup truck; blue sky, sky', or a built-in vocabulary: "
                + ", ".join(BUILTIN)
            )
        separated = _has_semicolon(texts) or _has_semicolon(stuff_texts)
        warn_of_other_conventions(as_typed, separated, _builtin_groups)
        return cls.join(parts)

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
        key = _builtin_key(str(name_or_path))
        if key is not None:
            if things is not None:
                raise VocabularyError(f"the built-in vocabulary '{key}' has its own thing flags")
            return _load_builtin(key)
        path = Path(os.path.expanduser(name_or_path))
        if not os.path.exists(path):  # unlike Path.exists, no OSError for a text too long
            raise VocabularyError(_not_found(str(name_or_path)))
        classes = read_classes(path)
        if things is not None:
            if any(item.id is None for item in classes):
                raise VocabularyError(f"{path} has its own thing flags; load it without things=")
            classes = _flagged(classes, things, path)
        return cls._build(classes, path.stem)

    @classmethod
    def from_metainfo(cls, metainfo: Mapping[str, Any], name: str = "metainfo") -> "Vocabulary":
        """Takes over a data set's metainfo, class names as they are spelled there.

        Args:
            metainfo: mmdet's or mmseg's metainfo with ``classes`` and optionally ``thing_classes``
                and ``stuff_classes`` (or only these two). Commas in a name separate synonyms. With
                one of the two lists the other classes are the other kind; with none, all are
                things.
            name: Label of the result.

        Raises:
            VocabularyError: No class names, or a thing or stuff name that is not a class.
        """
        return cls._build(classes_of_metainfo(metainfo), name)

    @classmethod
    def join(cls, parts: "Sequence[Vocabulary]") -> "Vocabulary":
        """Joins vocabularies in order; classes that share a synonym become one.

        The classes of the first part keep their indices. A later class that shares a synonym with
        one of an earlier part is merged into it (its first known synonym decides): the earlier
        one's name, flag and data set name stay, and gain the synonyms that no earlier part has.
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
                owner.setdefault(_key(text), index)
        for part in others:
            claimed: dict[str, int] = {}
            for group, flag, source in zip(
                part.synonyms, part.is_thing, part.source_names, strict=True
            ):
                index = next((owner[k] for k in map(_key, group) if k in owner), None)
                if index is None:
                    index = len(groups)
                    groups.append([])
                    flags.append(flag)
                    sources.append(source)
                held = set(map(_key, groups[index]))
                for text in group:
                    if _key(text) not in owner and _key(text) not in held:
                        groups[index].append(text)
                        claimed.setdefault(_key(text), index)
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
        known = {_key(text) for group in other.synonyms for text in group}
        return tuple(any(_key(text) in known for text in group) for group in self.synonyms)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes our text format, which ``load`` reads back.

        Raises:
            VocabularyError: A name holds a character that separates names in the format.
        """
        rows = zip(self.synonyms, self.is_thing, self.source_names, strict=True)
        classes = [RawClass(group, thing, source) for group, thing, source in rows]
        write_text(path, format_classes(classes, repr(self)))

    @classmethod
    def _build(cls, classes: Sequence[RawClass], name: str) -> "Vocabulary":
        return cls(
            tuple(item.synonyms for item in classes),
            tuple(item.is_thing for item in classes),
            name,
            tuple(item.source or item.synonyms[0] for item in classes),
        )


def _key(text: str) -> str:
    """What two names must have in common to count as spelled alike."""
    return clean(text).casefold()


def _builtin_key(text: str) -> str | None:
    """The built-in vocabulary that ``text`` names, or None."""
    squeezed = text.strip().casefold()
    for sign in "-_ ":
        squeezed = squeezed.replace(sign, "")
    return _builtin_spellings().get(squeezed)


@cache
def _builtin_spellings() -> dict[str, str]:
    names = {**{name: name for name in BUILTIN}, **_ALIASES}
    return {spelled.replace("_", ""): name for spelled, name in names.items()}


@cache
def _load_builtin(key: str) -> Vocabulary:
    return Vocabulary._build(read_classes(_FOLDER / f"{key}.txt"), key)


@cache
def _builtin_groups() -> KnownGroups:
    """Of every synonym in the built-in vocabularies, the classes that have it."""
    found: dict[str, set[tuple[str, int]]] = {}
    for name in set(BUILTIN) - {"voc21"}:  # its background is named by what it may be
        for index, group in enumerate(_load_builtin(name).synonyms):
            for text in group:
                found.setdefault(_key(text), set()).add((name, index))
    return {text: frozenset(classes) for text, classes in found.items()}


def _has_semicolon(given: Any) -> bool:
    if isinstance(given, str):
        return ";" in given
    return isinstance(given, list | tuple) and any(map(_has_semicolon, given))


def _looks_like_path(text: str) -> bool:
    return os.sep in text or text.lower().endswith((".txt", ".json"))


def _not_found(text: str) -> str:
    if _looks_like_path(text):
        hint = " (in the name of a class, write a word instead)" if os.sep in text else ""
        return f"no vocabulary file '{text}'; check the path{hint}"
    spellings = [*BUILTIN, *_ALIASES]
    close = difflib.get_close_matches(text.casefold(), spellings, n=3)
    mean = f"did you mean {' or '.join(repr(name) for name in close)}? " if close else ""
    return f"no vocabulary '{text}'; {mean}Built in are {', '.join(BUILTIN)}; or give a file's path"


def _segments(given: Any, argument: str) -> "Iterator[str | Vocabulary]":
    """What stands between semicolons: non-empty text, or a vocabulary as it is."""
    if isinstance(given, Vocabulary):
        yield given
    elif isinstance(given, str):
        yield from (part.strip() for part in given.split(";") if part.strip(" ,\t\r\n"))
    elif isinstance(given, Sequence):
        for index, item in enumerate(given):
            if not isinstance(item, str | Vocabulary):
                raise VocabularyError(
                    f"{argument}[{index}] is {type(item).__name__}, not text or a Vocabulary"
                )
            found = list(_segments(item, argument))
            if not found:  # dropping it would silently shift the indices of all that follow
                raise VocabularyError(f"{argument}[{index}] holds no name: {item!r}")
            yield from found
    else:
        raise VocabularyError(
            f"{argument} is {type(given).__name__}; give text, a Vocabulary, or a list of them"
        )


def _vocabularies_in(segment: str) -> list[Vocabulary]:
    """The vocabularies that a segment names; empty if it is a typed class."""
    if _looks_like_path(segment) and os.path.isfile(os.path.expanduser(segment)):
        return [Vocabulary.load(segment)]  # before splitting: a path may hold a comma
    pieces = split_synonyms(segment)
    special = [p for p in pieces if _builtin_key(p) is not None or _looks_like_path(p)]
    if not special:
        return []
    found = [Vocabulary.load(piece) for piece in special]
    if len(found) < len(pieces):
        plain = next(piece for piece in pieces if piece not in special)
        raise VocabularyError(
            f"'{special[0]}' is a vocabulary and '{plain}' the name of a class; a comma stands "
            f"between synonyms: write '{special[0]}; {plain}' to have both"
        )
    return found


def _claim(owner: dict[str, tuple[str, ...]], group: tuple[str, ...]) -> None:
    """Notes whose the synonyms are; a name can mean only one typed class."""
    for text in group:
        other = owner.setdefault(_key(text), group)
        if other is not group:
            one, two = (
                textwrap.shorten(", ".join(g), 80, placeholder=" ...") for g in (other, group)
            )
            raise VocabularyError(
                f"the name '{text}' is in two classes, '{one}' and '{two}'; keep it in one of them"
            )


def _flagged(
    classes: Sequence[RawClass], things: "str | Vocabulary | Iterable[int]", path: Path
) -> list[RawClass]:
    """The classes of an ``id:`` file with the flags that ``things`` says."""
    if isinstance(things, str):
        things = Vocabulary.load(things)
    if not isinstance(things, Vocabulary):
        ids = set(things)
        unknown = sorted(ids - {item.id for item in classes}, key=str)
        if unknown:
            raise VocabularyError(f"things: {path} has no class with id {unknown[0]}")
        return [item._replace(is_thing=item.id in ids) for item in classes]
    if len(things) == len(classes):
        pairs = zip(classes, things.synonyms, strict=True)
        alike = sum(not {*map(_key, c.synonyms)}.isdisjoint(map(_key, group)) for c, group in pairs)
        if 2 * alike > len(classes):
            flags = zip(classes, things.is_thing, strict=True)
            return [item._replace(is_thing=flag) for item, flag in flags]
    known: dict[str, bool] = {}
    for group, flag in zip(things.synonyms, things.is_thing, strict=True):
        for text in group:
            known.setdefault(_key(text), flag)
    flagged = []
    for item in classes:
        flag = next((known[k] for k in map(_key, item.synonyms) if k in known), None)
        if flag is None:
            raise VocabularyError(
                f"things: vocabulary '{things.name}' has no class like "
                f"'{item.synonyms[0]}' (id {item.id} of {path}); give the ids of things instead"
            )
        flagged.append(item._replace(is_thing=flag))
    return flagged
