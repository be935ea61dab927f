"""Vocabularies from class names that a user typed."""

from __future__ import annotations

import logging
import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from mmengine.logging import print_log

from odise_mm.errors import VocabularyError
from odise_mm.vocabulary.conventions import doubts_about
from odise_mm.vocabulary.files import RawClass, key_of
from odise_mm.vocabulary.label_files import is_published
from odise_mm.vocabulary.loading import BUILTIN, builtin_groups, builtin_key, looks_like_path
from odise_mm.vocabulary.separators import (
    has_semicolon,
    split_classes,
    split_names,
    split_synonyms,
)
from odise_mm.vocabulary.vocabulary import Vocabulary


def _has_semicolon(given: Any) -> bool:
    if isinstance(given, str):
        return has_semicolon(given)
    return isinstance(given, list | tuple) and any(map(_has_semicolon, given))


def _segments(given: Any, argument: str) -> Iterator[str | Vocabulary]:
    """Yield the non-empty texts between semicolons; vocabularies are passed through."""
    if isinstance(given, Vocabulary):
        yield given
    elif isinstance(given, str):
        yield from split_classes(given)
    elif isinstance(given, Sequence):
        for index, item in enumerate(given):
            if not isinstance(item, str | Vocabulary):
                raise VocabularyError(
                    f"{argument}[{index}] is {type(item).__name__}, not text or a Vocabulary"
                )
            found = list(_segments(item, argument))
            if not found:  # dropping it would silently shift the indices of later classes
                raise VocabularyError(f"{argument}[{index}] contains no name: {item!r}")
            yield from found
    else:
        raise VocabularyError(
            f"{argument} is {type(given).__name__}; pass text, a Vocabulary, or a list of them"
        )


def _names_vocabulary(piece: str) -> bool:
    return builtin_key(piece) is not None or is_published(piece) or looks_like_path(piece)


def _vocabularies_in(segment: str, files: bool) -> list[Vocabulary]:
    """Return the vocabularies that a segment names; an empty list if it is a typed class."""
    if files and looks_like_path(segment) and os.path.isfile(os.path.expanduser(segment)):
        return [Vocabulary.load(segment)]  # before splitting, as a path may contain a comma
    pieces = list(split_names(segment))
    # A quoted name is always a class name.
    special = [name for name, quoted in pieces if not quoted and _names_vocabulary(name)]
    if not special:
        return []
    refused = next((name for name in special if not files and builtin_key(name) is None), None)
    if refused is not None:
        raise VocabularyError(
            f"'{refused}' looks like a file or a published list, which are not read here; put a "
            f"class name like this in double quotes, or use a built-in list: {', '.join(BUILTIN)}"
        )
    found = [Vocabulary.load(piece) for piece in special]
    if len(found) < len(pieces):
        plain = next(name for name, _ in pieces if name not in special)
        raise VocabularyError(
            f"'{special[0]}' is a vocabulary and '{plain}' is a class name, but ',' separates "
            f"synonyms; to use both, write '{special[0]}; {plain}'"
        )
    return found


def _claim(owner: dict[str, tuple[str, ...]], group: tuple[str, ...]) -> None:
    """Record the class of each synonym; a name may belong to only one typed class."""
    for text in group:
        other = owner.setdefault(key_of(text), group)
        if other is not group:
            one, two = (
                textwrap.shorten(", ".join(g), 80, placeholder=" ...") for g in (other, group)
            )
            raise VocabularyError(
                f"name '{text}' is in two classes, '{one}' and '{two}'; keep it in one of them"
            )


def parse_names(
    texts: str | Vocabulary | Sequence[str | Vocabulary] | None,
    stuff_texts: str | Sequence[str] | None = None,
    *,
    files: bool = True,
    on_doubt: Callable[[str], object] | None = None,
) -> Vocabulary:
    """Parse typed class names, see :meth:`Vocabulary.parse`."""
    parts: list[Vocabulary] = []
    typed: list[RawClass] = []
    owner: dict[str, tuple[str, ...]] = {}
    as_typed: dict[str, list[tuple[str, tuple[str, ...]]]] = {}

    def flush() -> None:
        if typed:
            parts.append(Vocabulary.from_classes(typed, "texts"))
            typed.clear()

    for argument, given in (("texts", texts), ("stuff_texts", stuff_texts)):
        thing = argument == "texts"
        for segment in () if given is None else _segments(given, argument):
            if isinstance(segment, Vocabulary):
                found = [segment]
            else:
                found = _vocabularies_in(segment, files)
            if found and not thing:
                raise VocabularyError(
                    f"stuff_texts accepts class names only; pass the vocabulary {segment!r} "
                    "in texts, since it defines which of its classes are stuff"
                )
            if found or isinstance(segment, Vocabulary):
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
            "no class names given; separate classes with ';' and synonyms with ',', for example "
            "'black pickup truck, pickup truck; blue sky, sky', or name a built-in vocabulary: "
            + ", ".join(BUILTIN)
        )
    separated = _has_semicolon(texts) or _has_semicolon(stuff_texts)
    for doubt in doubts_about(as_typed, separated, builtin_groups):
        (on_doubt or _warn_once)(doubt)
    return Vocabulary.join(parts)


@lru_cache(maxsize=1000)
def _warn_once(message: str) -> None:
    print_log(message, logger="current", level=logging.WARNING)
