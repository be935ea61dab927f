"""The architecture of a diffusers model, read from its own config files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from odise_mm.checkpoints.hub import hub_files, locate
from odise_mm.errors import ConfigError
from odise_mm.models.backbones.diffusion.presets import ARCHITECTURES, DiffusionArch
from odise_mm.models.clip.word_tokenizer import WORDS_FILE, WordTokenizer
from odise_mm.utils.files import read_json


def get_arch(arch: str | dict[str, Any] | DiffusionArch) -> DiffusionArch:
    """An architecture from a preset's name, from fields, or from a model's own config files.

    Args:
        arch: a name in :data:`ARCHITECTURES`, the fields of a :class:`DiffusionArch`, or a
            diffusers folder or hub id, of which only the ``config.json`` files are read.

    Raises:
        ValueError: for an unknown name; the known ones are listed.
        ConfigError: config files that are missing, or say something that is not supported.
    """
    if isinstance(arch, DiffusionArch):
        return arch
    if isinstance(arch, dict):
        return DiffusionArch(**arch)
    if arch in ARCHITECTURES:
        return ARCHITECTURES[arch]
    if "/" not in arch and not Path(arch).expanduser().is_dir():
        raise ValueError(
            f"unknown diffusion architecture {arch!r}: one of {list(ARCHITECTURES)}, a diffusers "
            "folder or a hub id"
        )
    return read_arch(arch)


_FILES = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "text_encoder*/config.json",
    "tokenizer*/special_tokens_map.json",
    "tokenizer*/tokenizer_config.json",
)


# Read into CLIPTextConfig; the rest of a text encoder's config does not change what it computes.
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
    """The architecture that a diffusers folder or hub id describes; no weights are read.

    Raises:
        ConfigError: a file is missing, or names a class that is not supported.
        odise_mm.errors.CheckpointError: no such path, or the hub does not answer.
    """
    folder = locate(source, ", ".join(_FILES), lambda: hub_files(source, _FILES))
    files = _Configs(folder, source)
    unet = files.read("unet/config.json", ("UNet2DConditionModel",))
    vae = files.read("vae/config.json", ("AutoencoderKL", "VQModel"))
    scheduler = files.read("scheduler/scheduler_config.json")
    betas = scheduler.get("beta_start"), scheduler.get("beta_end")
    if (
        None in betas
        or scheduler.get("beta_schedule") not in ("linear", "scaled_linear")
        or scheduler.get("num_train_timesteps", 1000) != 1000
        or scheduler.get("trained_betas") is not None
        or scheduler.get("rescale_betas_zero_snr")
    ):
        raise ConfigError(
            f"{files.name('scheduler/scheduler_config.json')}: noise schedules other than 1,000 "
            "steps of beta_schedule linear or scaled_linear are not supported"
        )
    two = unet.get("addition_embed_type") == "text_time"
    first_stage = vae["_class_name"]
    levels = len(vae.get("block_out_channels", (64,)))
    words = files.words("tokenizer")
    return DiffusionArch(
        unet=_arguments(unet),
        vae=_arguments(vae),
        text=files.text_encoder("text_encoder", words),
        scaling_factor=vae.get("scaling_factor", 0.18215),
        # ODISE's tiles, or the model's own images where it never saw as large ones
        latent_size=min(512 // 2 ** (levels - 1), unet.get("sample_size") or 512),
        pad_token=0 if words else files.pad_token("tokenizer"),
        betas=betas,
        beta_schedule=scheduler["beta_schedule"],
        first_stage=first_stage,
        condition="text_and_size" if two else "text",
        text_2=files.text_encoder("text_encoder_2") if two else {},
        pad_token_2=files.pad_token("tokenizer_2") if two else 0,
        zero_empty_prompt=two
        and bool(files.read("model_index.json").get("force_zeros_for_empty_prompt", True)),
        words=words,
    )


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


class _Configs:
    """The JSON files of a folder that came from ``source``."""

    def __init__(self, folder: Path, source: str) -> None:
        self.folder = folder
        self.source = source

    def name(self, file: str) -> str:
        return f"{self.source}: {file}"

    def read(self, file: str, classes: tuple[str, ...] = ()) -> dict[str, Any]:
        path = self.folder / file
        if not path.is_file():
            raise ConfigError(
                f"{self.name(file)} is not there: an architecture is read from a diffusers folder "
                f"or hub id with {', '.join(_FILES[1:5])} in it; or name a preset, one of "
                f"{list(ARCHITECTURES)}"
            )
        config = read_json(path, ConfigError, "config of a diffusion model")
        if not isinstance(config, dict):
            raise ConfigError(f"{self.name(file)} holds a list or a value, not named settings")
        if classes and config.get("_class_name") not in classes:
            raise ConfigError(
                f"{self.name(file)} describes a {config.get('_class_name')}; supported: "
                f"{', '.join(classes)}"
            )
        return config

    def words(self, part: str) -> tuple[str, ...]:
        """The list of words of a text encoder that reads words; empty: it reads byte pairs."""
        path = self.folder / part / WORDS_FILE
        return WordTokenizer(path, 77).words if path.is_file() else ()

    def text_encoder(self, part: str, words: tuple[str, ...] = ()) -> dict[str, Any]:
        file = f"{part}/config.json"
        config = self.read(file)
        kind = config.get("model_type")
        vocabulary = config.get("vocab_size", 49408), config.get("max_position_embeddings", 77)
        wanted = WordTokenizer(words, 77).vocab_size if words else 49408, 77
        if words:
            wanted = wanted[0], vocabulary[1]  # a short one may read few tokens
        if kind not in ("clip_text_model", "clip") or vocabulary != wanted:
            raise ConfigError(
                f"{self.name(file)} describes a {kind} of {vocabulary[0]} tokens, at most "
                f"{vocabulary[1]} at once; supported are CLIP's text encoders (49408, 77), or "
                f"those of a tokenizer/{WORDS_FILE} beside it"
            )
        fields = _TEXT_FIELDS + _WORD_FIELDS if words else _TEXT_FIELDS
        return {key: config[key] for key in fields if key in config}

    def pad_token(self, part: str) -> int:
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (self.folder / part / name).is_file():
                token = self.read(f"{part}/{name}").get("pad_token")
                token = token.get("content") if isinstance(token, dict) else token
                if token in _PAD_TOKENS:
                    return _PAD_TOKENS[token]
        raise ConfigError(
            f"{self.name(part)}/special_tokens_map.json names no pad_token, one of "
            f"{list(_PAD_TOKENS)}: the embedding of a prompt depends on it"
        )
