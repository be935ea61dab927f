"""Which class of a vocabulary a category of an annotation file is."""

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
    """Class index of every category id that is a class of the vocabulary.

    Args:
        content: of the annotation file.
        wanted: its ``source_names`` are the categories' names. None: all are class 0.
        complete: whether every class of the vocabulary must have a category.

    Raises:
        DatasetError: a name twice, a class that no category has, or an annotation of a category
            that is no class.
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
                f"{path}: no category is called {some(map(_quoted, missing))} as the vocabulary "
                f"'{wanted.name}' ({len(wanted)} classes) asks for; the file has {len(names)} "
                f"categories: {some(map(_quoted, names))}. Choose the vocabulary of this dataset"
            )
    unknown = sorted(used - set(label_of), key=str)
    if unknown:
        listed = some(_unknown_category(id_, categories) for id_ in unknown)
        raise DatasetError(
            f"{path}: unknown category ids in annotations: {listed}{twin(unknown[0], categories)}; "
            "every category that is used must be in `categories` and its name in the vocabulary"
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
                f"{path}: category name {_quoted(name)} is there more than once, with the ids "
                f"{shown(first[name])} and {shown(id_)}; rename one of the categories"
            )
        label_of[id_] = index_of[name]
    return label_of


def _missing(labels: Iterable[int], wanted: Vocabulary) -> list[int]:
    # By name, as a name may stand in two classes of a vocabulary.
    known = {wanted.source_names[label] for label in labels}
    return [i for i, name in enumerate(wanted.source_names) if name not in known]


def _unknown_category(id_: Id, categories: Mapping[Id, dict]) -> str:
    if id_ in categories:
        return f"{shown(id_)} ({printable(categories[id_]['name'])})"
    return f"{shown(id_)} (not in `categories`)"


def _quoted(name: str) -> str:
    return printable(repr(name))
