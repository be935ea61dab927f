"""Writing of XML files."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from odise_mm.errors import OutputError
from odise_mm.utils.display import printable
from odise_mm.utils.files import write_text

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def add(parent: ElementTree.Element, tag: str, text: object = "") -> ElementTree.Element:
    """Append an element with text to another one, and return it."""
    child = ElementTree.SubElement(parent, tag)
    child.text = str(text)
    return child


def write_xml(path: Path, root: ElementTree.Element) -> None:
    """Write an XML file in UTF-8, indented, without a declaration (Label Studio rejects it).

    Raises:
        OutputError: A text has characters that XML cannot express: control characters, or bytes of
            a file name that cannot be decoded.
        OSError: The file cannot be written.
    """
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    wrong = _NOT_XML.search(text)
    if wrong:
        near = text[max(0, wrong.start() - 30) : wrong.end() + 30]
        raise OutputError(
            f"{printable(path)}: XML cannot express a character in {printable(near)!r}; rename the "
            "image or the class, or choose another format"
        )
    write_text(path, f"{text}\n")
