"""Conversion of names to prompts for CLIP."""

from collections.abc import Sequence

from odise_mm.errors import ConfigError

TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "vild": (
        "a photo of a {}.",
        "This is a photo of a {}",
        "There is a {} in the scene",
        "There is the {} in the scene",
        "a photo of a {} in the scene",
        *(f"a photo of a {size} {{}}." for size in ("small", "medium", "large")),
        *(f"This is a photo of a {size} {{}}." for size in ("small", "medium", "large")),
        *(f"There is a {size} {{}} in the scene." for size in ("small", "medium", "large")),
    ),
}
"""Templates whose embeddings are averaged, by name.

``vild``: the 14 of ViLD (arXiv 2104.13921) that FC-CLIP and its successors use.
"""

Template = str | Sequence[str]
"""One template, the name of a set of templates, or a list of templates."""


def templates_of(template: Template) -> tuple[str, ...]:
    """Return the templates that a config's ``template`` stands for.

    Raises:
        ConfigError: an unknown set, or a template without ``{}``.
    """
    if isinstance(template, str):
        templates = TEMPLATE_SETS.get(template, (template,))
    elif isinstance(template, list | tuple) and template:
        templates = tuple(template)
    else:
        raise ConfigError(
            f"template={template!r}: must be a prompt template, a list of templates, or the name "
            f"of a set of templates ({', '.join(TEMPLATE_SETS)})"
        )
    for each in templates:
        fill_template(each, [])
    return templates


def fill_template(template: str, names: Sequence[str]) -> list[str]:
    """Return a prompt for each name.

    Args:
        template: the prompt, with ``{}`` in place of the name.
        names: the names.

    Raises:
        ConfigError: the template has no ``{}``.
    """
    if not isinstance(template, str) or "{}" not in template:
        raise ConfigError(
            f"the prompt template {template!r} must contain {{}} for the name, or be the name of "
            f"a set of templates ({', '.join(TEMPLATE_SETS)})"
        )
    return [template.replace("{}", name) for name in names]


def fill_each(templates: Sequence[str], name: str) -> list[str]:
    """Return the prompts of one name, one for each template."""
    return [prompt for template in templates for prompt in fill_template(template, [name])]
