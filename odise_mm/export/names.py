"""Class names as inputs of a graph: CLIP's embeddings of them, and the class of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from odise_mm.errors import OutputError
from odise_mm.models.classifiers.base import Classifier, class_of_synonym
from odise_mm.models.classifiers.mapped_names import MappedNames
from odise_mm.models.clip.prompts import templates_of
from odise_mm.models.clip.text_encoder import TextEncoder
from odise_mm.models.segmentors.base_segmentor import BaseSegmentor
from odise_mm.utils.display import printable
from odise_mm.utils.files import write_json
from odise_mm.vocabulary import Vocabulary

NAMES_FILE = "names.npz"
CLASSES_FILE = "names.json"


def write_names(
    model: BaseSegmentor, folder: str | os.PathLike[str], vocabulary: Vocabulary | None = None
) -> list[Path]:
    """Write other class names for a graph whose names are inputs.

    Args:
        model: the segmentor that was exported.
        folder: folder for the files; created if it is missing.
        vocabulary: the classes; None means the model's vocabulary.

    Returns:
        ``names.npz`` with the inputs of the graph, and ``names.json`` with the classes, which
        replace those of ``model.json``.

    Raises:
        OutputError: a file cannot be written.
    """
    vocabulary = model.vocabulary if vocabulary is None else vocabulary
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [NameInputs.of(model, vocabulary).write(folder), folder / CLASSES_FILE]
        write_json(paths[1], {"classes": classes_of(vocabulary)}, indent=1)
    except OSError as error:
        raise OutputError(f"cannot write to {printable(folder)}: {error.strerror}") from error
    return paths


def classes_of(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Return names and flags of the classes, for a JSON file."""
    return [
        dict(name=name, is_thing=is_thing)
        for name, is_thing in zip(vocabulary.names, vocabulary.is_thing, strict=True)
    ]


@dataclass
class NameInputs:
    """Class names as arrays: inputs of a graph that was exported with ``names="input"``.

    Attributes:
        arrays: by name of the input. ``names_0``, ...: CLIP's embeddings of all S synonyms, (S, C)
            float32, one for each set of prompts. ``class_of_synonym``, (S,) int64. ``base``, (K,)
            bool: whether the training vocabulary has the class.
        key_of: which of the embeddings a text encoder and template need.
        current: arrays, or what stands for them in a graph, that the text encoders return.
    """

    arrays: dict[str, Tensor]
    key_of: dict[tuple[int, tuple[str, ...]], str]
    current: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: BaseSegmentor, vocabulary: Vocabulary) -> NameInputs:
        """Compute the names' embeddings with the text towers of a model."""
        arrays: dict[str, Tensor] = {}
        key_of: dict[tuple[int, tuple[str, ...]], str] = {}
        for part in model.modules():
            encoder, template = getattr(part, "text_encoder", None), getattr(part, "template", None)
            if not isinstance(part, Classifier) or not isinstance(encoder, TextEncoder):
                continue  # a captioner's text encoder and template are not for class names
            key = (id(encoder), templates_of(template))
            if key in key_of:
                continue
            key_of[key] = f"names_{len(key_of)}"
            embeddings = encoder.of_vocabulary(vocabulary, template)
            arrays[key_of[key]] = embeddings.detach().clone()
        arrays["class_of_synonym"] = class_of_synonym(vocabulary.synonyms).clone()
        trained = getattr(model.ensemble, "train_vocabulary", vocabulary)
        arrays["base"] = torch.tensor(vocabulary.overlap(trained))
        return cls(arrays, key_of)

    def write(self, folder: Path) -> Path:
        """Write ``names.npz``."""
        path = folder / NAMES_FILE
        np.savez(path, **{name: value.numpy() for name, value in self.arrays.items()})
        return path

    @contextmanager
    def used(self, model: nn.Module) -> Iterator[None]:
        """Let the text encoders of a model return :attr:`current`, instead of embedding names."""

        def given(encoder: int) -> Callable[[Vocabulary, Any], Tensor]:
            return lambda _, template: self.current[self.key_of[encoder, templates_of(template)]]

        with ExitStack() as stack:
            for part in model.modules():
                if isinstance(part, TextEncoder):
                    stack.enter_context(mock.patch.object(part, "of_vocabulary", given(id(part))))
                cache = getattr(part, "_mapped", None)
                if isinstance(cache, MappedNames):  # it compares values, which a trace cannot do
                    uncached = partial(_uncached, cache)
                    stack.enter_context(mock.patch.object(cache, "map", uncached))
            yield


def _uncached(cache: MappedNames, layer: nn.Linear, _: Hashable, source: Tensor) -> Tensor:
    return cache.compute(layer, source)
