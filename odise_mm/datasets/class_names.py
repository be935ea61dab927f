"""Vocabularies and class subsets of datasets."""

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
from odise_mm.vocabulary.separators import clean

OBJECT = Vocabulary((("object",),), (True,), name="object")
Subsets = Mapping[str, str | Sequence[str]]


def resolve_vocabulary(
    vocabulary: str | Vocabulary | None,
    label_file: str | None = None,
    class_agnostic: bool = False,
    data_root: str | None = None,
) -> tuple[Vocabulary, Vocabulary | None]:
    """Resolve the class names of a dataset.

    Args:
        vocabulary: see :class:`odise_mm.datasets.PanopticDataset`.
        label_file: file of names that replace the vocabulary's synonyms, class by class. It may
            have one more class if that is the first and is named "background".
        class_agnostic: whether to merge all classes into one, "object".
        data_root: folder in which relative paths are looked up first.

    Returns:
        Two vocabularies: the one the model sees, and the one of the annotation files. They have
        the same classes unless ``class_agnostic``. The second is None if the annotations may have
        any categories.

    Raises:
        ConfigError: ``class_agnostic`` is neither True nor False.
        DatasetError: there is no vocabulary, or the label file has a different number of classes.
        VocabularyError: a file cannot be read.
    """
    check_flag("class_agnostic", class_agnostic)
    if vocabulary is None and not class_agnostic:
        raise DatasetError(
            f"a dataset needs `vocabulary`: one of {', '.join(BUILTIN)}, or a file of class names"
        )
    if isinstance(vocabulary, str):
        vocabulary = _load_names(vocabulary, data_root)
    elif not isinstance(vocabulary, Vocabulary | None):
        raise DatasetError(
            f"`vocabulary` of a dataset must be a built-in name or a file, not {vocabulary!r}; "
            "docs/vocabularies.md shows how to write a file of class names"
        )
    if label_file is not None and vocabulary is not None:
        labels = _load_names(label_file, data_root)
        # The published list for VOC 20 is that of VOC 21.
        if len(labels) == len(vocabulary) + 1 and "background" in labels.synonyms[0]:
            labels = Vocabulary(labels.synonyms[1:], labels.is_thing[1:], labels.name)
        if len(labels) != len(vocabulary):
            raise DatasetError(
                f"{label_file} has {len(labels)} classes, but the vocabulary '{vocabulary.name}' "
                f"has {len(vocabulary)}; a label file renames the classes one by one, so the "
                "numbers must be equal"
            )
        vocabulary = Vocabulary(
            labels.synonyms, vocabulary.is_thing, labels.name, vocabulary.source_names
        )
    return (OBJECT if class_agnostic else vocabulary), vocabulary


def _load_names(name: str, data_root: str | None) -> Vocabulary:
    path = find_file(name, data_root)
    if data_root and name.endswith((".txt", ".json")) and not os.path.isfile(path):
        raise VocabularyError(
            f"{name}: file of class names not found, neither in {data_root} nor in the current "
            f"folder; {LAYOUT}"
        )
    return Vocabulary.load(path)


def find_file(path: str, data_root: str | None) -> str:
    """Return the path below ``data_root`` if that file exists, else ``path`` unchanged."""
    below = os.path.join(data_root or "", path)
    return below if not os.path.isabs(path) and os.path.isfile(below) else path


def resolve_subsets(
    subsets: Subsets | None, vocabulary: Vocabulary, data_root: str | None = None
) -> dict[str, tuple[int, ...]]:
    """Resolve the class indices of a dataset's subsets.

    Args:
        subsets: see :class:`odise_mm.datasets.PanopticDataset`.
        vocabulary: the dataset's vocabulary, as the model sees it.
        data_root: folder in which relative paths are looked up first.

    Returns:
        Name of the subset -> its class indices in ascending order.

    Raises:
        DatasetError: a subset's name is not a plain word; its classes cannot be read, are empty
            or are not among the dataset's; or the dataset is class-agnostic.
    """
    if not isinstance(subsets, Mapping | None):
        raise DatasetError(f"`subsets` must map names of subsets to classes, not {subsets!r}")
    if subsets and vocabulary == OBJECT:
        raise DatasetError(
            f"subsets {', '.join(map(str, subsets))}: class_agnostic=True leaves a single class; "
            "set subsets=None"
        )
    labels_of: dict[str, list[int]] = {}
    for label, name in enumerate(vocabulary.source_names):
        labels_of.setdefault(_spelling(name), []).append(label)
    found = {}
    for subset, given in (subsets or {}).items():
        if not isinstance(subset, str) or not re.fullmatch(r"\w[\w-]*", subset):
            raise DatasetError(
                f"subset {subset!r}: metrics are named after it, so it must be a plain word of "
                "letters, digits, _ and -, such as 'novel'"
            )
        names = _names_of_subset(subset, given, data_root)
        unknown = [name for name in names if _spelling(name) not in labels_of]
        if unknown:
            known = vocabulary.source_names
            # The likeliest mistake is a synonym, such as "grass" for "grass-merged".
            place_of = {
                _spelling(s): i for i, group in enumerate(vocabulary.synonyms) for s in group
            }
            index = place_of.get(_spelling(unknown[0]))
            meant = str(unknown[0]) if index is None else known[index]
            hint = nearest(meant, known) or f", which are {some(map(repr, known))}"
            raise DatasetError(
                f"subset {subset!r}: {some(map(repr, unknown))} not among the {len(known)} class "
                f"names in the annotations of '{vocabulary.name}'{hint}"
            )
        found[subset] = tuple(sorted({i for name in names for i in labels_of[_spelling(name)]}))
    return found


def _names_of_subset(subset: str, given: Any, data_root: str | None) -> Sequence[str]:
    if isinstance(given, str):
        try:
            return _load_names(given, data_root).source_names
        except VocabularyError as err:
            raise DatasetError(f"subset {subset!r}: {err}; to name classes, pass a list") from err
    if not isinstance(given, Sequence):
        raise DatasetError(
            f"subset {subset!r} must be a built-in vocabulary, a file or a list of class names, "
            f"not {given!r}"
        )
    if not given:
        raise DatasetError(f"subset {subset!r} has no classes; add some, or leave it out")
    return given


def _spelling(name: Any) -> str:
    """Normalize a name; vocabularies treat names with the same result as equal."""
    return clean(str(name)).casefold()


def metainfo_of(
    vocabulary: Vocabulary, subsets: Subsets | None = None, data_root: str | None = None
) -> dict[str, Any]:
    """Return the metainfo of a dataset.

    It contains mmdet's and mmseg's ``classes``, ``thing_classes`` and ``stuff_classes``, and in
    addition ``vocabulary`` and ``subsets``, see :func:`resolve_subsets`.
    """
    return {
        **vocabulary.metainfo,
        "vocabulary": vocabulary,
        "subsets": resolve_subsets(subsets, vocabulary, data_root),
    }
