"""Who may import whom: packages stand on floors, and every arrow goes down."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the bottom up. A package may import those of the floors below its own, and nothing beside it.
FLOORS = (
    {"errors", "moved", "structures", "version"},
    {"utils"},
    {"annotations", "registry"},
    {"vocabulary"},
    {"config"},
    {"checkpoints"},
    {"datasets", "evaluation", "models", "visualization"},
    {"engine", "export", "io", "video"},
    {"benchmarks"},
    {"analysis", "apis", "converters"},
    {"labeling", "serving"},
    {"cli"},
    {"__main__"},
)
FLOOR_OF = {package: index for index, floor in enumerate(FLOORS) for package in floor}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of what a file imports, inside of functions, too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def package_of(name: str) -> str | None:
    """``models`` of ``odise_mm.models.frozen``; None for other packages and odise_mm itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == "odise_mm" and len(parts) > 1 else None


def wrong_arrows(files: list[Path]) -> list[str]:
    wrong = []
    for path in files:
        own = package_of(module_name(path))
        for line, name in imports(path):
            other = package_of(name)
            if own is None or other is None or own == other:
                continue
            if FLOOR_OF[other] >= FLOOR_OF[own]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {own} imports {name}")
    return wrong


def test_every_package_has_a_floor() -> None:
    there = {path.stem for path in (ROOT / "odise_mm").glob("*.py")} - {"__init__"}
    there |= {path.parent.name for path in (ROOT / "odise_mm").glob("*/__init__.py")}
    assert there == set(FLOOR_OF)


def test_arrows_go_down() -> None:
    assert wrong_arrows(sorted((ROOT / "odise_mm").rglob("*.py"))) == []


def test_a_wrong_arrow_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    folder = tmp_path / "odise_mm/models"
    folder.mkdir(parents=True)
    (folder / "low.py").write_text("def f():\n    from odise_mm.datasets import PanopticDataset\n")
    (folder / "high.py").write_text("from odise_mm.config import building\nimport odise_mm.apis\n")
    files = sorted(folder.glob("*.py"))
    assert [line.split(": ")[0] for line in wrong_arrows(files)] == [
        "odise_mm/models/high.py:2",
        "odise_mm/models/low.py:2",
    ]


def test_the_package_imports_nothing_from_beside_it() -> None:
    beside = {"tools", "tests", "projects", "demo"}
    for path in (ROOT / "odise_mm").rglob("*.py"):
        for line, name in imports(path):
            assert name.split(".")[0] not in beside, f"{path}:{line}"


def test_names_of_classes_come_without_models_and_datasets() -> None:
    code = (
        "import sys, odise_mm.vocabulary\n"
        "print(*[m for m in ('torch', 'mmdet', 'mmseg', 'odise_mm.models') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
