"""What a config describes, built: parts, models, test pipelines."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmcv.transforms import Compose
from mmengine.config import Config, ConfigDict
from mmengine.registry import Registry, init_default_scope
from torch import nn

from odise_mm.config.walking import inner_configs, name_of, text_of
from odise_mm.errors import ConfigError, OdiseError
from odise_mm.registry import MODELS, TRANSFORMS

BUILDING = threading.RLock()
"""To be held while something is built from a config: reading one changes where Python looks for
modules, and the registries have one default scope for the whole process."""


def build_model(cfg: Config) -> nn.Module:
    """The model of a config.

    Raises:
        ConfigError: no model in it, a part that is not registered, or an argument that a part does
            not take or not with this value.
    """
    if not isinstance(cfg.get("model"), dict):
        raise ConfigError(f"{name_of(cfg)}: has no `model`")
    init_default_scope(cfg.get("default_scope", "odise_mm"))
    with config_errors(cfg):
        return build_part(cfg.model, MODELS)


@contextmanager
def config_errors(cfg: Config) -> Iterator[None]:
    """What parts refuse while they are built is the config's fault; the cause stays attached."""
    try:
        yield
    except OdiseError:
        raise  # a missing weights file, a wrong vocabulary: named well already
    except KeyError as err:
        raise ConfigError(f"{name_of(cfg)}: unknown part or setting: {text_of(err)}") from err
    except (TypeError, ValueError) as err:
        raise ConfigError(f"{name_of(cfg)}: wrong argument: {err}") from err


def make_test_pipeline(cfg: Config, *, already_read: bool = False) -> Compose:
    """The config's test pipeline, fit for images from anywhere.

    ``test_pipeline``, or else that of ``test_dataloader``. Whatever loads the image is replaced
    by ``LoadImage``; what loads annotations is left out, as there are none.

    Args:
        cfg: the config.
        already_read: leave ``LoadImage`` out too: the pipeline takes what that step gives, namely
            ``img`` (uint8 (H, W, 3) BGR), ``img_path``, ``img_shape`` and ``ori_shape``.

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
        raise ConfigError(f"{name_of(cfg)}: has no `test_pipeline`")
    kept = [] if already_read else [dict(type="LoadImage")]
    for step in steps:
        if not isinstance(step, dict) or "type" not in step:
            raise ConfigError(f"{name_of(cfg)}: a step of the test pipeline has no `type`: {step}")
        kind = step["type"] if isinstance(step["type"], str) else step["type"].__name__
        kind = kind.rpartition(".")[2]
        if not kind.startswith("LoadImage") and "Annotations" not in kind:
            kept.append(step)
    with config_errors(cfg):
        built = [TRANSFORMS.build(step) for step in kept]
        for step in built:
            if hasattr(step, "check_scale"):
                step.check_scale()
        return Compose(built)


def build_part(cfg: Any, registry: Registry, **shared: Any) -> nn.Module:
    """Build a part from its config, lending it what it shares with other parts.

    Args:
        cfg: config with ``type``; a module that is already built is returned as it is.
        registry: where to look up ``type``.
        shared: values for arguments of the part's ``__init__`` that ``cfg`` leaves out or None.
            What it has no argument for is not given: a part asks by naming what it wants.

    Raises:
        TypeError: for an argument in ``cfg`` that the part does not have (known ones are listed).
        KeyError: for a ``type`` that is not registered.
    """
    if isinstance(cfg, nn.Module):
        return cfg
    cfg = dict(cfg)
    name = cfg.get("type")
    cls = registry.get(name) if isinstance(name, str) else name
    if cls is None:
        known = ", ".join(sorted(registry.module_dict))
        raise KeyError(f"no part named {name!r} in the config's registry; ours are: {known}")
    parameters = inspect.signature(cls.__init__).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [key for key in cfg if key not in parameters and key not in ("type", "_scope_")]
    if unknown and not open_ended:
        known = ", ".join(key for key in parameters if key != "self")
        raise TypeError(f"{cls.__name__} has no argument {', '.join(unknown)}; it has: {known}")
    for key, value in shared.items():
        if key in parameters and cfg.get(key) is None:
            cfg[key] = value
    return registry.build(cfg)
