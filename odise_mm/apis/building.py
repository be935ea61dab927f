"""From what people name to what runs: configs, devices, test pipelines, models."""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmcv.transforms import Compose
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import nn

from odise_mm.datasets.transforms import ResizeKeepRatio
from odise_mm.datasets.wrappers import inner_configs
from odise_mm.errors import ConfigError, DeviceError, OdiseError
from odise_mm.registry import MODELS, TRANSFORMS
from odise_mm.utils.files import regular_file
from odise_mm.utils.frozen import build_part

__all__ = [
    "ConfigError",
    "DeviceError",
    "build_model",
    "change_config",
    "config_errors",
    "config_folders",
    "load_config",
    "make_test_pipeline",
    "own_config_folders",
    "pick_device",
    "named_weights",
    "set_frozen_weights",
]


BUILDING = threading.RLock()
"""To be held while something is built from a config: reading one changes where Python looks for
modules, and the registries have one default scope for the whole process."""


def config_folders() -> list[Path]:
    """Where config names are looked up: the working directory, then what came with the package.

    That is the repository's folder, or what was packed into a wheel.
    """
    folders: dict[Path, Path] = {}
    for folder in (Path.cwd() / "configs", *_came_with_the_package()):
        folders.setdefault(folder.resolve(), folder)  # either may be a link to the other
    return [folder for folder in folders.values() if folder.is_dir()]


def own_config_folders() -> list[Path]:
    """Those of :func:`config_folders` that came with the package."""
    own = {folder.resolve() for folder in _came_with_the_package()}
    return [folder for folder in config_folders() if folder.resolve() in own]


def _came_with_the_package() -> tuple[Path, Path]:
    package = Path(__file__).resolve().parents[1]
    return package / ".mim" / "configs", package.parent / "configs"


def load_config(config: str | os.PathLike | Config) -> Config:
    """A config from a path, from a name under ``configs/``, or as it is (copied).

    A config is a Python program, which runs when it is loaded.

    Args:
        config: e.g. ``configs/odise/odise_coco_label.py``, ``odise/odise_coco_label`` or
            ``odise_coco_label``.

    Raises:
        ConfigError: no such file, a name that fits several (of the working directory and of the
            package, too), or a file that is not a valid config.
    """
    if isinstance(config, Config):
        return config.copy()
    path = _find_config(os.fspath(config))
    try:
        return Config.fromfile(path)
    except Exception as err:  # whatever a Python file can raise
        raise ConfigError(f"{path}: not a valid config: {type(err).__name__}: {err}") from err


def _find_config(name: str) -> Path:
    path = Path(name).expanduser()
    if os.path.exists(path) and not path.is_dir():
        return regular_file(path, ConfigError, "config file")
    wanted = Path(name if name.endswith(".py") else name + ".py").parts
    own, known = own_config_folders(), set()
    # Of the package's own folders, which hold the same, the first with a hit counts.
    hits: dict[bool, list[Path]] = {}
    for folder in config_folders():
        files = [f for f in sorted(folder.rglob("*.py")) if "_base_" not in f.parts]
        known |= {f.stem for f in files}
        exact = folder.joinpath(*wanted)
        found = [exact] if exact in files else [f for f in files if _ends_in(f, wanted)]
        if found:
            hits.setdefault(folder in own, found)
    for found in hits.values():
        if len(found) > 1:
            raise ConfigError(f"config {name!r} fits several files: {', '.join(map(str, found))}")
    if len(hits) == 2:
        raise ConfigError(
            f"config {name!r} is {hits[False][0]} as well as the package's own {hits[True][0]}: "
            "write the path of the one that is meant"
        )
    for found in hits.values():
        return found[0]
    close = difflib.get_close_matches(Path(name).stem, known, n=3, cutoff=0.5)
    mean = f" Did you mean {' or '.join(close)}?" if close else ""
    raise ConfigError(
        f"no config {name!r}: neither a file nor a name under configs/.{mean} "
        f"There are: {', '.join(sorted(known)) or 'none'}"
    )


def _ends_in(path: Path, wanted: tuple[str, ...]) -> bool:
    return path.parts[-len(wanted) :] == wanted


def change_config(cfg: Config, changes: dict[str, Any]) -> None:
    """Change settings by dotted keys, as mmengine's ``--cfg-options`` does.

    Raises:
        ConfigError: a key that leads through something without keys, or past a list's end.
    """
    try:
        cfg.merge_from_dict(dict(changes))
    except (KeyError, TypeError, AssertionError, AttributeError) as err:
        raise ConfigError(f"{_name(cfg)}: cannot set {', '.join(changes)}: {_text(err)}") from err


def set_frozen_weights(cfg: Config, part: str, weights: str) -> None:
    """Tell a config where the weights of a frozen part are: ``model.<part>.weights``.

    Raises:
        ConfigError: the model has no such part, or one that takes no weights.
    """
    config = cfg.model.get(part)
    if not isinstance(config, dict) or "weights" not in config:
        raise ConfigError(f"{_name(cfg)}: has no `model.{part}.weights` to set")
    config["weights"] = weights


_DEVICES = "'cpu', 'cuda', 'cuda:1' or 'mps'"


def named_weights(node: object) -> list[str]:
    """Weights (files, folders, hub names) that the parts of a model's config name."""
    if isinstance(node, dict):
        own = [str(node["weights"])] if node.get("weights") else []
        return own + [name for value in node.values() for name in named_weights(value)]
    if isinstance(node, (list, tuple)):
        return [name for item in node for name in named_weights(item)]
    return []


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; for None a CUDA device where there is one, else the CPU.

    Raises:
        DeviceError: not a device's name, one of another kind than CPU, CUDA and MPS, or one that
            this machine or this PyTorch does not have. Nothing falls back to the CPU by itself.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as err:
        raise DeviceError(f"{device!r} is not a device; use {_DEVICES}") from err
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"device '{device}' is of a kind that is not supported; use {_DEVICES}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            why = (
                "PyTorch finds no usable CUDA device (driver, CUDA_VISIBLE_DEVICES?)"
                if torch.version.cuda
                else "this PyTorch was built without CUDA"
            )
            raise DeviceError(
                f"device '{device}' was asked for, but {why}; use device='cpu' to run without"
            )
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise DeviceError(
                f"device '{device}' was asked for, but there are only "
                f"{torch.cuda.device_count()} CUDA devices, numbered from 0"
            )
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' was asked for, but PyTorch finds none; use device='cpu'")
    return device


def build_model(cfg: Config) -> nn.Module:
    """The model of a config.

    Raises:
        ConfigError: no model in it, a part that is not registered, or an argument that a part does
            not take or not with this value.
    """
    if not isinstance(cfg.get("model"), dict):
        raise ConfigError(f"{_name(cfg)}: has no `model`")
    init_default_scope(cfg.get("default_scope", "odise_mm"))
    with config_errors(cfg):
        return build_part(cfg.model, MODELS)


def _name(cfg: Config) -> str:
    return cfg.filename or "config"


def _text(err: Exception) -> str:
    # str() of a KeyError is the repr of its message.
    return str(err.args[0]) if isinstance(err, KeyError) and err.args else str(err)


@contextmanager
def config_errors(cfg: Config) -> Iterator[None]:
    """What parts refuse while they are built is the config's fault; the cause stays attached."""
    try:
        yield
    except OdiseError:
        raise  # a missing weights file, a wrong vocabulary: named well already
    except KeyError as err:
        raise ConfigError(f"{_name(cfg)}: unknown part or setting: {_text(err)}") from err
    except (TypeError, ValueError) as err:
        raise ConfigError(f"{_name(cfg)}: wrong argument: {err}") from err


def make_test_pipeline(cfg: Config) -> Compose:
    """The config's test pipeline, fit for pictures from anywhere.

    ``test_pipeline``, or else that of ``test_dataloader``. Whatever loads the picture is replaced
    by ``LoadImage``; what loads annotations is left out, as there are none.

    Raises:
        ConfigError: the config has no test pipeline, or one with an unknown transform or argument,
            or with a scale of 0.
    """
    steps = cfg.get("test_pipeline")
    if steps is None:
        dataset = cfg.get("test_dataloader", ConfigDict()).get("dataset")
        inside = inner_configs(dataset, "test_dataloader.dataset")
        steps = next((each["pipeline"] for _, each, _ in inside if "pipeline" in each), None)
    if not steps:
        raise ConfigError(f"{_name(cfg)}: has no `test_pipeline`")
    kept = [dict(type="LoadImage")]
    for step in steps:
        if not isinstance(step, dict) or "type" not in step:
            raise ConfigError(f"{_name(cfg)}: a step of the test pipeline has no `type`: {step}")
        kind = step["type"] if isinstance(step["type"], str) else step["type"].__name__
        kind = kind.rpartition(".")[2]
        if not kind.startswith("LoadImage") and "Annotations" not in kind:
            kept.append(step)
    with config_errors(cfg):
        built = [TRANSFORMS.build(step) for step in kept]
        for step in built:
            if isinstance(step, ResizeKeepRatio):
                step.check_scale()
        return Compose(built)
