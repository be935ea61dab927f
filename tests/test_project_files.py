"""Project files: they are valid and consistent with each other."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "requirements"))
import environment  # noqa: E402

YAML = sorted(
    [ROOT / "CITATION.cff", ROOT / ".pre-commit-config.yaml", *ROOT.glob(".github/**/*.yml")]
)


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_is_valid(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_citation_has_the_required_fields() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    for work in (citation, *citation["references"]):
        assert all(set(a) & {"name", "family-names"} for a in work["authors"])


def test_pre_commit_uses_the_ruff_version_of_the_constraints() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (rev,) = [repo["rev"] for repo in hooks["repos"] if "ruff" in repo["repo"]]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert rev == "v" + re.search(r"^ruff==(\S+)$", constraints, re.M)[1]


def test_workflows_test_the_supported_versions_of_python() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    tried = jobs["test"]["strategy"]["matrix"]["python-version"]
    supported = environment.pythons({})
    low, below = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", supported).groups()
    assert tried == [f"3.{minor}" for minor in range(int(low), int(below))]


def test_new_paths_of_the_changelog_exist() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `.+\| (.+) \|$", text, re.M)
    assert len(rows) > 20
    for name in re.findall(r"`(odise_mm[\w.]*)`", " ".join(rows)):
        path = ROOT.joinpath(*name.split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file(), name
