"""Doubts about class names that seem to follow another separator convention.

We separate classes with ``;`` and synonyms with ``,``. mmdet's open-vocabulary demos separate names
with ``.``, and many other programs use ``,``. Such text is valid here too, but it is read as one
class with a long name or with many synonyms. This module detects it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from odise_mm.utils.display import printable
from odise_mm.vocabulary.separators import with_quotes

# Abbreviations, in lower case: a dot after them does not end a name. Single letters are handled
# separately.
_ABBREVIATIONS = frozenset(
    """al approx assn ave blvd bros ca capt cf co col corp cpl dept dr ed eds est etc fig figs ft
    gen gov hon inc intl jr lt ltd maj max min misc mr mrs ms mt mts no nos op ph pp prof pt pvt rd
    rev sgt sr st sta ste temp univ vol vs""".split()
)
# What follows the dot in web addresses, file names and names of software.
_ENDINGS = frozenset(
    """ai app co com de dev doc docx edu eu exe fr gif gov html io jpeg jpg js md net org pdf png py
    txt uk us zip""".split()
)
_WORD = r"[^\W\d_]"
# Separators of other conventions: full-width signs, a bar, a tab, and line breaks.
_OTHER_SIGNS = re.compile(r"\s*[；，、。|\t]\s*")
_LINE_ENDS = re.compile(r"\s*[\r\n]\s*")
# A list in the syntax of Python or JSON, or a bracketed list as typed in a shell.
_LIST = re.compile(r"\s*(?:\[([^][]+)\]|\((\s*['\"].*['\"][\s,]*)\))\s*", re.DOTALL)
_SHOWN = 300  # maximum number of characters of a text in a message

# A name in other quotation marks than ".
_OTHER_QUOTES = re.compile(
    r"(?:(?<=,)|(?<=, )|^)(?:'([^']+)'|‘([^’]+)’|[“„]([^“”]+)[“”]|«([^»]+)»)(?=\s*(?:,|$))"
)

KnownGroups = Mapping[str, frozenset[tuple[str, int]]]
"""Name in lower case -> the classes (vocabulary, index) of built-in vocabularies that have it."""


def doubts_about(
    typed: Mapping[str, Sequence[tuple[str, Sequence[str]]]],
    separated: bool,
    known_groups: Callable[[], KnownGroups],
) -> Iterator[str]:
    """Yield a message for each class that was probably meant to be several.

    Args:
        typed: The classes by argument ("texts", "stuff_texts"), each as the typed text and the
            synonyms parsed from it.
        separated: Whether any of the arguments contains a ``;``.
        known_groups: Returns the synonyms of the built-in vocabularies.
    """
    for argument, classes in typed.items():
        for text, names in classes:
            listed = _LIST.fullmatch(text)
            if listed is not None:
                pieces = _tidy(p.strip(" \t\r\n'\"") for p in (listed[1] or listed[2]).split(","))
                reason = "brackets and quotation marks are read as parts of names"
                yield _doubt(argument, text, names, reason, pieces)
                continue
            unclosed = next((name for name in names if name.startswith('"')), None)
            if unclosed is not None:
                reason = f"in {printable(unclosed)!r}, no closing quotation mark ends the name"
                # The whole text without quotation marks, not several classes.
                yield _doubt(argument, text, names, reason, [text.replace('"', "")])
                continue
            if _OTHER_QUOTES.search(text):
                reason = 'only double quotes (") enclose a name'
                better = _OTHER_QUOTES.sub(_in_double_quotes, text)
                yield _doubt(argument, text, names, reason, [better])
                continue
            other = _other_signs(text, separated)
            if other is not None:
                sign, pieces = other
                reason = f"{sign} does not separate classes here"
                yield _doubt(argument, text, names, reason, pieces)
            elif len(classes) == 1 and not separated and _are_unrelated(names, known_groups):
                reason = "',' separates the synonyms of one class"
                otherwise = "; if it is one class, end it with ';'"
                yield _doubt(argument, text, names, reason, names, otherwise)


def _in_double_quotes(found: re.Match[str]) -> str:
    name = next(group for group in found.groups() if group is not None)
    return with_quotes(name)


def _doubt(
    argument: str,
    text: str,
    names: Sequence[str],
    reason: str,
    pieces: Sequence[str],
    otherwise: str = "",
) -> str:
    understood = printable(" = ".join(names), limit=_SHOWN)
    if len(pieces) > 1:
        pieces = [with_quotes(piece) for piece in pieces]
    better = printable("; ".join(pieces), limit=_SHOWN)
    number = f"for {len(pieces)} classes, " if len(pieces) > 1 else ""
    return (
        f"{argument} '{printable(text, limit=_SHOWN)}' is read as 1 class: {understood} "
        f"({reason}); {number}write '{better}'{otherwise}"
    )


def _other_signs(text: str, separated: bool) -> tuple[str, list[str]] | None:
    """Return the sign that seems to separate names and the names between, or None."""
    pieces = _between_dots(text)
    if pieces is not None:
        return "unlike in mmdet's open-vocabulary demos, '.'", pieces
    found = _OTHER_SIGNS.search(text)
    if found:
        return f"'{printable(found[0].strip(' '))}'", _tidy(_OTHER_SIGNS.split(text))
    if not separated and "," not in text and len(_tidy(_LINE_ENDS.split(text))) > 1:
        return "a line break", _tidy(_LINE_ENDS.split(text))
    return None


def _between_dots(text: str) -> list[str] | None:
    """Return the names between dots that seem to be separators, or None if no dot is one.

    A dot is a separator if it stands alone ("bench . car ."), between two words ("car.person"), or
    after a word that another follows ("a cat. a dog."). It is not in numbers (7.5, No. 5), after
    single letters (U.S.) and known abbreviations (St. Bernard), or in addresses (example.com).
    """
    signs = [r"(?:^|(?<=\s))\.(?=\s|$)"]
    if re.search(signs[0], text) is None:
        signs = []
        if any(map(_is_dotted_pair, re.split(r"[\s,]+", text))):
            signs.append(rf"(?<={_WORD})\.(?={_WORD})")
        ended = text.endswith(".") and _is_word(text.split()[-1][:-1])
        if any(_is_word(w, ended) for w in re.findall(r"(\S+)\.\s+(?=\w)", text)):
            signs.append(rf"(?<={_WORD})\.(?:\s+|$)")
    return _tidy(re.split("|".join(signs), text)) if signs else None


def _is_dotted_pair(token: str) -> bool:
    words = token.strip("\"'().!?").split(".")
    if len(words) < 2 or words[0].casefold() in {"www", *_ABBREVIATIONS}:
        return False
    parts = [part for word in words for part in re.split("[-_']", word)]
    return words[-1].casefold() not in _ENDINGS and all(len(p) > 1 and p.isalpha() for p in parts)


def _is_word(text: str, or_title: bool = True) -> bool:
    """Return whether ``text`` is a word and not an abbreviation.

    Args:
        text: The token to check.
        or_title: Whether short capitalized words, which may be titles such as "Mrs", count.
    """
    if not text.isalpha() or len(text) < 3 or text.casefold() in _ABBREVIATIONS:
        return False
    return or_title or text.islower() or len(text) > 4


def _tidy(pieces: Iterable[str]) -> list[str]:
    cleaned = (" ".join(piece.split()).strip(" ,.") for piece in pieces)
    return [piece for piece in cleaned if piece]


def _are_unrelated(names: Sequence[str], known_groups: Callable[[], KnownGroups]) -> bool:
    """Return whether names separated by commas are unlikely to be synonyms.

    Two names are related if one contains all words of the other ("sky, blue sky") or if a built-in
    class has both. If there are only two, one shared word is enough. Three or more are related if
    such pairs connect all of them.
    """
    if len(names) < 2:
        return False
    words = [_words(name) for name in names]
    if len(names) == 2 and words[0] & words[1]:
        return False
    groups = known_groups()
    classes = [groups.get(name.casefold(), frozenset()) for name in names]

    def related(one: int, other: int) -> bool:
        a, b = words[one], words[other]
        return a <= b or b <= a or not classes[one].isdisjoint(classes[other])

    reached, waiting = [0], set(range(1, len(names)))
    for one in reached:  # the list grows in the loop
        new = {other for other in waiting if related(one, other)}
        reached += new
        waiting -= new
    return bool(waiting)


def _words(name: str) -> frozenset[str]:
    """Return the words of a name in lower case, without a plural "s"."""
    words = [word.removesuffix("s") for word in re.split(r"[\W_]+", name.casefold()) if word]
    return frozenset(words)
