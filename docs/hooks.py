"""Hooks of MkDocs: links that leave docs/ lead to the repository.

On GitHub a page links to ``../README.md`` or ``../odise_mm/...``. The site does not contain these
files.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

CODE_BLOCK = re.compile(r"^```.*?^```$", re.M | re.S)
LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>\.\.?/[^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Rewrite the links of a page; code blocks stay as they are."""
    root = Path(config.docs_dir).parent
    repository = (config.repo_url or "").rstrip("/")
    folder = posixpath.dirname(f"{Path(config.docs_dir).name}/{page.file.src_uri}")

    def outside(match: re.Match[str]) -> str:
        path, _, anchor = match["target"].partition("#")
        path = posixpath.normpath(posixpath.join(folder, path))
        if path.startswith("docs/"):
            return match[0]
        if not repository:
            return f'<abbr title="{path}">{match["text"]}</abbr>'
        kind = "tree" if (root / path).is_dir() else "blob"
        anchor = f"#{anchor}" if anchor else ""
        return f"[{match['text']}]({repository}/{kind}/main/{path}{anchor})"

    parts, end = [], 0
    for block in CODE_BLOCK.finditer(markdown):
        parts += [LINK.sub(outside, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, LINK.sub(outside, markdown[end:])])
