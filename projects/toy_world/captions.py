"""Captions of scenes: sentences as people write them, some more complete than others.

Captions leave out some things, use synonyms and number words, and describe positions. The wording
makes it easy for taggers to recognize adjectives and nouns: every name follows an article or a
number, and no name directly follows another one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import numpy as np

from projects.toy_world.drawing import SIZE
from projects.toy_world.names import NAMES, SHAPES, Name
from projects.toy_world.plan import Plan, Thing

_NUMBERS = ("", "one", "two", "three", "four", "five")
_PLURALS = {"box": "boxes"}
_MENTION = 0.82  # probability that a kind of thing is mentioned
_MENTION_STUFF = 0.75  # probability that a kind of stuff is mentioned
_SYNONYM = 0.3  # probability of a synonym instead of the name
_PLURAL_WORDS = ("bricks", "planks", "pebbles")

_LISTED = (
    "{things} {on} {stuff}",
    "{things} {on} {stuff}",
    "There {is} {things} {on} {stuff}.",
    "We see {things} {on} {stuff}.",
    "{stuff} with {things}",
)
_BARE = ("{things}", "There {is} {things}.", "We see {things}.", "Here {is} {things}.")
_EMPTY = ("{stuff}", "We see {stuff}.", "There is {stuff}.")
_RELATED = (
    "{one} {where} {other}",
    "{one} {is} {where} {other}.",
    "{one} {where} {other}, {on} {stuff}",
)
_CORNERS = ("{one} at the {corner}", "At the {corner} there is {one}.")
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")


def tell(plan: Plan, rng: np.random.Generator) -> str:
    """Return a caption that describes all or some parts of a plan.

    Args:
        plan: The plan of a scene.
        rng: Random numbers of the caption.
    """
    groups = _groups(plan.things)
    mentioned = [group for group in groups if rng.random() < _MENTION]
    if groups and not mentioned:
        mentioned = [groups[rng.integers(len(groups))]]
    mentioned = [mentioned[i] for i in rng.permutation(len(mentioned))]
    stuff = [region.name for region in plan.regions if rng.random() < _MENTION_STUFF]
    kind = rng.random()
    if len(mentioned) >= 2 and kind < 0.3:
        text = _relation(mentioned, stuff, rng)
    elif mentioned and 0.3 <= kind < 0.4 and len(mentioned[0]) == 1:
        group = mentioned[0]
        text = _choose(rng, _CORNERS).format(one=_one(group, rng), corner=_corner(group[0]))
    elif mentioned and stuff:
        text = _choose(rng, _LISTED).format(
            things=_and([_one(group, rng) for group in mentioned]),
            **{"is": _is(mentioned[0])},
            **_ground(stuff, rng),
        )
    elif mentioned:
        text = _choose(rng, _BARE).format(
            things=_and([_one(group, rng) for group in mentioned]),
            **{"is": _is(mentioned[0])},
        )
    else:
        stuff = stuff or [plan.regions[0].name]
        text = _choose(rng, _EMPTY).format(stuff=_and([_the(name, rng) for name in stuff]))
    return text[0].upper() + text[1:] if text.endswith(".") or rng.random() < 0.5 else text


def _groups(things: Sequence[Thing]) -> list[list[Thing]]:
    """Group things by name."""
    found: dict[int, list[Thing]] = {}
    for thing in things:
        found.setdefault(thing.name.category, []).append(thing)
    return list(found.values())


def _is(group: Sequence[Thing]) -> str:
    return "is" if len(group) == 1 else "are"


def _relation(
    mentioned: Sequence[list[Thing]], stuff: Sequence[Name], rng: np.random.Generator
) -> str:
    one, other = mentioned[0], mentioned[1]
    text = _choose(rng, _RELATED if stuff else _RELATED[:2]).format(
        one=_one(one, rng),
        other=_one(other, rng),
        where=_where(one, other),
        **{"is": _is(one)},
        **_ground(stuff, rng),
    )
    rest = [_one(group, rng) for group in mentioned[2:]]
    if not rest:
        return text
    return f"{text.rstrip('.')}, and {_and(rest)}" + "." * text.endswith(".")


def _where(one: Sequence[Thing], other: Sequence[Thing]) -> str:
    dx, dy = one[0].x - other[0].x, one[0].y - other[0].y
    if len(one) + len(other) > 2 or abs(dx) >= abs(dy):
        return "near" if max(abs(dx), abs(dy)) > 0.4 * SIZE else "beside"
    return "below" if dy > 0 else "above"


def _corner(thing: Thing) -> str:
    side = "left" if thing.x < SIZE / 2 else "right"
    return f"{'top' if thing.y < SIZE / 2 else 'bottom'} {side}"


def _ground(stuff: Sequence[Name], rng: np.random.Generator) -> dict[str, str]:
    """Return ``stuff``, e.g. "the grass below the sky", and its preposition ``on``."""
    if not stuff:
        return dict(stuff="", on="")
    names = list(stuff)[::-1]  # from front to back
    first = str(names[0])
    texts = [_the(name, rng) for name in names]
    if len(texts) > 1 and str(names[-1]) == "sky":
        text = f"{_and(texts[:-1])} below {texts[-1]}"
    else:
        text = _and(texts)
    return dict(stuff=text, on="in" if first in ("sky", "water", "snow") else "on")


def _one(group: Sequence[Thing], rng: np.random.Generator) -> str:
    """Return a phrase such as "a red star" or "two red stars"."""
    name = group[0].name
    text = _wording(name, rng)
    if len(group) > 1:
        return f"{_NUMBERS[len(group)]} {plural(text)}"
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _the(name: Name, rng: np.random.Generator) -> str:
    """Return the name of stuff with its article."""
    text = _wording(name, rng)
    if text in _PLURAL_WORDS:
        return f"{_choose(rng, ('the', 'some'))} {text}"
    if text in ("brick wall", "lawn"):
        return f"{_choose(rng, ('the', 'a'))} {text}"
    return f"the {text}"


def _wording(name: Name, rng: np.random.Generator) -> str:
    others = name.synonyms[1:]
    return _choose(rng, others) if others and rng.random() < _SYNONYM else name.synonyms[0]


def plural(text: str) -> str:
    """Return the plural of a thing's name."""
    *before, last = text.split(" ")
    return " ".join([*before, _PLURALS.get(last, f"{last}s")])


def _and(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _choose(rng: np.random.Generator, texts: Sequence[str]) -> str:
    return texts[rng.integers(len(texts))]


def split_words(text: str) -> list[str]:
    """Split a caption or name into lower-case words; "polka-dot" is one word."""
    return _WORD.findall(text.lower())


@cache
def words() -> tuple[str, ...]:
    """Return all words that occur in captions and names, in alphabetical order."""
    templates = " ".join(_LISTED + _BARE + _EMPTY + _RELATED + _CORNERS)
    texts = [re.sub(r"{\w+}", " ", templates), *_NUMBERS]
    texts += ["a an and are at below above beside near in is on some the top bottom left right"]
    texts += [text for name in NAMES for text in name.synonyms]
    texts += [plural(word) for shape in SHAPES for word in (shape, *SHAPES[shape])]
    return tuple(sorted({word for text in texts for word in split_words(text)}))
