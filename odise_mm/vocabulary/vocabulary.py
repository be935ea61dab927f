"""Vocabularies: the classes that a model may predict, with their names.

A vocabulary is a list of classes. Each class has a list of synonyms and is either a thing or stuff.
Vocabularies come from typed text, a built-in list, a file, or a dataset's metainfo. Prompts and
embeddings are computed elsewhere. docs/vocabularies.md describes the formats.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    """An immutable, hashable list of classes with synonyms and thing or stuff flags.

    Two vocabularies are equal if their classes, flags and dataset names are equal. ``name`` is only
    a label for display.

    Args:
        synonyms: One tuple of names per class. Results show the first one.
        is_thing: One flag per class.
        name: Origin of the classes, for logs and titles.
        source_names: Class names of the dataset, e.g. ``wall-other-merged`` if the first synonym
            is ``wall``. If empty, the first synonyms are used.

    Raises:
        VocabularyError: If there is no class, a class has no name, or the lengths differ.
    """

    synonyms: tuple[tuple[str, ...], ...]
    is_thing: tuple[bool, ...]
    name: str = field(default="texts", compare=False)
    source_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(isinstance(group, str) for group in self.synonyms):
            raise VocabularyError("synonyms must have one tuple of names per class, not a string")
        # Lists are accepted and converted to tuples, so that every instance is hashable.
        object.__setattr__(self, "synonyms", tuple(tuple(group) for group in self.synonyms))
        object.__setattr__(self, "is_thing", tuple(bool(flag) for flag in self.is_thing))
        count = len(self.synonyms)
        if count == 0:
            raise VocabularyError(
                f"vocabulary '{self.name}' has no classes; pass at least one name"
            )
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

    def describe(self, limit: int = 12) -> str:
        """Return a line that lists the classes as they were understood, for logs.

        Synonyms follow in parentheses, as in ``2 things: sofa (couch), lamp; 1 stuff: wall``.

        Args:
            limit: Number of things, and of stuff classes, that are listed.
        """
        parts = []
        for thing, singular, plural in ((True, "thing", "things"), (False, "stuff", "stuff")):
            groups = [
                g for g, flag in zip(self.synonyms, self.is_thing, strict=True) if flag is thing
            ]
            if not groups:
                continue
            listed = [g[0] + f" ({', '.join(g[1:])})" * (len(g) > 1) for g in groups[:limit]]
            more = f", and {len(groups) - limit} more" if len(groups) > limit else ""
            kind = singular if len(groups) == 1 else plural
            parts.append(f"{len(groups)} {kind}: {', '.join(listed)}{more}")
        return "; ".join(parts)

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
        """Metainfo with ``classes``, ``thing_classes`` and ``stuff_classes``.

        It contains the dataset's own names, which the datasets of mmdet and mmseg look up in
        annotation files.
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
        *,
        files: bool = True,
        on_doubt: Callable[[str], object] | None = None,
    ) -> "Vocabulary":
        """Parse class names that a user typed.

        ``;`` separates classes and ``,`` separates the synonyms of a class. A sequence means the
        same as its items joined with ``;``. Classes in ``texts`` are things, classes in
        ``stuff_texts`` are stuff. If all names between two ``;`` are built-in vocabularies (case,
        ``-``, ``_`` and spaces don't matter) or paths of vocabulary files, they stand for the
        classes of these, with their own flags. All classes are joined in the given order, as by
        ``+``; typed stuff comes last.

        A warning is logged for text that seems to follow another convention, such as the ``.``
        between names of mmdet's open-vocabulary demos or a list with commas only.

        Args:
            texts: E.g. ``'black pickup truck, pickup truck; dune'``, ``'coco, ade20k'``,
                ``['coco', 'zeppelin; dune']``; None if there are only stuff classes.
            stuff_texts: Names of stuff classes.
            files: Whether the names may be paths of files, or published lists, which are
                downloaded. Set it to False for names from strangers, such as in a web service.
            on_doubt: Called with each warning, instead of logging it once.

        Raises:
            VocabularyError: If there is no name, a name is in two typed classes, a path does not
                exist or is not allowed, or a vocabulary is a synonym of a typed name or in
                ``stuff_texts``.
        """
        from odise_mm.vocabulary.parsing import parse_names

        return parse_names(texts, stuff_texts, files=files, on_doubt=on_doubt)

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str],
        things: "str | Vocabulary | Iterable[int] | None" = None,
    ) -> "Vocabulary":
        """Load a built-in vocabulary, a published label file, or a vocabulary file.

        A file can be in our own text format, in the ``id:name,name`` text format, or JSON with
        mmdet's metainfo or COCO's ``categories``. In the ``id:`` format, classes are sorted by id,
        the entry ``invalid_class_id`` is skipped, and two classes may share a name.

        Args:
            name_or_path: One of ``BUILTIN``, the name of a published label file such as
                ``openseg:coco_panoptic``, or a path.
            things: Which classes of an ``id:name,name`` file are things: their ids, or a vocabulary
                (or its name) to take the flags from, since the format has no flags. If both have
                the same number of classes and most classes share a name with the class at the same
                index, flags are copied by index, otherwise by the first known name. None: all
                classes are things.

        Raises:
            VocabularyError: If the name or path is unknown, the file cannot be read, a line is
                invalid (the message names ``file:line``), or ``things`` does not fit.
        """
        from odise_mm.vocabulary.loading import load_vocabulary

        return load_vocabulary(name_or_path, things)

    @classmethod
    def from_metainfo(cls, metainfo: Mapping[str, Any], name: str = "metainfo") -> "Vocabulary":
        """Create a vocabulary from a dataset's metainfo, keeping the spelling of class names.

        Args:
            metainfo: mmdet's or mmseg's metainfo with ``classes`` and optionally ``thing_classes``
                and ``stuff_classes`` (or only these two). Commas in a name separate synonyms. If
                only one of the two lists is given, all other classes are of the other kind; without
                both, all classes are things.
            name: Name of the vocabulary.

        Raises:
            VocabularyError: If there are no class names, or a thing or stuff name is not a class.
        """
        return cls.from_classes(classes_of_metainfo(metainfo), name)

    @classmethod
    def join(cls, parts: "Sequence[Vocabulary]") -> "Vocabulary":
        """Join vocabularies in order and merge classes that share a synonym.

        The classes of the first part keep their indices. A class that shares a synonym with a class
        of an earlier part is merged into it; its first known synonym decides which one. The merged
        class keeps the earlier name, flag and dataset name, and gains the synonyms that no earlier
        part has. Classes of the same part are never merged, even if they share a name.

        Raises:
            VocabularyError: If ``parts`` is empty.
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
        """Join two vocabularies, see :meth:`join`."""
        return self.join((self, other)) if isinstance(other, Vocabulary) else NotImplemented

    def overlap(self, other: "Vocabulary") -> tuple[bool, ...]:
        """Return, for each class, whether it shares a synonym with ``other``.

        Case and extra white space don't matter. For equation 10 of ODISE (arXiv 2303.04803), the
        classes that overlap with the training vocabulary are the base classes.
        """
        known = {key_of(text) for group in other.synonyms for text in group}
        return tuple(any(key_of(text) in known for text in group) for group in self.synonyms)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file in our text format, which :meth:`load` reads.

        Raises:
            VocabularyError: If a name contains a separator of the format.
        """
        rows = zip(self.synonyms, self.is_thing, self.source_names, strict=True)
        classes = [RawClass(group, thing, source) for group, thing, source in rows]
        write_text(path, format_classes(classes, repr(self)))

    @classmethod
    def from_classes(cls, classes: Sequence[RawClass], name: str) -> "Vocabulary":
        """Create a vocabulary from the classes of a file or of typed text."""
        return cls(
            tuple(item.synonyms for item in classes),
            tuple(item.is_thing for item in classes),
            name,
            tuple(item.source or item.synonyms[0] for item in classes),
        )
