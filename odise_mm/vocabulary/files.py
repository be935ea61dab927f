"""Reading and writing of vocabulary files. docs/vocabularies.md describes the formats."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.logging import print_log

from odise_mm.annotations.coco_json import check_categories, without_unused_roots
from odise_mm.annotations.json_fields import shown
from odise_mm.errors import DatasetError, VocabularyError
from odise_mm.utils.display import printable
from odise_mm.utils.files import read_json, regular_file
from odise_mm.vocabulary.separators import clean, has_semicolon, split_synonyms, with_quotes
from odise_mm.vocabulary.tables import Row, read_csv, read_yaml


class RawClass(NamedTuple):
    """One class of a vocabulary file."""

    synonyms: tuple[str, ...]
    is_thing: bool
    source: str = ""
    """Name of the class in its dataset; "" if that is the first synonym."""
    id: int | None = None
    """Id in the file, or position, if the file does not say which classes are things."""


_OWN_LINE = re.compile(r"(thing|stuff)\s*:\s*([^|]*)(?:\|\s*([^|]*))?", re.IGNORECASE)
_ID_LINE = re.compile(r"(\d+)\s*:(.*)")
_NUMBERED_LINE = re.compile(r"(\d+)[.)]?\s+\S.*")
# Label files use this name for ids that do not stand for a class.
_INVALID = "invalid_class_id"


def read_classes(path: Path) -> list[RawClass]:
    """Read the classes of a vocabulary file in any of the formats.

    Raises:
        VocabularyError: If the file cannot be read or has another format. The message names
            ``file:line``.
    """
    path = regular_file(path, VocabularyError, "vocabulary file")
    suffix = path.suffix.lower()
    if suffix == ".json":
        classes = _read_json(path)
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise VocabularyError(f"cannot read vocabulary file {path}: {error}") from error
        if suffix == ".csv":
            classes = _of_rows(read_csv(text, path), path)
        elif suffix in (".yaml", ".yml"):
            classes = _of_rows(read_yaml(text, path), path)
        else:
            classes = _read_text(text, path)
    if not classes:
        raise VocabularyError(f"vocabulary file {path} has no classes")
    return classes


def format_classes(classes: Sequence[RawClass], title: str) -> str:
    """Return the content of a file in our text format.

    Args:
        classes: The classes to write.
        title: Comment for the first line.

    Raises:
        VocabularyError: If a name contains a separator of the format or a line break.
    """
    lines = [f"# {clean(title)}"]
    for item in classes:
        for name in (*item.synonyms, item.source):
            if any(sign in name for sign in "|\n\r"):
                raise VocabularyError(
                    f"{name!r} cannot be saved: '|' and line breaks are separators"
                )
        written = ", ".join(map(with_quotes, item.synonyms))
        if split_synonyms(written) != item.synonyms:
            raise VocabularyError(
                f"{item.synonyms!r} cannot be saved: a name has quotation marks besides a comma or "
                "around it, or is repeated"
            )
        source = f" | {item.source}" if item.source not in ("", item.synonyms[0]) else ""
        kind = "thing" if item.is_thing else "stuff"
        lines.append(f"{kind}: {written}{source}")
    return "\n".join(lines) + "\n"


def classes_of_metainfo(metainfo: Mapping[str, Any]) -> list[RawClass]:
    """Return the classes of an mmdet or mmseg metainfo, see ``Vocabulary.from_metainfo``."""
    lists: dict[str, list[str] | None] = {}
    for key in ("classes", "thing_classes", "stuff_classes"):
        given = metainfo.get(key)
        if given is not None and (
            not isinstance(given, list | tuple) or not all(isinstance(n, str) for n in given)
        ):
            raise VocabularyError(f"metainfo['{key}'] must be a list of names, not {given!r}")
        lists[key] = None if given is None else list(given)
    listed_things, listed_stuff = lists["thing_classes"], lists["stuff_classes"]
    names = lists["classes"] or [*(listed_things or []), *(listed_stuff or [])]
    if not names:
        raise VocabularyError("metainfo has no class names under 'classes'")
    known = set(names)
    for key in ("thing_classes", "stuff_classes"):
        for name in lists[key] or []:
            if name not in known:
                raise VocabularyError(f"'{name}' of metainfo['{key}'] is not in 'classes'")
    things = known.difference(listed_stuff or []) if listed_things is None else set(listed_things)
    stuff = known.difference(things) if listed_stuff is None else set(listed_stuff)
    classes = []
    for name in names:
        if (name in things) == (name in stuff):
            which = "both" if name in things else "neither"
            raise VocabularyError(f"'{name}' is in {which} of 'thing_classes' and 'stuff_classes'")
        group = split_synonyms(name)
        if not group:
            raise VocabularyError(f"metainfo['classes'] has an empty name: {name!r}")
        classes.append(RawClass(group, name in things, name))
    return classes


def _read_text(text: str, path: Path) -> list[RawClass]:
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if lines and _ID_LINE.fullmatch(lines[0][1]):
        return _read_ids(lines, path)
    # Names rarely contain a colon, so a file with one is not a plain list.
    plain = not any(":" in line or "|" in line for _, line in lines)
    if plain:
        _warn_of_numbers([line for _, line in lines], path)
    return _read_own(lines, path, plain)


def _warn_of_numbers(lines: Sequence[str], path: Path) -> None:
    """Log a warning if the lines of a plain list are numbered from 0 or 1 ("0 cat", "1. dog")."""
    found = [_NUMBERED_LINE.fullmatch(line) for line in lines]
    numbers = [int(match[1]) for match in found if match]
    if len(numbers) == len(lines) > 1 and numbers in (
        list(range(len(lines))),
        list(range(1, len(lines) + 1)),
    ):
        print_log(
            f"{printable(path)}: the numbers are read as parts of the names, such as "
            f"{printable(repr(lines[0]), limit=60)}; write the names alone, or a colon after each "
            "number",
            logger="current",
            level=logging.WARNING,
        )


def _of_rows(rows: Sequence[Row], path: Path) -> list[RawClass]:
    """Return the classes of a table, in the order of their ids, if they have ids."""
    if any(number is not None for *_, number in rows):
        rows = sorted(rows, key=lambda row: row[2] or 0)
    owner: dict[str, int] = {}
    ids: set[int] = set()
    classes = []
    for index, (group, is_thing, number) in enumerate(rows):
        id_ = index if number is None else number
        if id_ in ids:
            raise VocabularyError(f"{path}: id {id_} is used twice")
        ids.add(id_)
        for name in group:
            if owner.setdefault(name.casefold(), index) != index:
                raise VocabularyError(f"{path}: name '{name}' is in two classes")
        # Only a file without flags can be combined with things=, which needs ids.
        classes.append(RawClass(group, is_thing is not False, id=id_ if is_thing is None else None))
    return classes


def _read_own(lines: Sequence[tuple[int, str]], path: Path, plain: bool) -> list[RawClass]:
    """Read ``thing: name, name`` lines, or in a plain list, ``name, name`` lines of things."""
    classes: list[RawClass] = []
    owner: dict[str, int] = {}
    for number, line in lines:
        match = _OWN_LINE.fullmatch(f"thing: {line}" if plain else line)
        if match is None:
            raise VocabularyError(
                f"{path}:{number}: expected 'thing: name, name' or 'stuff: name, name' (or "
                "'id:name,name' or a plain name in every line of the file), found "
                f"{line[:80]!r}"
            )
        if plain and has_semicolon(line):
            raise VocabularyError(
                f"{path}:{number}: ';' does not separate names in a file; write one class per "
                "line, with ',' between its synonyms"
            )
        group = split_synonyms(match[2])
        if not group:
            raise VocabularyError(f"{path}:{number}: class without a name")
        for name in group:
            if name.startswith('"'):
                raise VocabularyError(
                    f"{path}:{number}: {name!r} begins with a quotation mark, but no closing one "
                    "ends the name"
                )
            other = owner.setdefault(name.casefold(), number)
            if other != number:
                raise VocabularyError(
                    f"{path}:{number}: name '{name}' already belongs to the class in line {other}"
                )
        source, id_ = (match[3] or "").strip(), len(classes) if plain else None
        classes.append(RawClass(group, match[1].lower() == "thing", source, id_))
    return classes


def _read_ids(lines: Sequence[tuple[int, str]], path: Path) -> list[RawClass]:
    found: dict[int, tuple[int, tuple[str, ...]]] = {}
    for number, line in lines:
        match = _ID_LINE.fullmatch(line)
        if match is None:
            raise VocabularyError(f"{path}:{number}: expected 'id:name,name', found {line[:80]!r}")
        index, group = int(match[1]), split_synonyms(match[2])
        if not group:
            raise VocabularyError(f"{path}:{number}: id {index} has no name")
        if index in found:
            raise VocabularyError(
                f"{path}:{number}: id {index} is already used in line {found[index][0]}"
            )
        found[index] = (number, group)
    # Two classes may share a name: published results depend on files with such names.
    return [
        RawClass(group, True, "", index)
        for index, (_, group) in sorted(found.items())
        if group != (_INVALID,)
    ]


def _read_json(path: Path) -> list[RawClass]:
    content = read_json(path, VocabularyError, "vocabulary file")
    where = printable(path)
    if isinstance(content, dict) and "categories" not in content:
        try:
            return classes_of_metainfo(content)
        except VocabularyError as error:
            raise VocabularyError(f"{where}: {error}") from error
    rows = content["categories"] if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise VocabularyError(
            f"{where}: expected mmdet's metainfo (a mapping with 'classes') or COCO's categories "
            "(a list of mappings with 'id', 'name' and 'isthing')"
        )
    try:
        categories = check_categories(rows, where)
    except DatasetError as error:
        raise VocabularyError(str(error)) from error
    categories = without_unused_roots(categories, _used(content))
    owner: dict[str, int | str] = {}
    for id_, category in categories.items():
        name = clean(category["name"])
        if owner.setdefault(name, id_) != id_:
            raise VocabularyError(
                f"{where}: category name {printable(repr(name))} appears more than once, with ids "
                f"{shown(owner[name])} and {shown(id_)}; rename one of the categories"
            )
    if all(isinstance(id_, int) for id_ in categories):  # string ids keep the file's order
        categories = {id_: categories[id_] for id_ in sorted(categories)}
    return [_of_category(category, where) for category in categories.values()]


def _of_category(category: dict, path: str) -> RawClass:
    # COCO's detection files have no isthing: all their categories are things.
    group = split_synonyms(category["name"])
    if not group:
        raise VocabularyError(
            f"{path}: the name of category {shown(category['id'])} consists of commas only"
        )
    return RawClass(group, bool(category.get("isthing", 1)), category["name"])


def _used(content: Any) -> set[int | str]:
    """Return the category ids used by annotations, if the content is a whole annotation file."""
    rows = content.get("annotations", ()) if isinstance(content, dict) else ()
    found = set()
    for row in rows if isinstance(rows, list) else ():
        entries = row.get("segments_info", [row]) if isinstance(row, dict) else ()
        for entry in entries if isinstance(entries, list) else ():
            id_ = entry.get("category_id") if isinstance(entry, dict) else None
            found.update([id_] if isinstance(id_, int | str) else [])
    return found


def key_of(text: str) -> str:
    """Return the form in which names are compared: case and extra white space don't count."""
    return clean(text).casefold()
