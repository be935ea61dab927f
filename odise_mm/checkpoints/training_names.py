"""Which names a model was trained with, and what it means where a config says others.

Classes that share a name with the training vocabulary count as seen, and for these CLIP's second
prediction is trusted less (:class:`~odise_mm.models.GeometricEnsemble`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import nn

from odise_mm.errors import VocabularyError
from odise_mm.utils.display import printable
from odise_mm.vocabulary import Vocabulary

NOTE = "train_vocabulary"
"""Where the ``meta`` of a checkpoint holds the names."""

_LACKING = Path(__file__).parent / "not_in_openseg.txt"
_EXAMPLES = ("carpet", "mud", "home", "street", "beach", "meadow")
_SHOWN = 12


def train_vocabulary(model: nn.Module) -> Vocabulary | None:
    """The names that a model takes for those it was trained with; None: it takes none."""
    names = getattr(getattr(model, "ensemble", None), "train_vocabulary", None)
    return names if isinstance(names, Vocabulary) else None


def take_names(model: nn.Module, vocabulary: Vocabulary) -> bool:
    """Let a model take these names for those it was trained with, unless its config said which.

    Returns:
        Whether it does.
    """
    if not getattr(model, "train_vocabulary_is_open", False) or train_vocabulary(model) is None:
        return False
    model.ensemble.train_vocabulary = vocabulary
    return True


def note_of(vocabulary: Vocabulary) -> dict[str, Any]:
    """A vocabulary's names as lists and text, for the ``meta`` of a checkpoint."""
    return dict(name=vocabulary.name, synonyms=[list(group) for group in vocabulary.synonyms])


def noted(meta: Mapping[str, Any]) -> Vocabulary | None:
    """The training vocabulary in the ``meta`` of a checkpoint, if it holds a usable one.

    Older checkpoints hold the training dataset's names, which with captions is the one "object".
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
    model: nn.Module, path: str | Path, meta: Mapping[str, Any], published: bool
) -> None:
    """Warn, once, where a checkpoint's training names are not those of the model's config.

    A model whose config says none takes the checkpoint's.

    Args:
        model: that the checkpoint was loaded into.
        path: of the checkpoint.
        meta: the notes in it.
        published: whether it has the names of the published ODISE code.
    """
    if train_vocabulary(model) is None:
        return
    text = None
    theirs = noted(meta)
    if published or "converted_from" in meta:
        theirs = Vocabulary.load("coco")  # as far as this package has them
    if theirs is not None:
        take_names(model, theirs)
    ours = train_vocabulary(model)
    if published or "converted_from" in meta:
        if ours == Vocabulary.load("coco"):
            text = _of_published(model, path)
    elif theirs is not None and _keys(theirs) != _keys(ours):
        text = _of_others(model, path, ours, theirs)
    if text is not None:
        print_log(text, logger="current", level=30)


def unsure_classes(vocabulary: Vocabulary) -> list[str]:
    """Classes that count as seen with our COCO names, but not with OpenSeg's as far as we know.

    Known is which of *our* names that file lacks; names that it alone has are not.
    """
    ours = _keys(Vocabulary.load("coco"))
    shared = ours - _lacking()
    keys = [_keys(Vocabulary((group,), (True,))) for group in vocabulary.synonyms]
    return [
        name
        for name, own in zip(vocabulary.names, keys, strict=True)
        if own & ours and not own & shared
    ]


@cache
def _lacking() -> frozenset[str]:
    lines = _LACKING.read_text(encoding="utf-8").splitlines()
    return frozenset(line.strip().casefold() for line in lines if not line.startswith("#"))


def _keys(vocabulary: Vocabulary) -> frozenset[str]:
    """All names, as they are compared: without case and surrounding space."""
    return frozenset(
        " ".join(text.split()).casefold() for group in vocabulary.synonyms for text in group
    )


def _of_published(model: nn.Module, path: str | Path) -> str:
    return (
        f"{printable(path)} is a published ODISE checkpoint, trained with OpenSeg's label file, "
        "and model.ensemble.train_vocabulary is this package's `coco`: results differ from the "
        f"published model's. {len(_lacking())} of our synonyms ({', '.join(_EXAMPLES)}, ...) are "
        "not in that file, so a class with such a name counts as seen in training here and as "
        f"unseen there{_affected(model, unsure_classes(model.vocabulary))}. For the published "
        "model's results get coco_panoptic_with_prompt_eng.txt from "
        "https://github.com/NVlabs/ODISE (odise/data/datasets/openseg_labels) and add "
        "--cfg-options model.ensemble.train_vocabulary=PATH, or in Python "
        "cfg_options={'model.ensemble.train_vocabulary': PATH}; with openseg:coco_panoptic in "
        "place of PATH the file is downloaded. All synonyms are listed in "
        "docs/vocabularies.md"
    )


def _of_others(model: nn.Module, path: str | Path, ours: Vocabulary, theirs: Vocabulary) -> str:
    names = model.vocabulary
    flags = zip(names.names, names.overlap(ours), names.overlap(theirs), strict=True)
    affected = [name for name, here, there in flags if here != there]
    return (
        f"{printable(path)} was trained with the names of '{printable(theirs.name, 60)}' "
        f"({len(theirs)} classes), but model.ensemble.train_vocabulary has those of "
        f"'{printable(ours.name, 60)}' ({len(ours)} classes), which decide which classes count as "
        f"seen in training{_affected(model, affected)}. Set model.ensemble.train_vocabulary to the "
        "names that it was trained with"
    )


def _affected(model: nn.Module, names: Sequence[str]) -> str:
    """For messages: the classes of the model's vocabulary that this concerns."""
    shown = ", ".join(printable(name, 60) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    which = f"{shown}{more}" if names else "none"
    return f" (in '{printable(model.vocabulary.name, 60)}': {which})"
