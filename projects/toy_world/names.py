"""Names of the toy world, and their split into base and novel names.

A thing's name is ``[pattern] color shape``: "red star", "striped green moon". Every shape occurs in
all plain colors, and with each pattern in one color. A fixed rule, based on the positions of shape,
color and pattern in the tables below, decides which names are novel:

- plain: novel if ``(shape + color) % 3 == 0``;
- patterned: novel if ``(shape + pattern) % 3 == 0``.

Every shape, color and pattern of a novel name therefore also occurs in base names, but in other
combinations. No base name contains a novel name: "striped green heart" is a base name, and so is
"green heart".

New names (``NEW_NAMES``) are only drawn on request. Their shapes and textures occur nowhere else,
and neither do the words for them, so a text encoder of the toy world cannot read them.

This module has no slow imports, so that worker processes that only draw start immediately.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from odise_mm.vocabulary import Vocabulary

# Word -> synonyms. Taggers recognize "striped", "polka-dot" and "plaid" as adjectives or nouns, but
# mistake "dotted" and "checkered" for verbs, which would drop them from noun phrases.
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
NEW_SHAPES: tuple[str, ...] = ("cross", "drop", "flower", "bowtie")
NEW_STUFF: tuple[str, ...] = ("tiles", "lava", "carpet")
_NEW_COLORS = 3  # colors of each new shape
# Patterns are white on a color, so white must be visible on that color.
_PATTERNED = ("red", "green", "blue", "purple", "black")

Subset = Literal["all", "base", "base_things", "novel"]


@dataclass(frozen=True)
class Name:
    """Class of the toy world.

    Attributes:
        category: Id in all annotation files, from 1.
        synonyms: All names of the class, the main one first.
        is_thing: Whether it is a thing (or stuff).
        is_novel: Whether it is never labeled or mentioned in the training data of segmentation.
        shape: Key of ``SHAPES``, or one of ``NEW_SHAPES``; "" for stuff.
        color: Key of ``COLORS``; "" for stuff.
        pattern: Key of ``PATTERNS``; "" for stuff and plain things.
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


def _new_names() -> list[Name]:
    found: list[Name] = []
    colors = list(COLORS)
    for shape in NEW_SHAPES:
        for _ in range(_NEW_COLORS):
            color = colors[len(found) % len(colors)]
            text = f"{color} {shape}"
            found.append(Name(len(NAMES) + len(found) + 1, (text,), True, True, shape, color))
    for word in NEW_STUFF:
        found.append(Name(len(NAMES) + len(found) + 1, (word,), False, True))
    return found


NEW_NAMES: tuple[Name, ...] = tuple(_new_names())
NEW_THINGS: tuple[Name, ...] = tuple(name for name in NEW_NAMES if name.is_thing)
NEW_STUFFS: tuple[Name, ...] = tuple(name for name in NEW_NAMES if not name.is_thing)
BASE_THINGS: tuple[Name, ...] = tuple(name for name in THINGS if not name.is_novel)
NOVEL_THINGS: tuple[Name, ...] = tuple(name for name in THINGS if name.is_novel)

_FOLDER = Path(__file__).parent / "vocabularies"


def names_of(subset: Subset) -> tuple[Name, ...]:
    """Return names in the order of their categories.

    Args:
        subset: "all"; "base": base things and all stuff, the training classes of segmentation;
            "base_things" or "novel": only things, for scores.

    Raises:
        ValueError: The subset is unknown.
    """
    if subset == "all":
        return NAMES
    if subset == "base":
        return BASE_THINGS + STUFFS
    if subset == "base_things":
        return BASE_THINGS
    if subset == "novel":
        return NOVEL_THINGS
    raise ValueError(f"subset must be 'all', 'base', 'base_things' or 'novel', not {subset!r}")


def vocabulary_file(subset: Subset) -> Path:
    """Return the vocabulary file of a subset; see :func:`names_of`."""
    names_of(subset)
    return _FOLDER / f"{subset}.txt"


@cache
def vocabulary(subset: Subset = "all") -> Vocabulary:
    """Return the vocabulary of a subset; see :func:`names_of`."""
    from odise_mm.vocabulary import Vocabulary  # slow import

    names = names_of(subset)
    return Vocabulary(
        tuple(name.synonyms for name in names),
        tuple(name.is_thing for name in names),
        f"toy_{subset}",
    )
