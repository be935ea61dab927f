"""Building of models, their parts and test pipelines from configs."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping
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
"""Lock to hold while building from a config: loading a config changes ``sys.path``, and the default
scope of the registries is global."""


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config.

    Raises:
        ConfigError: the config has no model, a part is not registered, or a part does not accept
            an argument or its value.
    """
    if not isinstance(cfg.get("model"), dict):
        raise ConfigError(f"{name_of(cfg)}: missing key `model`")
    init_default_scope(cfg.get("default_scope", "odise_mm"))
    with config_errors(cfg):
        return build_part(cfg.model, MODELS)


@contextmanager
def config_errors(cfg: Config) -> Iterator[None]:
    """Convert errors while building parts to ``ConfigError``, with the original as the cause.

    Args:
        cfg: the config, for messages.

    Raises:
        ConfigError: a ``KeyError``, ``TypeError`` or ``ValueError`` was raised inside.
    """
    try:
        yield
    except OdiseError:
        raise  # already has a good message
    except KeyError as err:
        raise ConfigError(f"{name_of(cfg)}: unknown type or setting: {text_of(err)}") from err
    except (TypeError, ValueError) as err:
        raise ConfigError(f"{name_of(cfg)}: invalid argument: {err}") from err


def make_test_pipeline(cfg: Config, *, already_read: bool = False) -> Compose:
    """Build the config's test pipeline for images from any source.

    The pipeline is ``test_pipeline``, or that of ``test_dataloader`` if the config has none. The
    step that loads the image is replaced with ``LoadImage``; steps that load annotations are
    removed.

    Args:
        cfg: the config.
        already_read: omit ``LoadImage`` as well. The input of the pipeline is then a dict with
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
        raise ConfigError(f"{name_of(cfg)}: missing key `test_pipeline`")
    kept = [] if already_read else [dict(type="LoadImage")]
    for step in steps:
        if not isinstance(step, dict) or "type" not in step:
            raise ConfigError(f"{name_of(cfg)}: step of test_pipeline without `type`: {step}")
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
    """Build a part of a model from its config and pass it objects that it shares with other parts.

    Args:
        cfg: config with ``type``; a module that is already built is returned unchanged.
        registry: registry in which ``type`` is looked up.
        shared: values for arguments of the part's ``__init__`` that are missing or None in ``cfg``.
            Values for which the part has no argument are ignored.

    Raises:
        TypeError: ``cfg`` has no ``type``; or the part has no argument of a name in ``cfg``, then
            the message lists its arguments.
        KeyError: ``type`` is not registered.
    """
    if isinstance(cfg, nn.Module):
        return cfg
    if not isinstance(cfg, Mapping) or cfg.get("type") is None:
        raise TypeError(
            f"{cfg!r} is not the config of a part: it must be a dictionary with `type`; to leave "
            "out an optional part, set it to None"
        )
    cfg = dict(cfg)
    name = cfg["type"]
    cls = registry.get(name) if isinstance(name, str) else name
    if cls is None:
        known = ", ".join(sorted(registry.module_dict))
        raise KeyError(f"type {name!r} is not registered; this package has: {known}")
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
