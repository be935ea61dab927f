"""The names of the toy world, and which of them are novel.

A thing's name is ``[pattern] color shape``: "red star", "striped green moon". Every shape has all
plain colors, and each pattern in one color. The split into base and novel names is a fixed rule
on the places of shape, color and pattern in the tables below, the same for everybody:

- plain: novel where ``(shape + color) % 3 == 0``;
- patterned: novel where ``(shape + pattern) % 3 == 0``.

So every shape, color and pattern of a novel name occurs among base names, only not together. And
"striped green heart" is a base name, so "green heart" is one: no base name holds a novel one.

Imports nothing heavy: worker processes that only draw start at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from odise_mm.vocabulary import Vocabulary

# Word -> its synonyms. "striped", "polka-dot" and "plaid" are words that taggers take for
# adjectives or nouns; "dotted" and "checkered" they take for verbs, and no phrase would have them.
SHAPES: dict[str, tuple[str, ...]] = {
    "ball": ("disc",),
    "box": ("square",),
    "triangle": (),
    "star": (),
    "ring": ("donut",),
    "heart": (),
    "moon": ("crescent",),
    "arrow": (),
}
COLORS: dict[str, tuple[str, ...]] = {
    "red": ("crimson",),
    "yellow": ("golden",),
    "green": ("emerald",),
    "blue": (),
    "purple": ("violet",),
    "white": (),
    "black": (),
}
PATTERNS: dict[str, tuple[str, ...]] = {
    "striped": ("stripy",),
    "polka-dot": ("spotty",),
    "plaid": ("tartan",),
}
STUFF: dict[str, tuple[str, ...]] = {
    "sky": (),
    "grass": ("lawn",),
    "water": ("sea",),
    "sand": (),
    "snow": (),
    "brick wall": ("bricks",),
    "wood": ("planks",),
    "gravel": ("pebbles",),
}
# Patterns are white on color, so that the color must be one on which white is seen.
_PATTERNED = ("red", "green", "blue", "purple", "black")

Subset = Literal["all", "base", "base_things", "novel"]


@dataclass(frozen=True)
class Name:
    """One class of the world.

    Attributes:
        category: its id in annotation files, from 1; the same in all of them.
        synonyms: all ways to say it; the first is the name.
        is_thing: thing or stuff.
        is_novel: never labeled and never mentioned in what segmentation is trained on.
        shape, color, pattern: keys of the tables above; stuff has none of them, plain things have
            no pattern.
    """

    category: int
    synonyms: tuple[str, ...]
    is_thing: bool
    is_novel: bool = False
    shape: str = ""
    color: str = ""
    pattern: str = ""

    def __str__(self) -> str:
        return self.synonyms[0]


def _things() -> list[Name]:
    found = []
    for s, shape in enumerate(SHAPES):
        plain = {c: (s + i) % 3 == 0 for i, c in enumerate(COLORS)}
        specs = [("", color, novel) for color, novel in plain.items()]
        base = [color for color in _PATTERNED if not plain[color]]
        for p, pattern in enumerate(PATTERNS):
            specs.append((pattern, base[(s // 3 + p) % len(base)], (s + p) % 3 == 0))
        for pattern, color, novel in specs:
            words = [(SHAPES, shape), (COLORS, color)] + [(PATTERNS, pattern)] * bool(pattern)
            ways = product(*((word, *table[word]) for table, word in reversed(words)))
            texts = tuple(" ".join(way) for way in ways)
            found.append(Name(len(found) + 1, texts, True, novel, shape, color, pattern))
    return found


THINGS: tuple[Name, ...] = tuple(_things())
STUFFS: tuple[Name, ...] = tuple(
    Name(len(THINGS) + i, (word, *others), False)
    for i, (word, others) in enumerate(STUFF.items(), 1)
)
NAMES: tuple[Name, ...] = THINGS + STUFFS
BASE_THINGS: tuple[Name, ...] = tuple(name for name in THINGS if not name.is_novel)
NOVEL_THINGS: tuple[Name, ...] = tuple(name for name in THINGS if name.is_novel)

_FOLDER = Path(__file__).parent / "vocabularies"


def names_of(subset: Subset) -> tuple[Name, ...]:
    """Names in the order of their categories.

    Args:
        subset: "all"; "base" with all stuff, what segmentation is trained on; "base_things" and
            "novel", things only, for scores.
    """
    if subset == "all":
        return NAMES
    if subset == "base":
        return BASE_THINGS + STUFFS
    if subset == "base_things":
        return BASE_THINGS
    if subset == "novel":
        return NOVEL_THINGS
    raise ValueError(f"subset is 'all', 'base', 'base_things' or 'novel', not {subset!r}")


def vocabulary_file(subset: Subset) -> Path:
    """The file in this folder that holds :func:`names_of` ``(subset)``."""
    names_of(subset)
    return _FOLDER / f"{subset}.txt"


@cache
def vocabulary(subset: Subset = "all") -> Vocabulary:
    """:func:`names_of` ``(subset)`` as a vocabulary of the package."""
    from odise_mm.vocabulary import Vocabulary  # late: brings OpenMMLab's packages

    names = names_of(subset)
    return Vocabulary(
        tuple(name.synonyms for name in names),
        tuple(name.is_thing for name in names),
        f"toy_{subset}",
    )
