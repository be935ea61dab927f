"""Lookup of CLIP architectures and weights: names of open_clip, folders and files."""

from __future__ import annotations

import logging
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor

from odise_mm.checkpoints.hub import reaching
from odise_mm.checkpoints.safe_loading import load_state_dict
from odise_mm.checkpoints.weight_folders import choose_weights
from odise_mm.errors import CheckpointError, ConfigError
from odise_mm.models.clip.word_tokenizer import WordTokenizer
from odise_mm.models.frozen import is_meta_context
from odise_mm.utils.files import read_json
from odise_mm.utils.spelling import is_path, nearest

# Integers in OpenAI's files that are not weights. They follow from the shapes of the weights.
OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")


# File names that open_clip uses in a folder ("local-dir:").
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
WEIGHT_STEMS = ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")


class CLIPSource(NamedTuple):
    """Config and weights of a CLIP.

    Attributes:
        config: content of open_clip's config, with the activation function of the weights.
        mean: mean of the images that the weights were trained on, for values in [0, 1].
        std: standard deviation, like ``mean``.
        path: weights file, downloaded if necessary. None: random weights.
        folder: folder of the config, or None.
    """

    config: dict[str, Any]
    mean: Sequence[float]
    std: Sequence[float]
    path: str | None
    folder: Path | None = None


def find_clip(
    model: str | dict,
    weights: str | None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> CLIPSource:
    """Look up the config and weights of a CLIP.

    On the meta device, weights are neither searched for nor downloaded.

    Args:
        model: see :class:`FrozenCLIP`.
        weights: see :class:`FrozenCLIP`.
        mean: see :class:`FrozenCLIP`.
        std: see :class:`FrozenCLIP`.

    Raises:
        ValueError: unknown architecture or tag (the message lists the known tags); ``mean`` or
            ``std`` does not consist of three numbers.
        TypeError: an argument of the wrong type.
        ConfigError: the config in a folder cannot be read.
        CheckpointError: the weights of a tag cannot be downloaded.
    """
    import open_clip

    if not isinstance(model, str | Mapping):
        raise TypeError(f"model={model!r} must be a name or config of open_clip, or a folder")
    if not isinstance(weights, str | None):
        raise TypeError(f"weights={weights!r} must be a tag, a file, a folder or None")
    given = {key: value for key, value in (("mean", mean), ("std", std)) if value is not None}
    preprocessing: dict[str, Any] = {}
    folder = None
    if isinstance(model, str) and Path(model).expanduser().is_dir():
        folder = Path(model).expanduser()
        model, preprocessing = _read_folder(folder)
    elif isinstance(model, str):
        preprocessing = _preprocessing_of(model)
    config = open_clip.get_model_config(model) if isinstance(model, str) else deepcopy(model)
    if config is None:
        hint = nearest(model, open_clip.list_models()) or "; see open_clip.list_models()"
        if "/" in model:
            hint += f"; there is no folder {model} with a {CONFIG_FILE} either"
        raise ValueError(f"open_clip has no architecture {model!r}{hint}")
    config = {key: value for key, value in config.items() if key not in ("tag", "name")}
    load = weights is not None and not is_meta_context()
    if isinstance(model, str) and weights is not None and not is_path(weights):
        tag = _tag_config(model, weights)
        preprocessing = tag
        _use_gelu_of_weights(config, bool(tag.get("quick_gelu")), f"{model} {weights}")
        if load:
            weights = _download(tag, f"{model} {weights}")
    elif load:
        weights = str(Path(weights).expanduser())
        if Path(weights).is_dir():
            if (Path(weights) / CONFIG_FILE).is_file():
                preprocessing = _read_folder(Path(weights))[1]
            weights = _file_in(Path(weights))
        if not isinstance(model, str) and not is_path(weights):
            raise ValueError(
                f"no weights file {weights}; tags of open_clip need a named architecture, but this "
                "CLIP has a config: set `weights` to a file or folder"
            )
        if _is_torchscript(weights):  # OpenAI's format; all of its models use QuickGELU
            _use_gelu_of_weights(config, True, weights)
        elif isinstance(model, str) and "mean" not in {**preprocessing, **given}:
            print_log(
                f"mean and std of {weights} are unknown, because open_clip's weights of {model} do "
                "not agree on them: using OpenAI's values; if they are wrong, set `mean` and `std` "
                "of the CLIP",
                logger="current",
                level=logging.WARNING,
            )
    openai = dict(mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)
    pair = {**openai, **preprocessing, **given}
    mean, std = _three_numbers("mean", pair["mean"]), _three_numbers("std", pair["std"])
    return CLIPSource(config, mean, std, weights if load else None, folder)


def _preprocessing_of(model: str) -> dict[str, Any]:
    """Return mean and std if all of open_clip's weights of an architecture share them, else {}.

    A local file does not contain mean and std. These are nearly always the right values.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    cfgs = [open_clip.get_pretrained_cfg(model, tag) for tag in tags]
    default = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    pairs = {
        (tuple(cfg.get("mean", default[0])), tuple(cfg.get("std", default[1]))) for cfg in cfgs
    }
    return dict(zip(("mean", "std"), pairs.pop(), strict=True)) if len(pairs) == 1 else {}


def _three_numbers(name: str, values: Any) -> tuple[float, float, float]:
    numbers = values if isinstance(values, list | tuple) else ()
    valid = len(numbers) == 3 and all(
        type(value) in (int, float) and math.isfinite(value) for value in numbers
    )
    if not valid or (name == "std" and min(numbers) <= 0):
        raise ValueError(
            f"{name}={values!r} of a CLIP must be three numbers, for red, green and blue in [0, 1]"
            + (", greater than 0" if name == "std" else "")
        )
    return tuple(map(float, numbers))


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read config and preprocessing in a folder that open_clip has saved."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(
            f"{folder} is not a folder of an open_clip model: {CONFIG_FILE} is missing"
        )
    content = read_json(path, ConfigError, "config of an open_clip model")
    try:
        return content["model_cfg"], content.get("preprocess_cfg", {})
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is not a config file of open_clip: model_cfg is missing"
        ) from error


def _file_in(folder: Path) -> str:
    """Return the weights file in a folder with one of the names that open_clip uses.

    Raises:
        CheckpointError: there is none, or the weights are in shards.
    """
    files = choose_weights(folder, WEIGHT_STEMS, "weights of CLIP")
    if len(files) > 1:
        raise CheckpointError(
            f"the weights in {folder} are split into {len(files)} shards, which open_clip does not "
            "support: set `weights` to a folder or file that open_clip has saved"
        )
    return str(files[0])


def word_tokenizer_of(words: str | Sequence[str], config: dict[str, Any]) -> WordTokenizer:
    """Build a word tokenizer, and set or check ``vocab_size`` in the config.

    Args:
        words: see :class:`FrozenCLIP`.
        config: open_clip's config, changed in place.

    Raises:
        ValueError: ``vocab_size`` in the config does not match the words.
        VocabularyError: ``words`` is invalid.
    """
    text = config["text_cfg"]
    tokenizer = WordTokenizer(words, text.get("context_length", 77))
    if text.setdefault("vocab_size", tokenizer.vocab_size) != tokenizer.vocab_size:
        raise ValueError(
            f"vocab_size={text['vocab_size']} does not match the words: it must be "
            f"{tokenizer.vocab_size}, {len(tokenizer.words)} words and 3 special tokens; remove "
            "it, or use the words that the weights were trained with"
        )
    return tokenizer


def read_clip(
    path: str,
    keep: Callable[[str], bool] | None = None,
    fits: Callable[[str], bool] | None = None,
) -> dict[str, Tensor]:
    """Read the weights of a CLIP with open_clip's key names, from any supported format.

    Args:
        path: see :class:`FrozenCLIP`.
        keep: see :func:`odise_mm.checkpoints.safe_loading.load_state_dict`.
        fits: see :func:`odise_mm.checkpoints.safe_loading.load_state_dict`.
    """
    if not _is_torchscript(path):
        state = load_state_dict(path, keep, fits)
    else:
        state = {k: v for k, v in _read_torchscript(path).items() if keep is None or keep(k)}
    return {key: value for key, value in state.items() if key not in OPENAI_EXTRAS}


def _tag_config(model: str, tag: str) -> dict:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags:
        raise ValueError(
            f"weights={tag!r} is neither a file nor one of open_clip's tags for {model} "
            f"({', '.join(tags) or 'there are none'}){nearest(tag, tags)}"
        )
    return open_clip.get_pretrained_cfg(model, tag)


def _use_gelu_of_weights(config: dict, quick: bool, weights: str) -> None:
    """Set the activation function of the weights; another one silently gives wrong results."""
    if config.get("quick_gelu", False) != quick:
        name = "QuickGELU" if quick else "plain GELU"
        print_log(f"CLIP {weights} was trained with {name}: using {name}", logger="current")
        config["quick_gelu"] = quick


def _download(tag: dict, name: str) -> str:
    import open_clip

    hint = (
        f"Check the network, or download {_location(tag)} on another machine and set `weights` to "
        "the local file."
    )
    with reaching(f"CLIP {name} is not on this machine and could not be downloaded", hint):
        return open_clip.download_pretrained(tag)


def _location(tag: dict) -> str:
    """Return file and address that open_clip downloads, for messages."""
    if tag.get("hf_hub"):
        repository, _, file = tag["hf_hub"].rpartition("/")
        file = file or "open_clip_model.safetensors"
        return f"{file} from https://huggingface.co/{repository}"
    return tag.get("url") or "the file"


def _is_torchscript(path: str) -> bool:
    if not Path(path).is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _read_torchscript(path: str) -> dict[str, Tensor]:
    # OpenAI's release. TorchScript is not pickle: loading it does not run Python code.
    print_log(f"{path} is a TorchScript archive: reading its weights", logger="current")
    return dict(torch.jit.load(path, map_location="cpu").state_dict())
