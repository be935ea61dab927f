"""From names to the texts that CLIP reads."""

from collections.abc import Sequence

from odise_mm.errors import ConfigError


def fill_template(template: str, names: Sequence[str]) -> list[str]:
    """Prompts from names; ``{}`` in the template stands for the name.

    Raises:
        ConfigError: the template has no ``{}``.
    """
    if not isinstance(template, str) or "{}" not in template:
        raise ConfigError(f"the prompt template {template!r} needs a {{}} for the name")
    return [template.replace("{}", name) for name in names]
