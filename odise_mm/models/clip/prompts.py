"""Conversion of names to prompts for CLIP."""

from collections.abc import Sequence

from odise_mm.errors import ConfigError


def fill_template(template: str, names: Sequence[str]) -> list[str]:
    """Return a prompt for each name.

    Args:
        template: the prompt, with ``{}`` in place of the name.
        names: the names.

    Raises:
        ConfigError: the template has no ``{}``.
    """
    if not isinstance(template, str) or "{}" not in template:
        raise ConfigError(f"the prompt template {template!r} must contain {{}} for the name")
    return [template.replace("{}", name) for name in names]
