"""The journal of finished work survives a kill."""

from __future__ import annotations

import os
from pathlib import Path

from odise_mm.utils.journal import Journal


def test_values_are_read_in_order(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    with Journal(tmp_path / "new" / "a.journal") as journal:
        assert journal.read() == []
        journal.add({"name": name})
        assert Journal(journal.path).read() == [{"name": name}]  # flushed immediately
        journal.add(["a\nb\u2028c", 1.5, None])
    assert journal.read() == [{"name": name}, ["a\nb\u2028c", 1.5, None]]
    journal.remove()
    assert journal.read() == [] and not journal.path.exists()


def test_truncated_line_is_skipped_and_ended(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    path.write_bytes(b'[1]\n{"a": "cut \xe2\x82')
    with Journal(path) as journal:
        assert journal.read() == [[1]]
        journal.add([2])
    assert journal.read() == [[1], [2]]
