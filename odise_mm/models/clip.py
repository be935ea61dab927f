"""The one frozen CLIP that captioner, text encoder and second opinion share (open_clip)."""

import hashlib
import json
import logging
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor

from odise_mm.errors import ConfigError
from odise_mm.models.word_tokenizer import WORDS_FILE, WordTokenizer
from odise_mm.registry import MODELS
from odise_mm.utils.checkpoint import CheckpointError, differences, load_state_dict
from odise_mm.utils.files import read_json
from odise_mm.utils.frozen import (
    FrozenModule,
    cast_weights,
    is_meta_context,
    same_random_weights,
)
from odise_mm.utils.locks import Lock
from odise_mm.utils.names import is_path, nearest
from odise_mm.utils.precision import full_precision
from odise_mm.utils.weight_folders import choose_weights

# Integers that OpenAI's own files carry beside the weights; the model's shapes say the same.
OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
# open_clip's own names in a folder of a model ("local-dir:")
CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"
WEIGHT_STEMS = ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")
# Products of fewer rows take another way through CPU libraries, with other rounding: a name's
# embedding would depend on how many are embedded with it.
_LEAST_TEXTS = 4


@MODELS.register_module()
class FrozenCLIP(FrozenModule):
    """An open_clip model with preprocessing on tensors; parameters are never trained.

    Weights: OpenAI's ViT-L/14-336 (MIT licence) for the published ODISE.

    Args:
        model: name of an open_clip architecture, or the content of such a config (``embed_dim``,
            ``vision_cfg``, ``text_cfg``, ``quick_gelu``), or a folder with open_clip's
            ``open_clip_config.json`` and perhaps ``words.txt``. OpenAI's weights need QuickGELU. A
            tag and OpenAI's archive say so and it is used; for any other file name an architecture
            that has it (``ViT-L-14-336-quickgelu``): a plain GELU gives wrong numbers silently.
        weights: open_clip's tag (``openai``: downloaded once), or a local file: open_clip names in
            ``.safetensors`` or a torch file, or OpenAI's own TorchScript archive; or a folder with
            ``open_clip_model.safetensors``. None leaves random weights, the same every time.
        mean, std: of the pictures that the weights were trained on, three numbers for values in
            [0, 1]. None: those of the tag or folder; for a local file those on which all of
            open_clip's weights of the architecture agree (0.5 for SigLIP), else OpenAI's, with a
            warning.
        words: for a small text tower that reads whole words: the words, or a text file of them,
            see :class:`~odise_mm.models.word_tokenizer.WordTokenizer`. None: those of the folder
            if it has any, else CLIP's byte pair encoding.

    Attributes:
        embed_dim: width of image and text embeddings.

    Raises:
        ValueError: unknown architecture or tag (the known tags are listed); a ``vocab_size`` that
            is not that of the words.
        VocabularyError: ``words`` cannot be used.
        odise_mm.utils.checkpoint.CheckpointError: the file is missing or of another model.
    """

    def __init__(
        self,
        model: str | dict = "ViT-L-14-336-quickgelu",
        weights: str | None = None,
        words: str | Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        import open_clip

        config, mean, std, path, folder = find_clip(model, weights, mean, std)
        load = path is not None
        if words is None and folder is not None and (folder / WORDS_FILE).is_file():
            words = str(folder / WORDS_FILE)
        tokenizer = None if words is None else _word_tokenizer(words, config)
        custom_text = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
        cls = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
        named = isinstance(model, str) and folder is None
        self.embed_dim: int = config["embed_dim"]
        self.name = model if named else json.dumps(config, sort_keys=True)
        with torch.device("meta") if load else same_random_weights():
            self.model = cls(**config)
        if load:
            self._load(path)
        self.tokenizer = tokenizer or (
            open_clip.get_tokenizer(model)
            if named
            else open_clip.SimpleTokenizer(context_length=self.model.context_length)
        )
        self._tokenizing = Lock()
        with torch.device("cpu"):
            self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
            self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.freeze()

    @property
    def visual(self) -> torch.nn.Module:
        """The image tower."""
        return self.model.visual

    @property
    def dtype(self) -> torch.dtype:
        """Floating point type of the image tower; the text tower's is float32."""
        return next(self.visual.parameters()).dtype

    @property
    def image_size(self) -> int:
        """Edge of the square image that the tower wants, in pixels."""
        size = self.visual.image_size  # a number for CLIP's own ResNets
        return size if isinstance(size, int) else size[0]

    @property
    def context_length(self) -> int:
        """Tokens of a text, start and end included."""
        return self.model.context_length

    @property
    def logit_scale(self) -> Tensor:
        """Factor between cosine similarity and logits, at most 100; a scalar."""
        return self.model.logit_scale.float().exp().clamp(max=100)

    def fingerprint(self) -> str:
        """Name of architecture and weights; the key of stored text embeddings."""
        digest = hashlib.sha256(self.name.encode())
        if isinstance(self.tokenizer, WordTokenizer):
            digest.update(" ".join(self.tokenizer.words).encode())
        for key, value in sorted(self.model.state_dict().items()):
            if not key.startswith("visual."):
                # A thousand numbers of each tensor tell any two trainings apart.
                sample = value.flatten()[:: value.numel() // 1000 + 1]
                digest.update(key.encode() + sample.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def normalise(self, images: Tensor) -> Tensor:
        """(..., 3, H, W) in [0, 1] to CLIP's mean and standard deviation, in the tower's type."""
        return ((images.float() - self.mean) / self.std).to(self.dtype)

    def cast(self, dtype: torch.dtype) -> None:
        """Store the image tower in another float type; names are embedded in float32, once."""
        cast_weights(self.visual, dtype)

    def compile_parts(self, **options: Any) -> None:
        """Run the image tower, or a ViT's transformer alone, through ``torch.compile``."""
        getattr(self.visual, "transformer", self.visual).compile(**options)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Image embeddings, not L2-normalised.

        Args:
            images: (N, 3, H, W) in [0, 1], RGB. The short edge is resized bicubically (without
                antialias, as in the published model) to ``image_size``, then the centre is cropped.

        Returns:
            (N, ``embed_dim``) float32
        """
        size = self.image_size
        height, width = images.shape[-2:]
        short = min(height, width)
        target = (size * height // short, size * width // short)
        if target != (height, width):
            images = F.interpolate(
                images.float(), target, mode="bicubic", align_corners=False, antialias=False
            )
        top, left = round((target[0] - size) / 2), round((target[1] - size) / 2)
        images = images[..., top : top + size, left : left + size]
        with self.own_precision():
            return self.model.encode_image(self.normalise(images)).float()

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Text embeddings, not L2-normalised: (len(texts), ``embed_dim``) float32."""
        batches = []
        with full_precision(self.model.logit_scale):
            for start in range(0, len(texts), batch_size):
                some = list(texts[start : start + batch_size])
                with self._tokenizing:  # Hugging Face's set their padding anew at every call
                    tokens = self.tokenizer(some + some[:1] * (_LEAST_TEXTS - len(some)))
                encoded = self.model.encode_text(tokens.to(self.device))[: len(some)]
                batches.append(encoded.float())
        return torch.cat(batches)

    def _load(self, path: str) -> None:
        wanted = self.model.state_dict()
        state = read_clip(path, fits=wanted.__contains__)
        wrong = differences(state, wanted)
        if wrong:
            raise CheckpointError(
                f"{path} holds no weights for CLIP {self.short_name}: {wrong}. Name the "
                "architecture that the file was made for."
            )
        floats = {key: state[key].to(torch.float32) for key in wanted}
        self.model.load_state_dict(floats, assign=True)
        self._rebuild_causal_mask()

    @property
    def short_name(self) -> str:
        """What messages call it: the architecture's name, or the size of a spelled-out one."""
        if not self.name.startswith("{"):
            return self.name
        return f"of the config ({self.embed_dim} wide, {self.image_size} pixels)"

    def _rebuild_causal_mask(self) -> None:
        """The text tower's mask is the one buffer that no file holds."""
        length = self.context_length
        causal = torch.full((length, length), float("-inf")).triu_(1)
        for owner in (self.model, getattr(self.model, "text", None)):
            if getattr(owner, "attn_mask", None) is not None:
                owner.register_buffer("attn_mask", causal, persistent=False)


class CLIPSource(NamedTuple):
    """What a name of open_clip's and a choice of weights come to.

    Attributes:
        config: content of open_clip's config, with the activation that the weights need.
        mean, std: of the pictures that the weights were trained on, in [0, 1].
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

    A local file does not say how its pictures were normalised; nearly always this does.
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


def _word_tokenizer(words: str | Sequence[str], config: dict[str, Any]) -> WordTokenizer:
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
        keep, fits: see :func:`odise_mm.utils.checkpoint.load_state_dict`.
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

    try:
        return open_clip.download_pretrained(tag)
    except Exception as error:  # urllib's, the hub client's and open_clip's own, all meaning this
        raise CheckpointError(
            f"CLIP {name} is not on this machine and could not be downloaded "
            f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]}). Check the network, "
            f"or fetch {_place(tag)} elsewhere and name the local file as `weights`."
        ) from error


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
