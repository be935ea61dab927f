"""What the data sets share: which vocabulary, which annotations."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmengine.logging import print_log

from odise_mm.datasets.vocabulary import BUILTIN, Vocabulary
from odise_mm.datasets.vocabulary_files import clean
from odise_mm.errors import DatasetError, VocabularyError
from odise_mm.utils.coco_json import (
    CocoFile,
    Id,
    read_captions,
    read_coco,
    used_categories,
    without_unused_roots,
)
from odise_mm.utils.display import printable
from odise_mm.utils.files import read_json
from odise_mm.utils.json_fields import shown, twin
from odise_mm.utils.names import nearest
from odise_mm.utils.settings import check_flag

LAYOUT = "docs/datasets.md and docs/training_data.md say what belongs where"
OBJECT = Vocabulary((("object",),), (True,), name="object")
Subsets = Mapping[str, str | Sequence[str]]


def resolve_vocabulary(
    vocabulary: str | Vocabulary | None,
    label_file: str | None = None,
    class_agnostic: bool = False,
    data_root: str | None = None,
) -> tuple[Vocabulary, Vocabulary | None]:
    """What a data set's classes are called.

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
            f"a data set needs `vocabulary`: one of {', '.join(BUILTIN)}, or a file of names"
        )
    if isinstance(vocabulary, str):
        vocabulary = _load_names(vocabulary, data_root)
    elif not isinstance(vocabulary, Vocabulary | None):
        raise DatasetError(
            f"`vocabulary` of a data set is a built-in name or a file, not {vocabulary!r}; "
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
    """Which classes of a data set are in its subsets.

    Args:
        subsets: see :class:`odise_mm.datasets.PanopticDataset`.
        vocabulary: of the data set, as the model sees it.
        data_root: relative paths are looked up here first.

    Returns:
        Class indices of every subset, ascending.

    Raises:
        DatasetError: a subset's name is no plain word, its classes cannot be read, are none or
            are not the data set's; or there are subsets of the single class "object".
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
            hint = nearest(meant, known) or f", which are {_some(map(repr, known))}"
            raise DatasetError(
                f"subset {subset!r}: {_some(map(repr, unknown))} not among the names that the "
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


def read_annotations(path: str | os.PathLike, kind: str, **wanted: bool) -> CocoFile:
    """Annotations in COCO's format; the log says what was left out.

    Args:
        path, kind, wanted: see :func:`odise_mm.utils.coco_json.read_coco`.

    Raises:
        DatasetError: there is no such file, or it is wrong.
    """
    if not path or not os.path.exists(path):
        missing = printable(os.fspath(path)) if path else "`ann_file` is empty"
        raise DatasetError(f"{missing}: no such annotation file; {LAYOUT}")
    content = read_coco(path, kind, **wanted)
    for note in content.notes:
        print_log(note, logger="current", level=logging.WARNING)
    return content


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
                f"{path}: no category is called {_some(map(_quoted, missing))} as the vocabulary "
                f"'{wanted.name}' ({len(wanted)} classes) asks for; the file has {len(names)} "
                f"categories: {_some(map(_quoted, names))}. Choose the vocabulary of this data set"
            )
    unknown = sorted(used - set(label_of), key=str)
    if unknown:
        listed = _some(_unknown_category(id_, categories) for id_ in unknown)
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


def _some(texts: Iterable[str], limit: int = 5) -> str:
    texts = list(texts)
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more" * (len(texts) > limit))


def check_folder(path: str | None, what: str) -> None:
    """
    Raises:
        DatasetError: there is no such folder.
    """
    if not path or not os.path.isdir(path):
        raise DatasetError(f"{path or 'no path given'}: no such folder of {what}; {LAYOUT}")


def keep_usable(data: list[dict], usable: Sequence[bool], path: str, reason: str) -> list[dict]:
    """The images that can be used; the log says how many cannot.

    Raises:
        DatasetError: none is left.
    """
    kept = [info for info, use in zip(data, usable, strict=True) if use]
    if not kept:
        why = f"all {len(data)} images are {reason}" if data else "it lists no image"
        raise DatasetError(f"{path}: the data set is empty, {why}")
    if len(kept) < len(data):
        first = next(info for info, use in zip(data, usable, strict=True) if not use)
        print_log(
            f"{path}: {len(data) - len(kept)} of {len(data)} images are left out, {reason} "
            f"(the first: {first['img_path']})",
            logger="current",
        )
    return kept


def read_phrases(path: str | os.PathLike) -> dict[str, list[list[str]]]:
    """Noun phrases by image id (as text): one list per caption, see docs/training_data.md.

    Raises:
        DatasetError: missing, or something else.
    """
    if not os.path.exists(path):
        raise DatasetError(
            f"{path}: no such file of noun phrases; tools/dataset_converters/coco.py writes it"
        )
    content = read_json(path, DatasetError, "file of noun phrases")
    phrases = content.get("phrases") if isinstance(content, dict) else None
    if not isinstance(phrases, dict) or not all(map(_are_phrases, phrases.values())):
        raise DatasetError(
            f"{printable(path)}: not a file of noun phrases; `phrases` must be image id -> list of "
            "captions, each a list of phrases"
        )
    return phrases


def _are_phrases(captions: Any) -> bool:
    return isinstance(captions, list) and all(
        isinstance(caption, list) and all(isinstance(phrase, str) for phrase in caption)
        for caption in captions
    )


def add_phrases(data: list[dict], path: str | os.PathLike) -> None:
    """Give the images the noun phrases of a file, as ``captions_phrases``.

    Raises:
        DatasetError: no image is in the file.
    """
    phrases = read_phrases(path)
    without = 0
    for info in data:
        info["captions_phrases"] = phrases.get(str(info["img_id"]), [])
        without += not any(info["captions_phrases"])
    if data and not any(str(info["img_id"]) in phrases for info in data):
        raise DatasetError(
            f"{path}: has none of the {len(data)} images of this data set (the first image's id "
            f"is {shown(data[0]['img_id'])}); is it that of another split?"
        )
    if without:
        print_log(
            f"{path}: {without} of {len(data)} images have no noun phrase; they train masks, "
            "not words",
            logger="current",
        )


def add_captions(data: list[dict], path: str | os.PathLike) -> None:
    """Give the images the captions of a file, as ``captions``, and the first as ``caption``.

    Raises:
        DatasetError: an image has none, or other ones than its noun phrases were read off.
    """
    if not os.path.exists(path):
        raise DatasetError(f"{printable(path)}: no such file of captions; {LAYOUT}")
    captions = read_captions(path)
    without = [info for info in data if info["img_id"] not in captions]
    if without:
        first = without[0]["img_id"]
        raise DatasetError(
            f"{path}: {len(without)} of {len(data)} images have no caption (the first: "
            f"{without[0]['img_path']}, id {shown(first)}){twin(first, captions)}; is it that of "
            "another split? Leave captions_file out where the model needs no captions"
        )
    for info in data:
        info["captions"] = captions[info["img_id"]]
        info["caption"] = info["captions"][0]
        phrases = info.get("captions_phrases")
        if phrases and len(phrases) != len(info["captions"]):
            raise DatasetError(
                f"{path}: image id {info['img_id']} has {len(info['captions'])} captions, and "
                f"noun phrases of {len(phrases)}; make the phrases_file from this file"
            )
