"""Extension of Griffe: what our docstrings contain besides the Google style.

* They name other objects as Sphinx does, ``:class:`~odise_mm.registry.X` ``. The site shows the
  last part of such a name, and links it if the reference has an entry for it.
* They may describe several arguments together, ``mean, std: of each channel``. Griffe takes one
  name per entry.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|meth|func|mod|attr|data|obj|exc):`(?P<tilde>~?)\.?(?P<name>[\w.]+)`")

SHARED = re.compile(r"^(?P<indent> +)(?P<first>\w+), (?P<rest>\w+(?:, \w+)*): (?P<text>.*)$", re.M)


class Docstrings(griffe.Extension):
    """Rewrite every docstring once the package is read."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite the docstrings of a package, from the top down."""
        self._rewrite(pkg)

    def _rewrite(self, node: griffe.Object) -> None:
        if node.docstring is not None:
            text = ROLE.sub(lambda match: _link(match, node), node.docstring.value)
            # "Example::" announces a literal block; Markdown needs the indentation only.
            text = re.sub(r"::$", ":", text, flags=re.M)
            node.docstring.value = SHARED.sub(_split, text)
        for member in node.members.values():
            if not member.is_alias:
                self._rewrite(member)


def _link(match: re.Match[str], node: griffe.Object) -> str:
    name = match["name"]
    try:
        target = node.resolve(name)
    except griffe.NameResolutionError:
        target = name
    shown = name.rsplit(".", 1)[-1] if match["tilde"] else name
    # Optional: what the reference leaves out is shown without a link.
    return f'<autoref optional identifier="{target}"><code>{shown}</code></autoref>'


def _split(match: re.Match[str]) -> str:
    """Give each of several names an entry; the last one has the text, which may go on below."""
    *others, last = [match["first"], *match["rest"].split(", ")]
    indent = match["indent"]
    entries = [f"{indent}{name}: see `{last}`." for name in others]
    return "\n".join([*entries, f"{indent}{last}: {match['text']}"])
