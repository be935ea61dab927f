"""Vocabularies from built-in lists and from files."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from odise_mm.errors import VocabularyError
from odise_mm.vocabulary.conventions import KnownGroups
from odise_mm.vocabulary.files import RawClass, key_of, read_classes
from odise_mm.vocabulary.label_files import PUBLISHERS, find_label_file, is_published
from odise_mm.vocabulary.vocabulary import Vocabulary

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


_FOLDER = Path(__file__).parent / "builtin"


def builtin_key(text: str) -> str | None:
    """Return the name of the built-in vocabulary that ``text`` refers to, or None.

    Case, spaces, ``-`` and ``_`` don't matter.
    """
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
    return Vocabulary.from_classes(read_classes(_FOLDER / f"{key}.txt"), key)


@cache
def builtin_groups() -> KnownGroups:
    """Return the classes of the built-in vocabularies by synonym."""
    found: dict[str, set[tuple[str, int]]] = {}
    # The synonyms of voc21's background are the names of many unrelated things.
    for name in set(BUILTIN) - {"voc21"}:
        for index, group in enumerate(_load_builtin(name).synonyms):
            for text in group:
                found.setdefault(key_of(text), set()).add((name, index))
    return {text: frozenset(classes) for text, classes in found.items()}


def looks_like_path(text: str) -> bool:
    """Return whether text with a separator or a file extension is taken for a path."""
    return os.sep in text or text.lower().endswith((".txt", ".json", ".csv", ".yaml", ".yml"))


def _not_found(text: str) -> str:
    if looks_like_path(text):
        hint = f" (put a class name with '{os.sep}' in double quotes)" if os.sep in text else ""
        return f"vocabulary file '{text}' not found; check the path{hint}"
    spellings = [*BUILTIN, *_ALIASES]
    close = difflib.get_close_matches(text.casefold(), spellings, n=3)
    hint = f" (did you mean {' or '.join(repr(name) for name in close)}?)" if close else ""
    published = ", ".join(f"{publisher}:..." for publisher in PUBLISHERS)
    return (
        f"unknown vocabulary '{text}'{hint}; built-in vocabularies: {', '.join(BUILTIN)}; or pass "
        f"the path of a file or the name of a published list ({published})"
    )


def _flagged(
    classes: Sequence[RawClass], things: str | Vocabulary | Iterable[int], path: Path
) -> list[RawClass]:
    """Return the classes of an ``id:name,name`` file with the flags that ``things`` defines."""
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
        alike = sum(
            not {*map(key_of, c.synonyms)}.isdisjoint(map(key_of, group)) for c, group in pairs
        )
        if 2 * alike > len(classes):
            flags = zip(classes, things.is_thing, strict=True)
            return [item._replace(is_thing=flag) for item, flag in flags]
    known: dict[str, bool] = {}
    for group, flag in zip(things.synonyms, things.is_thing, strict=True):
        for text in group:
            known.setdefault(key_of(text), flag)
    flagged = []
    for item in classes:
        found = next((known[k] for k in map(key_of, item.synonyms) if k in known), None)
        if found is None:
            raise VocabularyError(
                f"things: vocabulary '{things.name}' has no class like "
                f"'{item.synonyms[0]}' (id {item.id} of {path}); pass the ids of things instead"
            )
        flagged.append(item._replace(is_thing=found))
    return flagged


def load_vocabulary(
    name_or_path: str | os.PathLike[str], things: str | Vocabulary | Iterable[int] | None = None
) -> Vocabulary:
    """Load a vocabulary, see :meth:`Vocabulary.load`."""
    key = builtin_key(str(name_or_path))
    if key is not None:
        if things is not None:
            raise VocabularyError(f"the built-in vocabulary '{key}' has its own thing flags")
        return _load_builtin(key)
    path = Path(os.path.expanduser(name_or_path))
    label = path.stem
    if is_published(str(name_or_path)):
        label = str(name_or_path)
        path, flags = find_label_file(label)
        things = flags if things is None else things
    if not os.path.exists(path):  # Path.exists raises OSError for long texts
        raise VocabularyError(_not_found(str(name_or_path)))
    classes = read_classes(path)
    if things is not None:
        if any(item.id is None for item in classes):
            raise VocabularyError(f"{path} has its own thing flags; load it without things=")
        classes = _flagged(classes, things, path)
    return Vocabulary.from_classes(classes, label)
