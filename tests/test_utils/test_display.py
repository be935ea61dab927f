"""Untrusted text is shown in one line, without control characters or markup."""

from __future__ import annotations

import os
import unicodedata

import pytest

from odise_mm.utils.display import markdown_cell, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("street 1.jpg", "street 1.jpg"),
        ("a\nerror: b", "a\\nerror: b"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\tb\r\x9b", "a\\tb\\r\\x9b"),
        ("line\u2028end\u2029", "line\\u2028end\\u2029"),
        ("gpj.\u202egro", "gpj.\\u202egro"),
        (os.fsdecode(b"caf\xe9"), "caf\\udce9"),
        ("café 東京 \u3000 🚲 می‌خواهم", "café 東京 \u3000 🚲 می‌خواهم"),
        ("C:\\data", "C:\\data"),
        (7, "7"),
    ],
)
def test_printable(text: object, shown: str) -> None:
    assert printable(text) == shown


def test_control_characters_are_escaped() -> None:
    shown = printable("".join(map(chr, range(0x3000))))
    assert not any(unicodedata.category(sign) in ("Cc", "Zl", "Zp") for sign in shown)


def test_long_text_keeps_both_ends() -> None:
    shown = printable("a" * 500 + "b" * 500, limit=41)
    assert len(shown) == 41 and shown.startswith("aaa") and shown.endswith("bbb") and "..." in shown


def test_markdown_cell_has_no_markup() -> None:
    assert markdown_cell("a|b <img> `c` *d* [e](f)\n") == (
        "a\\|b &lt;img> \\`c\\` \\*d\\* \\[e\\](f)\\\\n"
    )
