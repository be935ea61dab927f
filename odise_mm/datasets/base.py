"""What the data sets share: which vocabulary, which annotations."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from odise_mm.datasets.vocabulary import BUILTIN, Vocabulary
from odise_mm.datasets.vocabulary_files import clean
from odise_mm.errors import DatasetError, VocabularyError
from odise_mm.utils.names import nearest

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
        DatasetError: no vocabulary, or a label file with another number of classes.
        VocabularyError: a file that cannot be read.
    """
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
            shown = {_spelling(s): i for i, group in enumerate(vocabulary.synonyms) for s in group}
            index = shown.get(_spelling(unknown[0]))
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


def read_annotations(path: str | os.PathLike, kind: str) -> dict[str, list[dict]]:
    """COCO's annotations: ``images``, ``annotations`` and ``categories``.

    Args:
        kind: "panoptic" or "instance", what the annotations must be.

    Raises:
        DatasetError: missing, not JSON, or something else than such annotations.
    """
    content = _read_json(path)
    keys = ("images", "annotations", "categories")
    wrong = [
        key
        for key in keys
        if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if wrong:
        raise DatasetError(
            f"{path}: not COCO's {kind} annotations, there is no list `{wrong[0]}` in it"
        )
    first = next(iter(content["annotations"]), None)
    if first is not None and ("segments_info" in first) != (kind == "panoptic"):
        other = "instance" if kind == "panoptic" else "panoptic"
        raise DatasetError(f"{path}: holds {other} annotations where {kind} ones are expected")
    return {key: content.pop(key) for key in keys}


def _read_json(path: str | os.PathLike) -> Any:
    if not path or not os.path.isfile(path):
        raise DatasetError(f"{path or '`ann_file` is empty'}: no such annotation file; {LAYOUT}")
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as err:
        raise DatasetError(f"{path}: not JSON, or cut short ({err}); get it again") from err
    except OSError as err:
        raise DatasetError(f"{path}: cannot be read ({err})") from err


def label_of_category(
    categories: Sequence[dict], wanted: Vocabulary | None, path: str
) -> dict[int, int]:
    """Class index of every category id that is a class of the vocabulary.

    Args:
        categories: of the annotation file.
        wanted: its ``source_names`` are the categories' names. None: all are class 0.
        path: of the annotation file, for messages.

    Raises:
        DatasetError: an id or name twice, or a class that no category has.
    """
    ids = _unique([category["id"] for category in categories], "category id", path)
    names = [category["name"] for category in categories]
    if wanted is None:
        return dict.fromkeys(ids, 0)
    index_of = {name: index for index, name in enumerate(wanted.source_names)}
    known = [name for name in names if name in index_of]
    _unique(known, "category name", path)
    missing = [name for name in wanted.source_names if name not in set(known)]
    if missing:
        raise DatasetError(
            f"{path}: no category is called {_some(map(repr, missing))} as the vocabulary "
            f"'{wanted.name}' ({len(wanted)} classes) asks for; the file has {len(names)} "
            f"categories: {_some(map(repr, names))}. Choose the vocabulary of this data set"
        )
    return {i: index_of[name] for i, name in zip(ids, names, strict=True) if name in index_of}


def check_categories(
    used: Iterable[int], label_of: dict[int, int], categories: Sequence[dict], path: str
) -> None:
    """All categories that annotations have must be classes.

    Raises:
        DatasetError: names those that are not.
    """
    names = {category["id"]: category["name"] for category in categories}
    unknown = sorted(set(used) - set(label_of), key=str)
    if unknown:
        listed = _some(f"{i} ({names.get(i, 'not in `categories`')})" for i in unknown)
        raise DatasetError(
            f"{path}: unknown category ids in annotations: {listed}; every category that is used "
            "must be in `categories` and its name in the vocabulary"
        )


def index_images(images: Sequence[dict], path: str) -> dict[Any, dict]:
    """Images by id, in their order.

    Raises:
        DatasetError: an id twice.
    """
    _unique([image["id"] for image in images], "image id", path)
    return {image["id"]: image for image in images}


def _unique(values: list, what: str, path: str) -> list:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise DatasetError(f"{path}: {what} {twice[0]!r} is there more than once")
    return values


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


@contextmanager
def malformed_entries(path: str) -> Iterator[None]:
    """A field that an entry lacks, or that holds something odd, becomes a DatasetError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as err:
        what = f"an entry lacks {err}" if isinstance(err, KeyError) else f"an odd entry: {err}"
        raise DatasetError(f"{path}: {what}; it is not complete COCO annotations") from err


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
    if not os.path.isfile(path):
        raise DatasetError(
            f"{path}: no such file of noun phrases; tools/dataset_converters/coco.py writes it"
        )
    try:
        phrases = json.loads(Path(path).read_text(encoding="utf-8"))["phrases"]
        fits = all(
            isinstance(phrase, str)
            for captions in phrases.values()
            for caption in captions
            for phrase in (caption if isinstance(caption, list) else [None])
        )
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise DatasetError(f"{path}: not a file of noun phrases ({err!r})") from err
    if not fits:
        raise DatasetError(
            f"{path}: not a file of noun phrases; `phrases` must be image id -> list of captions, "
            "each a list of phrases"
        )
    return phrases


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
            f"is {data[0]['img_id']}); is it that of another split?"
        )
    if without:
        print_log(
            f"{path}: {without} of {len(data)} images have no noun phrase; they train masks, "
            "not words",
            logger="current",
        )


def read_captions(path: str | os.PathLike) -> dict[Any, list[str]]:
    """Captions by image id, in the order of COCO's file (``captions_*.json``).

    Raises:
        DatasetError: missing, not JSON, or something else.
    """
    content = _read_json(path)
    captions: dict[Any, list[str]] = {}
    with malformed_entries(os.fspath(path)):
        for annotation in content["annotations"]:
            caption = annotation["caption"].strip()
            captions.setdefault(annotation["image_id"], []).append(caption)
    return captions


def add_captions(data: list[dict], path: str | os.PathLike) -> None:
    """Give the images the captions of a file, as ``captions``, and the first as ``caption``.

    Raises:
        DatasetError: an image has none, or other ones than its noun phrases were read off.
    """
    captions = read_captions(path)
    without = [info for info in data if info["img_id"] not in captions]
    if without:
        raise DatasetError(
            f"{path}: {len(without)} of {len(data)} images have no caption (the first: "
            f"{without[0]['img_path']}, id {without[0]['img_id']}); is it that of another split? "
            "Leave captions_file out where the model needs no captions"
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
