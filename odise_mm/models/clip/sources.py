"""Where a CLIP's architecture and weights come from: names of open_clip's, folders and files."""

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

# Integers that OpenAI's own files carry beside the weights; the model's shapes say the same.
OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")


# open_clip's own names in a folder of a model ("local-dir:")
CONFIG_FILE = "open_clip_config.json"


WEIGHTS_FILE = "open_clip_model.safetensors"


WEIGHT_STEMS = ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")


class CLIPSource(NamedTuple):
    """What a name of open_clip's and a choice of weights come to.

    Attributes:
        config: content of open_clip's config, with the activation that the weights need.
        mean, std: of the images that the weights were trained on, in [0, 1].
        path: the weights' file, downloaded if need be; None: random weights.
        folder: where the config lies, if in a folder.
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
    """Look up a CLIP; on the meta device nothing is downloaded or looked for.

    Args:
        model, weights, mean, std: see :class:`FrozenCLIP`.

    Raises:
        ValueError: unknown architecture or tag (the known tags are listed); ``mean`` or ``std`` is
            no triple of numbers.
        TypeError: something else than those.
        ConfigError: a folder's config cannot be read.
        CheckpointError: a tag's file cannot be downloaded.
    """
    import open_clip

    if not isinstance(model, str | Mapping):
        raise TypeError(f"model={model!r} must be a name or a config of open_clip's, or a folder")
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
        hint = nearest(model, open_clip.list_models()) or ": see open_clip.list_models()"
        if "/" in model:
            hint += f", and there is no such folder with a {CONFIG_FILE}"
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
                f"there is no weights file {weights}, and open_clip's tags need a named "
                "architecture: this CLIP's is spelled out in the config"
            )
        if _is_torchscript(weights):  # OpenAI's own format: all were trained with QuickGELU
            _use_gelu_of_weights(config, True, weights)
        elif isinstance(model, str) and "mean" not in {**preprocessing, **given}:
            print_log(
                f"open_clip's weights of {model} do not tell with which mean and std {weights} was "
                "trained: OpenAI's are used; give the CLIP its `mean` and `std` if they differ",
                logger="current",
                level=logging.WARNING,
            )
    openai = dict(mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)
    pair = {**openai, **preprocessing, **given}
    mean, std = _three_numbers("mean", pair["mean"]), _three_numbers("std", pair["std"])
    return CLIPSource(config, mean, std, weights if load else None, folder)


def _preprocessing_of(model: str) -> dict[str, Any]:
    """Mean and std on which all of open_clip's weights of an architecture agree, else nothing.

    A local file does not say how its images were normalized; nearly always this does.
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
            f"{name}={values!r} of a CLIP must be three numbers, of red, green and blue in [0, 1]"
            + (", greater than 0" if name == "std" else "")
        )
    return tuple(map(float, numbers))


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and preprocessing of a model that open_clip has written into a folder."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(f"{folder} is no folder of an open_clip model: it has no {CONFIG_FILE}")
    content = read_json(path, ConfigError, "config of an open_clip model")
    try:
        return content["model_cfg"], content.get("preprocess_cfg", {})
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not what open_clip writes: it has no model_cfg") from error


def _file_in(folder: Path) -> str:
    """The weights file in a folder, by the names that open_clip looks for.

    Raises:
        CheckpointError: none is there, or they are in shards, which open_clip does not write.
    """
    files = choose_weights(folder, WEIGHT_STEMS, "weights of CLIP")
    if len(files) > 1:
        raise CheckpointError(
            f"{folder} has its weights in {len(files)} shards, which is not a format of "
            "open_clip's: name a folder or file that open_clip wrote"
        )
    return str(files[0])


def word_tokenizer_of(words: str | Sequence[str], config: dict[str, Any]) -> WordTokenizer:
    """The tokenizer of words, and the size of its vocabulary in the config's text tower."""
    text = config["text_cfg"]
    tokenizer = WordTokenizer(words, text.get("context_length", 77))
    if text.setdefault("vocab_size", tokenizer.vocab_size) != tokenizer.vocab_size:
        raise ValueError(
            f"vocab_size={text['vocab_size']} is not that of the words: {tokenizer.vocab_size}, "
            f"{len(tokenizer.words)} words and 3 others; leave it out, or give the words that the "
            "weights were trained with"
        )
    return tokenizer


def read_clip(
    path: str,
    keep: Callable[[str], bool] | None = None,
    fits: Callable[[str], bool] | None = None,
) -> dict[str, Tensor]:
    """A CLIP's weights by open_clip's names, from any of its formats.

    Args:
        path: see :class:`FrozenCLIP`.
        keep, fits: see :func:`odise_mm.checkpoints.safe_loading.load_state_dict`.
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
            f"{tag}: neither a file nor one of open_clip's tags for {model} "
            f"({', '.join(tags) or 'it has none'}){nearest(tag, tags)}"
        )
    return open_clip.get_pretrained_cfg(model, tag)


def _use_gelu_of_weights(config: dict, quick: bool, weights: str) -> None:
    """The weights decide: with the other activation they give wrong numbers silently."""
    if config.get("quick_gelu", False) != quick:
        name = "QuickGELU" if quick else "plain GELU"
        print_log(f"CLIP {weights} was trained with {name}: using that", logger="current")
        config["quick_gelu"] = quick


def _download(tag: dict, name: str) -> str:
    import open_clip

    way = (
        f"Check the network, or fetch {_place(tag)} elsewhere and name the local file as `weights`."
    )
    with reaching(f"CLIP {name} is not on this machine and could not be downloaded", way):
        return open_clip.download_pretrained(tag)


def _place(tag: dict) -> str:
    """Where open_clip would have looked, for people to look there."""
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
    # OpenAI's own release. TorchScript is not pickle: loading it runs no Python code.
    print_log(f"{path} is a TorchScript archive: reading its weights", logger="current")
    return dict(torch.jit.load(path, map_location="cpu").state_dict())
