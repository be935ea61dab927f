"""Configs that lie in files of results: data, which must not choose what code runs.

mmengine's registries import whatever a dotted ``type`` names, so that building from such a config
could run anything. Only parts of this package are built from it, and of modules that the user
names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.registry import Registry

from odise_mm.errors import ConfigError
from odise_mm.utils.display import printable

# Prefixes under which configs name parts of ours, or what ours stands for.
_SCOPES = ("", "odise_mm", "mmdet", "mmseg", "mmengine")


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
