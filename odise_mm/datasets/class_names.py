"""What the datasets share: which vocabulary, which annotations."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from odise_mm.annotations.reading import LAYOUT
from odise_mm.errors import DatasetError, VocabularyError
from odise_mm.utils.display import some
from odise_mm.utils.settings import check_flag
from odise_mm.utils.spelling import nearest
from odise_mm.vocabulary import BUILTIN, Vocabulary
from odise_mm.vocabulary.files import clean

OBJECT = Vocabulary((("object",),), (True,), name="object")
Subsets = Mapping[str, str | Sequence[str]]


def resolve_vocabulary(
    vocabulary: str | Vocabulary | None,
    label_file: str | None = None,
    class_agnostic: bool = False,
    data_root: str | None = None,
) -> tuple[Vocabulary, Vocabulary | None]:
    """What a dataset's classes are called.

    Args:
        vocabulary: see :class:`odise_mm.datasets.PanopticDataset`.
        label_file: names that replace the vocabulary's synonyms, class by class.
        class_agnostic: whether all classes become one.
        data_root: relative paths are looked up here first.

    Returns:
        The vocabulary as the model sees it, and that of the annotation files, class by class the
        same unless ``class_agnostic``; None where any category will do.

    Raises:
        ConfigError: ``class_agnostic`` is neither True nor False.
        DatasetError: no vocabulary, or a label file with another number of classes.
        VocabularyError: a file that cannot be read.
    """
    check_flag("class_agnostic", class_agnostic)
    if vocabulary is None and not class_agnostic:
        raise DatasetError(
            f"a dataset needs `vocabulary`: one of {', '.join(BUILTIN)}, or a file of names"
        )
    if isinstance(vocabulary, str):
        vocabulary = _load_names(vocabulary, data_root)
    elif not isinstance(vocabulary, Vocabulary | None):
        raise DatasetError(
            f"`vocabulary` of a dataset is a built-in name or a file, not {vocabulary!r}; "
            "docs/vocabularies.md shows how to write a file of names"
        )
    if label_file is not None and vocabulary is not None:
        labels = _load_names(label_file, data_root)
        if len(labels) != len(vocabulary):
            raise DatasetError(
                f"{label_file} has {len(labels)} classes, the vocabulary '{vocabulary.name}' "
                f"{len(vocabulary)}; a label file renames them one by one and needs as many"
            )
        vocabulary = Vocabulary(
            labels.synonyms, vocabulary.is_thing, labels.name, vocabulary.source_names
        )
    return (OBJECT if class_agnostic else vocabulary), vocabulary


def _load_names(name: str, data_root: str | None) -> Vocabulary:
    path = find_file(name, data_root)
    if data_root and name.endswith((".txt", ".json")) and not os.path.isfile(path):
        raise VocabularyError(f"no file of names {name}, neither in {data_root} nor here; {LAYOUT}")
    return Vocabulary.load(path)


def find_file(path: str, data_root: str | None) -> str:
    """A path below ``data_root`` where there is such a file, else as it is given."""
    below = os.path.join(data_root or "", path)
    return below if not os.path.isabs(path) and os.path.isfile(below) else path


def resolve_subsets(
    subsets: Subsets | None, vocabulary: Vocabulary, data_root: str | None = None
) -> dict[str, tuple[int, ...]]:
    """Which classes of a dataset are in its subsets.

    Args:
        subsets: see :class:`odise_mm.datasets.PanopticDataset`.
        vocabulary: of the dataset, as the model sees it.
        data_root: relative paths are looked up here first.

    Returns:
        Class indices of every subset, ascending.

    Raises:
        DatasetError: a subset's name is no plain word, its classes cannot be read, are none or
            are not the dataset's; or there are subsets of the single class "object".
    """
    if not isinstance(subsets, Mapping | None):
        raise DatasetError(f"`subsets` maps names of subsets to their classes, not {subsets!r}")
    if subsets and vocabulary == OBJECT:
        raise DatasetError(
            f"subsets {', '.join(map(str, subsets))}: with class_agnostic=True there is one class "
            "only; set subsets=None"
        )
    labels_of: dict[str, list[int]] = {}
    for label, name in enumerate(vocabulary.source_names):
        labels_of.setdefault(_spelling(name), []).append(label)
    found = {}
    for subset, given in (subsets or {}).items():
        if not isinstance(subset, str) or not re.fullmatch(r"\w[\w-]*", subset):
            raise DatasetError(
                f"subset {subset!r}: numbers are named after it, so it must be a plain word of "
                "letters, digits, _ and -, such as 'novel'"
            )
        names = _names_of_subset(subset, given, data_root)
        unknown = [name for name in names if _spelling(name) not in labels_of]
        if unknown:
            known = vocabulary.source_names
            # What a class is called for people is the likeliest mistake: "grass" of "grass-merged".
            place_of = {
                _spelling(s): i for i, group in enumerate(vocabulary.synonyms) for s in group
            }
            index = place_of.get(_spelling(unknown[0]))
            meant = str(unknown[0]) if index is None else known[index]
            hint = nearest(meant, known) or f", which are {some(map(repr, known))}"
            raise DatasetError(
                f"subset {subset!r}: {some(map(repr, unknown))} not among the names that the "
                f"annotations of '{vocabulary.name}' give its {len(known)} classes{hint}"
            )
        found[subset] = tuple(sorted({i for name in names for i in labels_of[_spelling(name)]}))
    return found


def _names_of_subset(subset: str, given: Any, data_root: str | None) -> Sequence[str]:
    if isinstance(given, str):
        try:
            return _load_names(given, data_root).source_names
        except VocabularyError as err:
            raise DatasetError(f"subset {subset!r}: {err}; names of classes go in a list") from err
    if not isinstance(given, Sequence):
        raise DatasetError(
            f"subset {subset!r} is a built-in vocabulary, a file or a list of class names, "
            f"not {given!r}"
        )
    if not given:
        raise DatasetError(f"subset {subset!r} has no class; name some, or leave it out")
    return given


def _spelling(name: Any) -> str:
    """Equal for names that vocabularies take for the same."""
    return clean(str(name)).casefold()


def metainfo_of(
    vocabulary: Vocabulary, subsets: Subsets | None = None, data_root: str | None = None
) -> dict[str, Any]:
    """mmdet's and mmseg's ``classes``, ``thing_classes``, ``stuff_classes``; and our own.

    These are ``vocabulary`` and ``subsets``, see :func:`resolve_subsets`.
    """
    return {
        **vocabulary.metainfo,
        "vocabulary": vocabulary,
        "subsets": resolve_subsets(subsets, vocabulary, data_root),
    }
