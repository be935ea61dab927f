"""The documentation site builds without a warning, and its reference is complete."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest
import yaml
from mmengine.registry import Registry

import odise_mm.registry
from odise_mm import errors, structures

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "apis",
    "datasets",
    "datasets.transforms",
    "engine",
    "evaluation",
    "models",
    "visualization",
    "vocabulary",
)
REPOSITORY = "https://example.org/odise_mm"


def build(folder: Path, repository: str = "") -> Path:
    """Build the site strictly, as ``make docs`` does."""
    site = folder / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(site)]
    variables = {**os.environ, "REPOSITORY_URL": repository, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("docs"))


class Links(HTMLParser):
    """What a page links to, loads, and calls its parts."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.anchors |= {value for key in ("id", "name") if (value := found.get(key))}
        if tag == "a" and found.get("href"):
            self.targets.append(found["href"] or "")
        if tag in ("script", "img") and found.get("src"):
            self.loaded.append(found["src"] or "")
        if tag == "link" and found.get("rel") == "stylesheet":
            self.loaded.append(found["href"] or "")


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    return {page: Links(page) for page in site.rglob("*.html") if page.name != "404.html"}


def public_names() -> Iterator[str]:
    """Full names of all that users and plugins may import, where it is defined."""
    for package in PACKAGES:
        module = importlib.import_module(f"odise_mm.{package}")
        for name in module.__all__:
            value = getattr(module, name)
            home = getattr(value, "__module__", None)  # data has none
            yield f"{home or module.__name__}.{name}"
    for module in (errors, structures):
        for name, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == module.__name__:
                yield f"{module.__name__}.{name}"
    for registry in vars(odise_mm.registry).values():
        for value in registry.module_dict.values() if isinstance(registry, Registry) else ():
            if value.__module__.startswith("odise_mm."):
                yield f"{value.__module__}.{value.__qualname__}"


def test_every_public_name_has_an_entry(site: Path) -> None:
    data = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    entries = {line.split()[0] for line in zlib.decompress(data).decode().splitlines()}
    wanted = set(public_names())
    assert len(wanted) > 60
    assert sorted(wanted - entries) == []


def test_links_within_the_site_lead_somewhere(site: Path, pages: dict[Path, Links]) -> None:
    broken = []
    for page, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme:
                continue
            other = (page.parent / parts.path).resolve() if parts.path else page
            if other in pages and parts.fragment:
                there = parts.fragment in pages[other].anchors
            else:
                there = other.exists() and other.is_relative_to(site)
            if not there:
                broken.append(f"{page.name}: {target}")
    assert not broken


def test_a_reader_needs_no_other_server(pages: dict[Path, Links]) -> None:
    for page, links in pages.items():
        assert not [target for target in links.loaded if urlsplit(target).netloc], page
        assert "fonts.googleapis" not in page.read_text(encoding="utf-8")


def test_no_markup_of_docstrings_is_left(site: Path) -> None:
    for page in (site / "api").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r":(?:class|func|meth|mod|data):|<p>(?:Args|Raises|Returns):", text)


def test_links_to_other_files_lead_to_the_repository(tmp_path: Path) -> None:
    site = build(tmp_path, REPOSITORY)
    targets = {target for page in site.rglob("*.html") for target in Links(page).targets}
    files = {target for target in targets if target.startswith(f"{REPOSITORY}/")}
    assert len(files) > 30
    for target in files - {f"{REPOSITORY}/"}:
        kind, _, path = target.removeprefix(f"{REPOSITORY}/").partition("/main/")
        path = path.partition("#")[0]
        assert (ROOT / path).is_dir() if kind == "tree" else (ROOT / path).is_file(), target


def test_without_a_repository_they_are_text(site: Path) -> None:
    text = (site / "security.html").read_text(encoding="utf-8")
    assert '<abbr title="SECURITY.md">SECURITY.md</abbr>' in text


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": ([\w/]+\.md)$", text, re.M))
    assert named == {
        path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")
    }


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs/tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_of_configs_are_those_of_the_metafiles(tables: ModuleType) -> None:
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert text == tables.with_tables(page), "run: python docs/tables.py"


def test_the_model_zoo_has_every_config_of_the_metafiles(tables: ModuleType) -> None:
    text = (ROOT / "docs/model_zoo.md").read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- table: (\w+) -->", text)) == set(tables.TABLES)
    for file in yaml.safe_load((ROOT / "model-index.yml").read_text())["Import"]:
        for entry in yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["Models"]:
            assert f"(../{entry['Config']})" in text


def test_every_folder_of_configs_has_a_readme() -> None:
    folders = [f for f in (ROOT / "configs").iterdir() if f.is_dir() and f.name != "_base_"]
    assert len(folders) >= 3
    for folder in folders:
        assert (folder / "README.md").is_file(), folder
