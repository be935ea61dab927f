"""Read the architecture of a diffusers model from its config files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from odise_mm.checkpoints.hub import hub_files, locate
from odise_mm.errors import ConfigError
from odise_mm.models.backbones.diffusion.presets import (
    ARCHITECTURES,
    DiffusionArch,
    LatentArch,
)
from odise_mm.models.clip.word_tokenizer import WORDS_FILE, WordTokenizer
from odise_mm.utils.files import read_json

Arch = TypeVar("Arch", bound=LatentArch)


def get_arch(arch: str | dict[str, Any] | DiffusionArch) -> DiffusionArch:
    """Return an architecture given the name of a preset, its fields, or a model's config files.

    Args:
        arch: a name in :data:`ARCHITECTURES`, the fields of a :class:`DiffusionArch`, or a
            diffusers folder or hub id. Only its config files are read.

    Raises:
        ValueError: unknown name. The message lists the known ones.
        ConfigError: a config file is missing or describes something that is not supported.
    """
    return choose_arch(arch, DiffusionArch, ARCHITECTURES, read_arch)


def choose_arch(
    arch: str | dict[str, Any] | Arch,
    cls: type[Arch],
    presets: Mapping[str, Arch],
    read: Callable[[str], Arch],
) -> Arch:
    """Return an architecture of a class, see :func:`get_arch`.

    Args:
        arch: name, fields, folder, hub id or architecture.
        cls: class of the architecture.
        presets: architectures by name.
        read: reads the config files of a folder or hub id.

    Raises:
        ValueError: unknown name.
    """
    if isinstance(arch, cls):
        return arch
    if isinstance(arch, dict):
        return cls(**arch)
    if arch in presets:
        return presets[arch]
    if "/" not in arch and not Path(arch).expanduser().is_dir():
        raise ValueError(
            f"unknown diffusion architecture {arch!r}: use one of {list(presets)}, a "
            "diffusers folder or a hub id"
        )
    return read(arch)


SCHEDULER = "scheduler/scheduler_config.json"
_FILES = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    SCHEDULER,
    "text_encoder*/config.json",
    "tokenizer*/special_tokens_map.json",
    "tokenizer*/tokenizer_config.json",
)


# The fields that are passed to CLIPTextConfig. The others do not change what an encoder computes.
_TEXT_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "projection_dim",
)


_WORD_FIELDS = (
    "vocab_size",
    "max_position_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


_PAD_TOKENS = {"!": 0, "<|endoftext|>": 49407}


def read_arch(source: str) -> DiffusionArch:
    """Read the architecture from the config files of a diffusers folder or hub id.

    No weights are read.

    Args:
        source: folder or hub id.

    Raises:
        ConfigError: a file is missing, or describes a class that is not supported.
        odise_mm.errors.CheckpointError: the path does not exist, or the hub cannot be reached.
    """
    folder = locate(source, ", ".join(_FILES), lambda: hub_files(source, _FILES))
    files = ConfigFiles(folder, source, _FILES[1:5], ARCHITECTURES)
    unet = files.read("unet/config.json", ("UNet2DConditionModel",))
    vae = files.read("vae/config.json", ("AutoencoderKL", "VQModel"))
    betas, beta_schedule = read_betas(files)
    two_encoders = unet.get("addition_embed_type") == "text_time"
    first_stage = vae["_class_name"]
    levels = len(vae.get("block_out_channels", (64,)))
    words = files.words("tokenizer")
    return DiffusionArch(
        unet=arguments(unet),
        vae=arguments(vae),
        text=files.text_encoder("text_encoder", words),
        scaling_factor=vae.get("scaling_factor", 0.18215),
        # ODISE's tile size, or the size the model was trained on if that is smaller
        latent_size=min(512 // 2 ** (levels - 1), unet.get("sample_size") or 512),
        pad_token=0 if words else files.pad_token("tokenizer"),
        betas=betas,
        beta_schedule=beta_schedule,
        first_stage=first_stage,
        condition="text_and_size" if two_encoders else "text",
        text_2=files.text_encoder("text_encoder_2") if two_encoders else {},
        pad_token_2=files.pad_token("tokenizer_2") if two_encoders else 0,
        zero_empty_prompt=two_encoders
        and bool(files.read("model_index.json").get("force_zeros_for_empty_prompt", True)),
        words=words,
    )


def read_betas(files: ConfigFiles) -> tuple[tuple[float, float], str]:
    """Read the first and last beta of the noise schedule, and its kind.

    Raises:
        ConfigError: the schedule is not supported.
    """
    scheduler = files.read(SCHEDULER)
    first, last = scheduler.get("beta_start"), scheduler.get("beta_end")
    schedule = scheduler.get("beta_schedule")
    if (
        first is None
        or last is None
        or schedule not in ("linear", "scaled_linear")
        or scheduler.get("num_train_timesteps", 1000) != 1000
        or scheduler.get("trained_betas") is not None
        or scheduler.get("rescale_betas_zero_snr")
    ):
        raise ConfigError(
            f"{files.name(SCHEDULER)}: noise schedules other than 1,000 "
            "steps of beta_schedule linear or scaled_linear are not supported"
        )
    return (first, last), schedule


def arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a diffusers model in its config file."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


class ConfigFiles:
    """JSON files of a diffusers folder.

    Args:
        folder: the folder.
        source: the name that messages show.
        needed: the files that messages list if one is missing.
        presets: names of the presets that messages list.
    """

    def __init__(
        self, folder: Path, source: str, needed: Sequence[str], presets: Iterable[str]
    ) -> None:
        self.folder = folder
        self.source = source
        self.needed = needed
        self.presets = list(presets)

    def name(self, file: str) -> str:
        """Return the name of a file for messages."""
        return f"{self.source}: {file}"

    def read(self, file: str, classes: tuple[str, ...] = ()) -> dict[str, Any]:
        """Read a JSON file.

        Args:
            file: path of the file in the folder.
            classes: values of ``_class_name`` that are supported. Empty: any.

        Raises:
            ConfigError: the file is missing or damaged, or describes another class.
        """
        path = self.folder / file
        if not path.is_file():
            raise ConfigError(
                f"{self.name(file)} does not exist: reading an architecture needs a diffusers "
                f"folder or hub id with {', '.join(self.needed)}; or use one of the presets "
                f"{self.presets}"
            )
        config = read_json(path, ConfigError, "config of a diffusion model")
        if not isinstance(config, dict):
            raise ConfigError(
                f"{self.name(file)} must contain a JSON object, not a list or a value"
            )
        if classes and config.get("_class_name") not in classes:
            raise ConfigError(
                f"{self.name(file)} describes a {config.get('_class_name')}; supported: "
                f"{', '.join(classes)}"
            )
        return config

    def words(self, part: str) -> tuple[str, ...]:
        """Return the word list of a word-level tokenizer, or () for byte pair encoding."""
        path = self.folder / part / WORDS_FILE
        return WordTokenizer(path, 77).words if path.is_file() else ()

    def text_encoder(self, part: str, words: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return the fields of a CLIP text encoder's config.

        Args:
            part: folder of the text encoder.
            words: words of a word-level tokenizer. Empty: byte pair encoding.

        Raises:
            ConfigError: the config is missing, or describes a text encoder that is not supported.
        """
        file = f"{part}/config.json"
        config = self.read(file)
        kind = config.get("model_type")
        vocabulary = config.get("vocab_size", 49408), config.get("max_position_embeddings", 77)
        wanted = WordTokenizer(words, 77).vocab_size if words else 49408, 77
        if words:
            wanted = wanted[0], vocabulary[1]  # the context length may be anything
        if kind not in ("clip_text_model", "clip") or vocabulary != wanted:
            raise ConfigError(
                f"{self.name(file)} describes a {kind} of {vocabulary[0]} tokens and context "
                f"length {vocabulary[1]}; supported are CLIP's text encoders (49408 and 77), and "
                f"text encoders for the words in tokenizer/{WORDS_FILE}"
            )
        fields = _TEXT_FIELDS + _WORD_FIELDS if words else _TEXT_FIELDS
        return {key: config[key] for key in fields if key in config}

    def pad_token(self, part: str) -> int:
        """Return the id of the token that fills up prompts.

        Args:
            part: folder of the tokenizer.

        Raises:
            ConfigError: the tokenizer's files do not name a known token.
        """
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (self.folder / part / name).is_file():
                token = self.read(f"{part}/{name}").get("pad_token")
                token = token.get("content") if isinstance(token, dict) else token
                if token in _PAD_TOKENS:
                    return _PAD_TOKENS[token]
        raise ConfigError(
            f"{self.name(part)}/special_tokens_map.json must set pad_token to one of "
            f"{list(_PAD_TOKENS)}: prompt embeddings depend on it"
        )
