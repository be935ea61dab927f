"""Old names of modules still work, and say what the new ones are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import odise_mm.datasets
from odise_mm.moved import MOVED
from odise_mm.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("old", MOVED)
def test_an_old_module_has_what_the_new_ones_have(old: str) -> None:
    sys.modules.pop(f"odise_mm.{old}", None)
    with pytest.warns(FutureWarning, match=re.escape(f"odise_mm.{old} has moved to odise_mm.")):
        module = import_module(f"odise_mm.{old}")
    parts = [import_module(f"odise_mm.{new}") for new in MOVED[old]]
    names = [(name, part) for part in reversed(parts) for name in vars(part) if name[0] != "_"]
    assert names and {n: getattr(module, n) for n, _ in names} == {
        n: getattr(part, n) for n, part in names
    }
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


def test_no_old_name_hides_a_module() -> None:
    for old in MOVED:
        path = ROOT.joinpath("odise_mm", *old.split("."))
        assert not path.with_suffix(".py").exists() and not (path / "__init__.py").exists()


def test_the_warning_points_to_the_import(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text("\nfrom odise_mm.datasets.vocabulary import Vocabulary\n")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert f"{script}:2: FutureWarning: odise_mm.datasets.vocabulary has moved" in done.stderr


def test_old_places_of_the_vocabulary() -> None:
    assert odise_mm.datasets.Vocabulary is Vocabulary


def test_the_changelog_says_how_long_they_work() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "for one more release" in text
