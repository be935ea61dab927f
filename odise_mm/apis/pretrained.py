"""Saving and loading of trained models as folders, on disk or on the Hugging Face Hub.

A folder contains:

* ``model.safetensors``: the trained parameters (28 M numbers at full size);
* ``config.json``: the complete ``model`` and ``test_pipeline`` of the config;
* ``vocabulary.json``: the model's default class names, and those that it was trained with.

The frozen parts are not included; they are loaded from the sources in the config. Folders may come
from untrusted sources, so nothing in them can choose the code that runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from torch import Tensor, nn

from odise_mm.checkpoints.hub import hub_files, reaching
from odise_mm.checkpoints.published import clip_weights
from odise_mm.checkpoints.safe_loading import save_state_dict
from odise_mm.checkpoints.training_names import NOTE, train_vocabulary
from odise_mm.config.untrusted import check_model_config
from odise_mm.config.walking import named_weights
from odise_mm.errors import CheckpointError, ConfigError, OutputError, VocabularyError
from odise_mm.utils.display import printable, some
from odise_mm.utils.files import read_json, write_json
from odise_mm.utils.old_keys import rename_recorded_keys
from odise_mm.vocabulary import Vocabulary

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
VOCABULARY_FILE = "vocabulary.json"
FILES = (WEIGHTS_FILE, CONFIG_FILE, VOCABULARY_FILE)

_KEPT = ("model", "test_pipeline")


def save_pretrained(model: nn.Module, cfg: Config, folder: str | os.PathLike[str]) -> Path:
    """Write a model to a folder; existing files of the same names are replaced.

    Args:
        model: an :class:`~odise_mm.models.OpenVocabSegmentor`.
        cfg: the config that it was built from.
        folder: target folder; created if it is missing.

    Returns:
        The folder.

    Raises:
        ConfigError: the config has values that cannot be written as JSON.
        CheckpointError: the weights cannot be written.
        OutputError: another file cannot be written.
    """
    folder = Path(folder).expanduser()
    names = {"vocabulary": _as_json(model.vocabulary)}
    trained = train_vocabulary(model)
    if trained is not None:
        names[NOTE] = _as_json(trained)
    # The names are stored in their own file, because paths in the config depend on the machine.
    content = Config({key: cfg[key] for key in _KEPT}).to_dict()
    content["model"].pop("vocabulary", None)
    if isinstance(content["model"].get("ensemble"), dict):
        content["model"]["ensemble"].pop("train_vocabulary", None)
    try:
        json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the config cannot be written as JSON: {error}") from error
    note = {NOTE: json.dumps(names[NOTE])} if NOTE in names else {}
    state = model.state_dict()
    if not cfg.get("random_weights"):
        state |= _contained_clip(model, content["model"])
    save_state_dict(folder / WEIGHTS_FILE, state, note)
    try:
        write_json(folder / VOCABULARY_FILE, names, indent=1)
        write_json(folder / CONFIG_FILE, content, indent=1)
    except OSError as error:
        raise OutputError(f"cannot write to {printable(folder)}: {error.strerror}") from error
    local = [source for source in named_weights(content) if Path(source).expanduser().exists()]
    if local:
        print_log(
            f"{printable(folder)} works only on this machine, because its config names local files "
            f"of frozen parts ({some(map(printable, local))}). To share it, use hub ids in the "
            "config",
            logger="current",
        )
    return folder


def _contained_clip(model: nn.Module, model_cfg: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights of CLIP that came with the checkpoint.

    If the config names no weights of CLIP, all weights are returned; otherwise the fine-tuned ones.
    """
    clip = model_cfg.get("clip")
    if not isinstance(clip, dict):
        return {}
    tuned = model.clip.tuned if clip.get("weights") is not None else ("",)
    return clip_weights(model, tuned)


def load_pretrained(
    source: str | os.PathLike[str],
    custom_imports: Sequence[str] = (),
    revision: str | None = None,
) -> tuple[Config, Path]:
    """Return config and weights file of a folder that :func:`save_pretrained` wrote.

    Args:
        source: the folder, or a hub id ``owner/name``, from which the three files are downloaded.
        custom_imports: modules with parts of the model that the user trusts.
        revision: branch, tag or commit of the hub repository; None: the main branch.

    Returns:
        The config, with the class names in it, and the path of the weights.

    Raises:
        ConfigError: the config is damaged, or uses parts that are neither in this package nor in
            ``custom_imports``.
        VocabularyError: the file of class names is damaged.
        CheckpointError: the folder or a file is missing, the download failed, or a revision is
            given for a folder.
    """
    folder = _folder(os.fspath(source), revision)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{printable(folder)} was not written by save_pretrained: missing {', '.join(missing)}"
        )
    path = folder / CONFIG_FILE
    content = read_json(path, ConfigError, "config of a trained model")
    content = rename_recorded_keys(content)
    if not isinstance(content, dict) or set(content) != set(_KEPT):
        raise ConfigError(f"{printable(path)}: expected {' and '.join(_KEPT)}, and nothing else")
    for module in ("odise_mm.models", "odise_mm.datasets.transforms", *custom_imports):
        import_module(module)
    check_model_config(content, printable(path), custom_imports)
    names = _read_names(folder / VOCABULARY_FILE)
    content["model"]["vocabulary"] = names["vocabulary"]
    if NOTE in names and isinstance(content["model"].get("ensemble"), dict):
        content["model"]["ensemble"]["train_vocabulary"] = names[NOTE]
    return Config(content), folder / WEIGHTS_FILE


def _folder(source: str, revision: str | None) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"{printable(source)} is a folder on this machine, so it has no "
                f"revision={revision!r}: leave out the revision, or rename the folder to load the "
                "hub repository of this name"
            )
        return path
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise CheckpointError(
            f"{printable(source)}: no such folder. Pass a folder that save_pretrained wrote, or a "
            "hub id owner/name"
        )
    way = (
        "Check the name, the network and `hf auth login`, or download "
        f"{', '.join(FILES)} from https://huggingface.co/{source} to a folder by hand, and pass "
        "that folder"
    )
    with reaching(f"{source}: not a folder, and the download from the hub failed", way):
        return hub_files(source, FILES, revision)


def _as_json(vocabulary: Vocabulary) -> dict[str, Any]:
    return dict(
        name=vocabulary.name,
        synonyms=[list(group) for group in vocabulary.synonyms],
        is_thing=list(vocabulary.is_thing),
        source_names=list(vocabulary.source_names),
    )


def _read_names(path: Path) -> dict[str, Vocabulary]:
    content = read_json(path, VocabularyError, "names of a trained model")
    if not isinstance(content, dict) or "vocabulary" not in content:
        raise VocabularyError(f"{printable(path)}: expected a mapping with 'vocabulary'")
    wanted = (key for key in ("vocabulary", NOTE) if key in content)
    return {key: _of_json(content[key], f"{printable(path)}: {key}") for key in wanted}


def _of_json(content: Any, where: str) -> Vocabulary:
    try:
        groups = tuple(tuple(_texts(group)) for group in content["synonyms"])
        flags = tuple(flag is True for flag in content["is_thing"])
        sources = tuple(_texts(content["source_names"]))
        return Vocabulary(groups, flags, str(content["name"]), sources)
    except VocabularyError as error:
        raise VocabularyError(f"{where}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise VocabularyError(
            f"{where}: expected name, synonyms, is_thing and source_names ({error})"
        ) from error


def _texts(values: Any) -> Iterator[str]:
    for value in values if isinstance(values, list) else (values,):
        if not isinstance(value, str):
            raise TypeError(f"{printable(repr(value), 60)} is not a string")
        yield value
