"""Configs in files of results and beside trained weights: data, which must not choose what runs.

mmengine's registries import whatever a dotted ``type`` names, so that building from such a config
could run anything. Only parts of this package are built from it, and of modules that the user
names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.registry import Registry

from odise_mm.errors import ConfigError
from odise_mm.registry import MODELS, TASK_UTILS, TRANSFORMS
from odise_mm.utils.display import printable

# Prefixes under which configs name parts of ours, or what ours stands for.
_SCOPES = ("", "odise_mm", "mmdet", "mmseg", "mmengine")
# Parts of OpenMMLab's that models of this package are made of.
OPENMMLAB_PARTS = frozenset(
    """mmdet.ClassificationCost mmdet.CrossEntropyLoss mmdet.CrossEntropyLossCost
    mmdet.DetDataPreprocessor mmdet.DiceCost mmdet.DiceLoss mmdet.HungarianAssigner
    mmdet.MSDeformAttnPixelDecoder mmdet.MaskPseudoSampler mmdet.PackDetInputs GN ReLU""".split()
)
# Settings that would write where a stranger wants, or let other registries look types up.
_REFUSED_SETTINGS = ("_base_", "_scope_", "cache_file", "init_cfg")


def check_imports(custom_imports: Any, trusted: Sequence[str], where: str) -> None:
    """Refuse modules that a file names and the user did not; those of this package are known.

    Args:
        custom_imports: of the config.
        trusted: modules that the user named.
        where: the file, for messages.

    Raises:
        ConfigError: names the first such module and the option that allows it.
    """
    named = custom_imports.get("imports", ()) if isinstance(custom_imports, dict) else ()
    for module in [named] if isinstance(named, str) else named:
        if not isinstance(module, str) or not _is_known(module, trusted):
            raise ConfigError(
                f"{where}: asks for the module {printable(repr(module))}, and a file of results "
                "does not choose what runs: name it yourself, with --custom-imports, if you "
                "trust it"
            )


def check_types(
    node: Any, registry: Registry, where: str, trusted: Sequence[str] = (), base: type = object
) -> None:
    """Refuse parts that are not this package's, or a trusted module's; nothing is imported.

    Args:
        node: a part's config, or a list of some; parts inside are looked at, too.
        registry: ours, where it will be built.
        where: the file and the place in it, for messages.
        trusted: modules that the user named, imported already.
        base: what the parts must derive from.

    Raises:
        ConfigError: names the first part that is refused.
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
                f"{where}: {printable(repr(node['type']))} is no {registry.name} of this package, "
                "and a file of results does not choose what runs: name its module yourself, with "
                "--custom-imports, if you trust it"
            )
        if not (isinstance(found, type) and issubclass(found, base)):
            raise ConfigError(
                f"{where}: {printable(repr(node['type']))} is no {base.__name__}, which is needed "
                "here"
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
    """Refuse what a model's config from elsewhere must not choose.

    Every ``type`` must be a part of this package or of a trusted module, or one of the parts of
    OpenMMLab's that models of this package are made of. Nothing is imported.

    Args:
        node: ``model`` and ``test_pipeline`` of the config.
        where: the file, for messages.
        trusted: modules that the user named, imported already.

    Raises:
        ConfigError: names the first part or setting that is refused.
    """
    if isinstance(node, (list, tuple)):
        for item in node:
            check_model_config(item, where, trusted)
    if not isinstance(node, dict):
        return
    for key in _REFUSED_SETTINGS:
        if node.get(key) is not None:
            raise ConfigError(
                f"{where}: sets {key}, which the config of a trained model must not choose"
            )
    kind = node.get("type")
    if "type" in node and not (isinstance(kind, str) and kind in OPENMMLAB_PARTS):
        parts = (_registered(kind, registry) for registry in (MODELS, TASK_UTILS, TRANSFORMS))
        if not any(part is not None and _is_known(part.__module__, trusted) for part in parts):
            raise ConfigError(
                f"{where}: {printable(repr(kind))} is no part of this package, and a trained "
                "model's config does not choose what runs: name its module yourself, with "
                "custom_imports=[...], if you trust it"
            )
    for value in node.values():
        check_model_config(value, where, trusted)
