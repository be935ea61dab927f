"""The documents tell the truth: links, names, commands and code in them are tried."""

from __future__ import annotations

import argparse
import ast
import builtins
import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.config import Config

import odise_mm.apis.inferencer
import odise_mm.checkpoints.published_weights  # before `workplace` replaces what it imports
import odise_mm.config.finding
import odise_mm.models  # noqa: F401  (fills the registry)
from odise_mm import errors
from odise_mm.cli.main import COMMANDS, NAME
from odise_mm.config.changing import change_config
from odise_mm.registry import MODELS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = sorted([README, *ROOT.glob("docs/*.md"), *ROOT.glob("demo/**/*.md")])
DOCUMENTS += sorted([*ROOT.glob("projects/**/*.md"), *ROOT.glob("configs/*/README.md")])
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^>]+) -->\n)?^```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)
FOLDERS = "odise_mm|configs|tools|tests|docs|projects|requirements"


def blocks(document: Path, kind: str) -> list[tuple[str, str]]:
    """(mark, code) of the code blocks of one language; the mark is the HTML comment above."""
    found = BLOCK.finditer(document.read_text(encoding="utf-8"))
    return [(m["mark"] or "", m["code"]) for m in found if m["kind"] == kind]


def commands(document: Path) -> Iterator[list[str]]:
    """Words of every command in shell blocks."""
    for _, code in blocks(document, "shell"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


def prose(document: Path) -> str:
    return BLOCK.sub("", document.read_text(encoding="utf-8"))


def anchors(document: Path) -> set[str]:
    """Anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.M)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}


every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@every_document
def test_named_files_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./*-]*\w)", text))
    folders = (ROOT, document.parent)
    assert not [path for path in named if not any(list(f.glob(path)) for f in folders)]


@every_document
def test_named_configs_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    names = {path.stem for path in (ROOT / "configs").rglob("*.py")}
    assert set(re.findall(r"\bodise_(?:tiny|coco_(?!50e)\w+)\b", text)) <= names


@every_document
def test_commands_are_understood(document: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    written = re.findall(r"<!-- file: (\S+) -->", document.read_text(encoding="utf-8"))
    for words in commands(document):
        if words[0] == "make":
            assert words[1] in targets
        elif words[0] == "python" and words[1] not in written:
            assert isinstance(parse(words[1], words[2:]), argparse.Namespace), words
        elif words[0] == NAME:
            assert isinstance(parse_command(words[1], words[2:]), argparse.Namespace), words
    for command in re.findall(r"`python ([^\s`]+\.py[^`]*)`", prose(document)):
        script, *arguments = shlex.split(command)
        assert isinstance(parse(script, arguments), argparse.Namespace), command
    for command in re.findall(rf"`{NAME} ([a-z]+ [^`]*)`", prose(document)):
        name, *arguments = shlex.split(command)
        assert isinstance(parse_command(name, arguments), argparse.Namespace), command


def parse_command(name: str, arguments: list[str]) -> argparse.Namespace:
    assert name in COMMANDS
    return importlib.import_module(f"odise_mm.cli.{name}").parse_args(arguments)


def parse(script: str, arguments: list[str]) -> argparse.Namespace:
    spec = importlib.util.spec_from_file_location(f"command_{Path(script).stem}", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.parse_args(arguments)


def defined_names(file: Path) -> set[str]:
    """Functions, classes and methods of a module: ``f``, ``C``, ``C.m``."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
            names.update(f"{node.name}.{method.name}" for method in methods)
    return names


def table(name: str) -> str:
    """The Markdown table below the comment ``<!-- table: NAME -->``, on whichever page it is."""
    found = [
        match[1]
        for path in DOCUMENTS
        for match in re.finditer(
            rf"<!-- table: {name} -->\n((?:\|.*\n)+)", path.read_text(encoding="utf-8")
        )
    ]
    assert len(found) == 1, name
    return found[0]


def table_rows(name: str) -> list[tuple[list[str], list[Path]]]:
    """Code names and linked modules of each row of a table."""
    rows = []
    for line in table(name).splitlines():
        files = [ROOT / path for path in re.findall(r"\]\((?:\.\./)*(odise_mm/[^)]+\.py)\)", line)]
        if files:
            cells = line.rsplit("|", 2)[0]
            rows.append((re.findall(r"`([A-Za-z_][\w.]*)`", cells), files))
    return rows


def test_every_equation_is_where_the_table_says() -> None:
    rows = table_rows("equations")
    assert len(rows) >= 9
    for names, files in rows:
        assert names and set(names) <= set().union(*map(defined_names, files)), names


def test_equation_10_is_the_last_line_of_its_function() -> None:
    tree = ast.parse((ROOT / "odise_mm/models/classifiers/ensemble.py").read_text())
    functions = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    last = ast.unparse(functions["ensemble_logits"].body[-1])
    assert "(1 - weight) * own + weight *" in last


def test_the_table_of_components_is_the_registry() -> None:
    listed = set()
    for names, files in table_rows("components"):
        assert set(names) <= set().union(*map(defined_names, files)), names
        listed.update(names)
    ours = {
        name
        for name, part in MODELS.module_dict.items()
        if part.__module__.startswith("odise_mm.models")
    }
    assert listed == ours


def test_the_table_of_parameters_is_counted() -> None:
    from odise_mm.analysis.model_summary import summarize

    summary = summarize("odise_coco_label")
    page = (ROOT / "docs/components.md").read_text(encoding="utf-8").split("## Parameters\n")[1]
    numbers = {int(n.replace(",", "")) for n in re.findall(r"\d[\d,]{5,}\d", page)}
    trained, frozen = summary["trained"], summary["frozen"]
    theirs = summary["published_frozen"]
    expected = {
        *(trained[part] for part in ("captioner", "feature projection", "pixel decoder")),
        trained["transformer decoder"],
        trained["mask embedding"] + trained["names"],
        *(counts["UNet"] for counts in (frozen, theirs)),
        *(counts["VAE encoder"] + counts["VAE decoder"] for counts in (frozen, theirs)),
        *(counts["CLIP image tower"] + counts["CLIP text tower"] for counts in (frozen, theirs)),
        theirs["diffusion text encoder"],
        *(sum(counts.values()) for counts in (trained, frozen, theirs)),
        sum(theirs.values()) - sum(frozen.values()),
    }
    assert trained == summary["published_trained"]
    assert numbers == expected


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the repository, and configs with small images and tiles."""
    for name in ("configs", "demo"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    load = odise_mm.config.finding.load_config

    def load_small(config: str | Config) -> Config:
        changed = load(config)
        change_config(changed, {"test_pipeline.1.scale": (128, 64)})
        if changed.model.tile_size is not None:
            changed.model.tile_size = 64
        return changed

    monkeypatch.setattr(odise_mm.config.finding, "load_config", load_small)
    monkeypatch.setattr(odise_mm.apis.inferencer, "load_config", load_small)
    return tmp_path


def test_the_errors_are_what_the_page_says() -> None:
    text = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+Error)` \| `([\w.]+)` \|", text, re.M)
    documented = {(getattr(errors, name), getattr(builtins, base)) for name, base in rows}
    assert len(documented) == 6
    assert all(issubclass(c, errors.OdiseError) and issubclass(c, base) for c, base in documented)


def run(document: Path) -> dict:
    """Run the marked blocks of a document in order, in one namespace."""
    namespace: dict = {}
    for mark, code in blocks(document, "python"):
        if mark == "runnable":
            exec(compile(code, f"{document.name}: {code[:40]!r}", "exec"), namespace)
    return namespace


def test_the_readme_runs(workplace: Path) -> None:
    result = run(README)["result"]
    assert result.ok and result.panoptic.shape == (427, 640)
    assert result.class_names == ("pagoda", "person", "blue sky", "tree")
    assert all(Path(path).is_file() for path in result.files.values())


def test_the_page_on_inference_runs(workplace: Path, capsys: pytest.CaptureFixture) -> None:
    namespace = run(ROOT / "docs" / "inference.md")
    assert "missing.jpg: no such file" in capsys.readouterr().out
    assert not namespace["bad"].ok and namespace["good"].ok
    assert namespace["again"].panoptic.shape == (427, 640)
    assert namespace["drawn"].shape[1:] == (640, 3)  # higher: there is a legend
    assert namespace["sample"].pred_panoptic_seg.sem_seg.shape == (1, 427, 640)


def test_the_page_on_memory_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    monkeypatch.chdir(tmp_path)
    namespace = run(ROOT / "docs" / "memory.md")
    assert "wug" in [segment.name for segment in namespace["result"].segments]
    assert namespace["taught"].origin == "model"


def test_all_other_python_is_at_least_python() -> None:
    compiled = [
        compile(code, document.name, "exec")
        for document in DOCUMENTS
        for _, code in blocks(document, "python")
    ]
    assert len(compiled) > 20
