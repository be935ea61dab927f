"""Mapping from the categories of an annotation file to the classes of a vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from odise_mm.annotations.coco_json import (
    CocoFile,
    Id,
    used_categories,
    without_unused_roots,
)
from odise_mm.annotations.json_fields import shown, twin
from odise_mm.errors import DatasetError
from odise_mm.utils.display import printable, some
from odise_mm.vocabulary.vocabulary import Vocabulary


def label_of_category(
    content: CocoFile, wanted: Vocabulary | None, *, complete: bool = True
) -> dict[Id, int]:
    """Return the class index of every category that belongs to the vocabulary, by category id.

    Args:
        content: Content of the annotation file.
        wanted: Vocabulary whose ``source_names`` are category names. None maps every category to
            class 0.
        complete: Whether every class of the vocabulary must have a category.

    Raises:
        DatasetError: If a name occurs twice, a class has no category, or an annotation's category
            is not a class of the vocabulary.
    """
    path, used = content.path, used_categories(content.annotations)
    categories = without_unused_roots(content.categories, used)
    if wanted is None:
        label_of = dict.fromkeys(categories, 0)
    else:
        label_of = _labels_by_name(categories, wanted, path)
        missing = [wanted.source_names[i] for i in _missing(label_of.values(), wanted)]
        if missing and complete:
            names = [category["name"] for category in categories.values()]
            raise DatasetError(
                f"{path}: no category for {some(map(_quoted, missing))} of vocabulary "
                f"'{wanted.name}' ({len(wanted)} classes); the file has {len(names)} categories: "
                f"{some(map(_quoted, names))}. Choose the vocabulary of this dataset"
            )
    unknown = sorted(used - set(label_of), key=str)
    if unknown:
        listed = some(_unknown_category(id_, categories) for id_ in unknown)
        raise DatasetError(
            f"{path}: unknown category ids in annotations: {listed}{twin(unknown[0], categories)}; "
            "list every category in `categories`, under a name of the vocabulary"
        )
    return label_of


def _labels_by_name(categories: Mapping[Id, dict], wanted: Vocabulary, path: str) -> dict[Id, int]:
    index_of = {name: index for index, name in enumerate(wanted.source_names)}
    label_of: dict[Id, int] = {}
    first: dict[str, Id] = {}
    for id_, category in categories.items():
        name = category["name"]
        if name not in index_of:
            continue
        if first.setdefault(name, id_) != id_:
            raise DatasetError(
                f"{path}: category name {_quoted(name)} appears more than once, with ids "
                f"{shown(first[name])} and {shown(id_)}; rename one of the categories"
            )
        label_of[id_] = index_of[name]
    return label_of


def _missing(labels: Iterable[int], wanted: Vocabulary) -> list[int]:
    # Compared by name, as two classes of a vocabulary may share a name.
    known = {wanted.source_names[label] for label in labels}
    return [i for i, name in enumerate(wanted.source_names) if name not in known]


def _unknown_category(id_: Id, categories: Mapping[Id, dict]) -> str:
    if id_ in categories:
        return f"{shown(id_)} ({printable(categories[id_]['name'])})"
    return f"{shown(id_)} (not in `categories`)"


def _quoted(name: str) -> str:
    return printable(repr(name))
