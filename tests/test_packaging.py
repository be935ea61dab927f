"""What is installed is complete: a wheel works without the clone, and MIM finds what it wants."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FOR_MIM = ("tools", "configs", "model-index.yml")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, so that nothing is written into this folder."""
    folder = tmp_path_factory.mktemp("clone")
    files = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt")
    unwanted = shutil.ignore_patterns("__pycache__", ".mim", "build", "*.egg-info")
    for name in (*files, *FOR_MIM, "odise_mm", "requirements"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def build(clone: Path, kind: str, out: Path) -> Path:
    """Let the build backend make a wheel, an editable wheel or an sdist, as pip does."""
    code = f"import setuptools.build_meta as b; b.build_{kind}({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = out.iterdir()
    return file


def listing(folder: Path) -> set[str]:
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return {p.as_posix() for p in found if "__pycache__" not in p.parts}


def test_a_wheel_has_tools_configs_and_index(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    wheel = build(clone, "wheel", tmp_path / "wheels")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    packed = site / "odise_mm/.mim"
    assert {path.name for path in packed.iterdir()} == set(FOR_MIM)
    for name in ("tools", "configs"):
        assert listing(packed / name) == listing(clone / name)
    for file in yaml.safe_load((packed / "model-index.yml").read_text())["Import"]:
        assert (packed / file).is_file()

    # The packed tool, started elsewhere, uses the packed package and finds a packed config by name.
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, str(packed / "tools/train.py"), "odise_label_voc20"]
    done = subprocess.run(
        command,
        cwd=tmp_path / "elsewhere",
        env={"PYTHONPATH": str(site), "PATH": ""},
        capture_output=True,
        text=True,
    )
    config = packed / "configs/odise/odise_label_voc20.py"
    assert done.returncode == 2
    assert f"error: {config}: has no `train_dataloader`" in done.stderr


def test_an_editable_installation_has_links(clone: Path, tmp_path: Path) -> None:
    build(clone, "editable", tmp_path)
    for name in FOR_MIM:
        link = clone / "odise_mm/.mim" / name
        assert link.is_symlink() and link.resolve() == clone / name
    assert "odise_mm/.mim" in (ROOT / ".gitignore").read_text().split()


def test_a_source_distribution_has_what_a_wheel_is_made_of(clone: Path, tmp_path: Path) -> None:
    archive = build(clone, "sdist", tmp_path)
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    for name in ("tools", "configs", "odise_mm"):
        wanted = {file for file in listing(clone / name) if not file.startswith(".mim/")}
        assert listing(folder / name) >= wanted
    assert (folder / "model-index.yml").is_file()
