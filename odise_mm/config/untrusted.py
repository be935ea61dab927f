"""Checks of configs from untrusted sources: result files and folders of trained models.

mmengine's registries import any module that a dotted ``type`` names, so building from such a config
could run arbitrary code. Therefore only parts of this package and of modules that the user names
are allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.registry import Registry

from odise_mm.errors import ConfigError
from odise_mm.registry import MODELS, TASK_UTILS, TRANSFORMS
from odise_mm.utils.display import printable

# Scopes in which configs may name parts of this package.
_SCOPES = ("", "odise_mm", "mmdet", "mmseg", "mmengine")
# Parts of OpenMMLab that models of this package consist of.
OPENMMLAB_PARTS = frozenset(
    """mmdet.ClassificationCost mmdet.CrossEntropyLoss mmdet.CrossEntropyLossCost
    mmdet.DetDataPreprocessor mmdet.DiceCost mmdet.DiceLoss mmdet.HungarianAssigner
    mmdet.MSDeformAttnPixelDecoder mmdet.MaskPseudoSampler mmdet.PackDetInputs GN ReLU""".split()
)
# Settings that could write to arbitrary paths, or use other registries.
_REFUSED_SETTINGS = ("_base_", "_scope_", "cache_file", "init_cfg")


def check_imports(custom_imports: Any, trusted: Sequence[str], where: str) -> None:
    """Raise if a config imports modules other than this package's and those the user named.

    Args:
        custom_imports: the config's ``custom_imports``.
        trusted: modules that the user named.
        where: the file, for messages.

    Raises:
        ConfigError: a module is not trusted; the message names it and the option that allows it.
    """
    named = custom_imports.get("imports", ()) if isinstance(custom_imports, dict) else ()
    for module in [named] if isinstance(named, str) else named:
        if not isinstance(module, str) or not _is_known(module, trusted):
            raise ConfigError(
                f"{where}: untrusted module {printable(repr(module))} in custom_imports: result "
                "files must not choose the code that runs; pass the module with --custom-imports "
                "if you trust it"
            )


def check_types(
    node: Any, registry: Registry, where: str, trusted: Sequence[str] = (), base: type = object
) -> None:
    """Raise if a config has parts of other modules than this package and trusted ones.

    Nothing is imported.

    Args:
        node: config of a part, or a list of configs; nested parts are checked as well.
        registry: registry of this package with which the config will be built.
        where: the file and the place in it, for messages.
        trusted: modules that the user named; must be imported already.
        base: class from which the parts must be derived.

    Raises:
        ConfigError: a part is not allowed; the message names it.
    """
    if isinstance(node, (list, tuple)):
        for item in node:
            check_types(item, registry, where, trusted, base)
        return
    if not isinstance(node, dict):
        return
    if "type" in node:
        found = _registered(node["type"], registry)
        if found is None or not _is_known(found.__module__, trusted):
            raise ConfigError(
                f"{where}: {printable(repr(node['type']))} is not a {registry.name} of this "
                "package, and result files must not choose the code that runs; pass its module "
                "with --custom-imports if you trust it"
            )
        if not (isinstance(found, type) and issubclass(found, base)):
            raise ConfigError(
                f"{where}: {printable(repr(node['type']))} is not a subclass of {base.__name__}"
            )
    for value in node.values():
        check_types(value, registry, where, trusted, base)


def _registered(name: Any, registry: Registry) -> Any:
    if not isinstance(name, str):
        return None
    scope, _, bare = name.rpartition(".")
    return registry.module_dict.get(bare) if scope in _SCOPES else None


def _is_known(module: str, trusted: Sequence[str]) -> bool:
    return any(f"{module}.".startswith(f"{known}.") for known in ("odise_mm", *trusted))


def check_model_config(node: Any, where: str, trusted: Sequence[str] = ()) -> None:
    """Raise if a model's config from an untrusted source has parts or settings that are not safe.

    Every ``type`` must be a part of this package or of a trusted module, or one of the parts of
    OpenMMLab in ``OPENMMLAB_PARTS``. Nothing is imported.

    Args:
        node: ``model`` and ``test_pipeline`` of the config.
        where: the file, for messages.
        trusted: modules that the user named; must be imported already.

    Raises:
        ConfigError: a part or setting is not allowed; the message names it.
    """
    if isinstance(node, (list, tuple)):
        for item in node:
            check_model_config(item, where, trusted)
    if not isinstance(node, dict):
        return
    for key in _REFUSED_SETTINGS:
        if node.get(key) is not None:
            raise ConfigError(
                f"{where}: setting {key} is not allowed in the config of a trained model"
            )
    kind = node.get("type")
    if "type" in node and not (isinstance(kind, str) and kind in OPENMMLAB_PARTS):
        parts = (_registered(kind, registry) for registry in (MODELS, TASK_UTILS, TRANSFORMS))
        if not any(part is not None and _is_known(part.__module__, trusted) for part in parts):
            raise ConfigError(
                f"{where}: {printable(repr(kind))} is not a part of this package, and the config "
                "of a trained model must not choose the code that runs; pass its module with "
                "custom_imports=[...] if you trust it"
            )
    for value in node.values():
        check_model_config(value, where, trusted)
