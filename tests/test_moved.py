"""Deprecated module names still work and warn about the new names."""

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
def test_old_module_has_the_contents_of_the_new_ones(old: str) -> None:
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


def test_old_names_do_not_shadow_modules() -> None:
    for old in MOVED:
        path = ROOT.joinpath("odise_mm", *old.split("."))
        assert not path.with_suffix(".py").exists() and not (path / "__init__.py").exists()


def test_warning_points_to_the_import(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text("\nfrom odise_mm.datasets.vocabulary import Vocabulary\n")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert f"{script}:2: FutureWarning: odise_mm.datasets.vocabulary has moved" in done.stderr


def test_vocabulary_is_still_exported_by_datasets() -> None:
    assert odise_mm.datasets.Vocabulary is Vocabulary


def test_changelog_states_the_deprecation_period() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "still work in the next release" in " ".join(text.split())
