"""The class names that a model was trained with, compared with those of its config.

Classes that share a name with the training vocabulary count as base classes. The ensemble gives
CLIP's prediction less weight for them (:class:`~odise_mm.models.GeometricEnsemble`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.logging import print_log
from torch import nn

from odise_mm.errors import VocabularyError
from odise_mm.utils.display import printable
from odise_mm.vocabulary import Vocabulary

NOTE = "train_vocabulary"
"""Key of the training vocabulary in a checkpoint's ``meta``."""

_NOT_IN_OPENSEG = Path(__file__).parent / "not_in_openseg.txt"
_EXAMPLES = ("carpet", "mud", "home", "street", "beach", "meadow")
_SHOWN = 12


class PublishedNames(NamedTuple):
    """Training vocabulary of the published checkpoints of a method.

    Attributes:
        method: name of the method, for messages.
        vocabulary: name under which :meth:`Vocabulary.load` finds, and downloads, the file.
        place: web page that has the file, and its folder there.
    """

    method: str
    vocabulary: str
    place: str


_FC_CLIP = (
    "fcclip:coco_panoptic",
    "https://github.com/bytedance/fc-clip (fcclip/data/datasets)",
)
PUBLISHED = {
    names.method: names
    for names in (
        PublishedNames(
            "ODISE",
            "openseg:coco_panoptic",
            "https://github.com/NVlabs/ODISE (odise/data/datasets/openseg_labels)",
        ),
        # The label files of the others are those of FC-CLIP.
        *(
            PublishedNames(method, *_FC_CLIP)
            for method in ("FC-CLIP", "OVRCOAT", "MAFT+", "MaskCLIP++")
        ),
    )
}
"""By the name of the method."""


def train_vocabulary(model: nn.Module) -> Vocabulary | None:
    """Return the training vocabulary that a model's ensemble uses; None if it uses none."""
    names = getattr(getattr(model, "ensemble", None), "train_vocabulary", None)
    return names if isinstance(names, Vocabulary) else None


def take_names(model: nn.Module, vocabulary: Vocabulary) -> bool:
    """Set a model's training vocabulary, unless its config sets one.

    Returns:
        Whether the vocabulary was set.
    """
    if not getattr(model, "train_vocabulary_is_open", False) or train_vocabulary(model) is None:
        return False
    model.ensemble.train_vocabulary = vocabulary
    return True


def note_of(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return a vocabulary's names as lists and strings, for the ``meta`` of a checkpoint."""
    return dict(name=vocabulary.name, synonyms=[list(group) for group in vocabulary.synonyms])


def noted(meta: Mapping[str, Any]) -> Vocabulary | None:
    """Return the training vocabulary in the ``meta`` of a checkpoint; None if it has no valid one.

    Older checkpoints contain the class names of the training dataset instead. For caption training,
    these consist of the single class "object" and are ignored.
    """
    try:
        note = meta[NOTE] if NOTE in meta else meta["dataset_meta"]["vocabulary"]
        note = json.loads(note) if isinstance(note, str) else note
        groups = tuple(tuple(group) for group in note["synonyms"])
        if NOTE not in meta and len(groups) == 1:
            return None
        return Vocabulary(groups, (True,) * len(groups), str(note.get("name", "checkpoint")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, VocabularyError):
        return None


def compare_names(
    model: nn.Module,
    path: str | Path,
    meta: Mapping[str, Any],
    published: PublishedNames | None = None,
) -> None:
    """Log one warning if a checkpoint's training vocabulary differs from the model's.

    If the model's config sets no training vocabulary, the model gets that of the checkpoint.

    Args:
        model: model that the checkpoint was loaded into.
        path: path of the checkpoint.
        meta: metadata of the checkpoint.
        published: of the method, if the checkpoint uses the parameter names of published code.
    """
    if train_vocabulary(model) is None:
        return
    text = None
    theirs = noted(meta)
    if published is None and "converted_from" in meta:
        published = PUBLISHED.get(str(meta.get("method")), PUBLISHED["ODISE"])
    if published is not None:
        theirs = Vocabulary.load("coco")  # the closest vocabulary in this package
    if theirs is not None:
        take_names(model, theirs)
    ours = train_vocabulary(model)
    if published is not None:
        ensemble = model.ensemble
        if getattr(ensemble, "alpha", 0) == getattr(ensemble, "beta", 1):
            return  # base and novel classes are treated alike
        if ours == Vocabulary.load("coco"):
            text = _of_published(model, path, published)
    elif theirs is not None and _keys(theirs) != _keys(ours):
        text = _of_others(model, path, ours, theirs)
    if text is not None:
        print_log(text, logger="current", level=30)


def unsure_classes(vocabulary: Vocabulary) -> list[str]:
    """Return the classes that are base classes with our COCO names but not with OpenSeg's.

    The list may be incomplete: this package knows which of its own names are missing from OpenSeg's
    file, but not which additional names that file has.
    """
    ours = _keys(Vocabulary.load("coco"))
    shared = ours - _not_in_openseg()
    keys = [_keys(Vocabulary((group,), (True,))) for group in vocabulary.synonyms]
    return [
        name
        for name, own in zip(vocabulary.names, keys, strict=True)
        if own & ours and not own & shared
    ]


@cache
def _not_in_openseg() -> frozenset[str]:
    lines = _NOT_IN_OPENSEG.read_text(encoding="utf-8").splitlines()
    return frozenset(line.strip().casefold() for line in lines if not line.startswith("#"))


def _keys(vocabulary: Vocabulary) -> frozenset[str]:
    """Return all names in the form in which they are compared: casefolded, spaces normalized."""
    return frozenset(
        " ".join(text.split()).casefold() for group in vocabulary.synonyms for text in group
    )


def _of_published(model: nn.Module, path: str | Path, published: PublishedNames) -> str:
    name = published.vocabulary
    return (
        f"{printable(path)} is a published {published.method} checkpoint. It was trained with "
        f"the label file {name}, but model.ensemble.train_vocabulary is this package's `coco`, so "
        f"results differ from the published model's. {len(_not_in_openseg())} of our synonyms "
        f"({', '.join(_EXAMPLES)}, ...) are not in that file: a class with such a name is a base "
        "class here and a novel class in the published model"
        f"{_affected(model, unsure_classes(model.vocabulary))}. To get the published model's "
        f"results, download coco_panoptic_with_prompt_eng.txt from {published.place} and add "
        "--cfg-options model.ensemble.train_vocabulary=PATH, or in Python "
        "cfg_options={'model.ensemble.train_vocabulary': PATH}. "
        f"With {name} as PATH, the file is downloaded for you. docs/vocabularies.md lists all "
        "synonyms"
    )


def _of_others(model: nn.Module, path: str | Path, ours: Vocabulary, theirs: Vocabulary) -> str:
    names = model.vocabulary
    flags = zip(names.names, names.overlap(ours), names.overlap(theirs), strict=True)
    affected = [name for name, here, there in flags if here != there]
    return (
        f"{printable(path)} was trained with the vocabulary '{printable(theirs.name, 60)}' "
        f"({len(theirs)} classes), but model.ensemble.train_vocabulary is "
        f"'{printable(ours.name, 60)}' ({len(ours)} classes), which decides which classes are "
        f"treated as base classes{_affected(model, affected)}. Set model.ensemble.train_vocabulary "
        "to the vocabulary that the checkpoint was trained with"
    )


def _affected(model: nn.Module, names: Sequence[str]) -> str:
    """Return the affected classes of the model's vocabulary, for messages."""
    shown = ", ".join(printable(name, 60) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    which = f"{shown}{more}" if names else "none"
    return f" (affected classes of '{printable(model.vocabulary.name, 60)}': {which})"
