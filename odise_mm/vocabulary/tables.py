"""Vocabularies in CSV and YAML files of other tools. docs/vocabularies.md describes the formats."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from odise_mm.errors import VocabularyError
from odise_mm.vocabulary.separators import clean, split_synonyms

Row = tuple[tuple[str, ...], bool | None, int | None]
"""Synonyms, whether the class is a thing, and id; None stands for what the file does not say."""

_NAMES = ("name", "class", "label", "class_name")
_KINDS = ("kind", "type", "isthing", "is_thing")
_IDS = ("id", "class_id", "category_id")
_FLAGS = {"thing": True, "things": True, "1": True, "true": True, "yes": True}
_FLAGS |= {"stuff": False, "0": False, "false": False, "no": False}


def read_csv(text: str, path: Path) -> list[Row]:
    """Read a table with a heading, separated by commas, semicolons or tabs.

    Args:
        text: Content of the file.
        path: The file, for messages.

    Raises:
        VocabularyError: There is no column of names, or a cell is not valid.
    """
    heading = next((line for line in text.splitlines() if line.strip()), "")
    sign = max(",;\t", key=heading.count)
    # with line ends, because a quoted cell may contain some
    content = io.StringIO(text, newline="")
    lines = csv.reader(content, delimiter=sign, skipinitialspace=True, strict=True)
    columns: dict[str, int] = {}
    width = 0
    rows: list[Row] = []
    try:
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{path}:{lines.line_num}"
            if not columns:
                columns, width = _columns(cells, where), len(cells)
                continue
            if any(cell.strip() for cell in cells[width:]):
                raise VocabularyError(
                    f"{where}: the row has {len(cells)} cells, but the heading has {width}; put a "
                    f"cell that contains {sign!r} in double quotes"
                )
            if len(cells) <= columns["name"]:
                raise VocabularyError(f"{where}: the row has only {len(cells)} cells")
            rows.append(_row(cells, columns, where))
    except csv.Error as error:
        raise VocabularyError(f"{path}:{lines.line_num}: {error}") from error
    return rows


def _columns(heading: list[str], where: str) -> dict[str, int]:
    titles = [clean(cell).casefold() for cell in heading]
    known = {"name": _NAMES, "synonyms": ("synonyms",), "kind": _KINDS, "id": _IDS}
    found = {}
    for key, spellings in known.items():
        places = [i for i, title in enumerate(titles) if title in spellings]
        if len(places) > 1:
            raise VocabularyError(
                f"{where}: columns {titles[places[0]]!r} and {titles[places[1]]!r} have the same "
                "meaning; remove one of them"
            )
        if places:
            found[key] = places[0]
    if "name" not in found:
        raise VocabularyError(
            f"{where}: the first line must be a heading with a column 'name' (optional: "
            f"'synonyms', 'kind' with thing or stuff, 'id'), found {', '.join(titles)[:80]!r}"
        )
    return found


def _row(cells: list[str], columns: Mapping[str, int], where: str) -> Row:
    def cell(key: str) -> str:
        place = columns.get(key, len(cells))
        return clean(cells[place]) if place < len(cells) else ""

    # A cell of the column of names is one name, even with a comma.
    names = {cell("name").casefold(): cell("name")}
    for name in split_synonyms(cell("synonyms").replace(";", ",")):
        names.setdefault(name.casefold(), name)
    if not cell("name"):
        raise VocabularyError(f"{where}: class without a name")
    is_thing, number = None, None
    if cell("kind"):
        is_thing = _FLAGS.get(cell("kind").casefold())
        if is_thing is None:
            raise VocabularyError(f"{where}: {cell('kind')!r} is neither thing nor stuff")
    elif "kind" in columns:
        raise VocabularyError(f"{where}: the row does not say whether it is thing or stuff")
    if "id" in columns:
        if not cell("id").isdecimal():
            raise VocabularyError(f"{where}: id {cell('id')!r} is not a whole number")
        number = int(cell("id"))
    return tuple(names.values()), is_thing, number


class _Loader(yaml.SafeLoader):
    """Refuses keys that appear twice. PyYAML would drop all but the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if (key.tag, key.value) in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} appears twice", problem_mark=key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def read_yaml(text: str, path: Path) -> list[Row]:
    """Read the names of a YAML file: a list, or a mapping from ids to names, under ``names``.

    Ultralytics' dataset files have this form. Other entries of the file are ignored.

    Args:
        text: Content of the file.
        path: The file, for messages.

    Raises:
        VocabularyError: The file is not valid YAML, or has no names.
    """
    try:
        content: Any = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise VocabularyError(f"{path} is not valid YAML: {problem}") from error
    if isinstance(content, dict) and "names" in content:
        content = content["names"]
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, dict) or not content:
        raise VocabularyError(
            f"{path}: expected a list of names, or `names:` with a list or with ids and names"
        )
    rows: list[Row] = []
    for key, name in sorted(content.items(), key=lambda item: str(item[0]).zfill(12)):
        if isinstance(key, str) and key.isascii() and key.isdecimal():
            key = int(key)  # an id in quotes, as some programs write it
        if isinstance(key, bool) or not isinstance(key, int) or key < 0:
            raise VocabularyError(f"{path}: id {key!r} is not a whole number")
        if not isinstance(name, str) or not clean(name):
            hint = "; put it in quotes" if isinstance(name, bool | int | float) else ""
            raise VocabularyError(f"{path}: the name of id {key} is {name!r}, not text{hint}")
        rows.append(((clean(name),), None, key))
    return rows
