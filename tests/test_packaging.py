"""Packages are complete: a wheel works without the clone and has the files that MIM needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from odise_mm.annotations.panoptic_io import read_coco_panoptic

ROOT = Path(__file__).resolve().parents[1]
TOY = ("projects/toy_world/vocabularies", "projects/toy_world/weights")
FOR_MIM = ("tools", "configs", "demo", "model-index.yml", *TOY)
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files to build from, so that nothing is written to this folder."""
    folder = tmp_path_factory.mktemp("clone")
    files = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt")
    unwanted = shutil.ignore_patterns("__pycache__", ".mim", "build", "*.egg-info")
    for name in (*files, *FOR_MIM, "odise_mm", "requirements"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(clone, "wheel", tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that contains the wheel and nothing of the clone."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def build(clone: Path, kind: str, out: Path) -> Path:
    """Build a wheel, an editable wheel or an sdist with the build backend, as pip does."""
    code = f"import setuptools.build_meta as b; b.build_{kind}({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = out.iterdir()
    return file


def listing(folder: Path) -> set[str]:
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return {p.as_posix() for p in found if "__pycache__" not in p.parts}


def run(site: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with the packages of ``site`` before all others."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={"PYTHONPATH": str(site), "PATH": ""},
        capture_output=True,
        text=True,
    )


def test_a_wheel_has_tools_configs_and_index(clone: Path, site: Path, tmp_path: Path) -> None:
    packed = site / "odise_mm/.mim"
    assert {path.name for path in packed.iterdir()} == {Path(name).parts[0] for name in FOR_MIM}
    for name in FOR_MIM:
        assert listing(packed / name) == listing(clone / name)
    assert [path.name for path in (packed / "projects").iterdir()] == ["toy_world"]
    for file in yaml.safe_load((packed / "model-index.yml").read_text())["Import"]:
        assert (packed / file).is_file()
    assert (site / "odise_mm/py.typed").is_file() and not (site / "projects").exists()

    # The packed tool uses the packed package and finds a packed config by name, from any folder.
    done = run(site, tmp_path, str(packed / "tools/train.py"), "odise_label_voc20")
    config = packed / "configs/odise/odise_label_voc20.py"
    assert done.returncode == 2
    assert f"error: {config}: the config has no `train_dataloader`" in done.stderr


def test_a_wheel_has_the_command(site: Path, tmp_path: Path) -> None:
    (entry_points,) = site.glob("*.dist-info/entry_points.txt")
    assert "odise-mm = odise_mm.cli.main:main" in entry_points.read_text()
    done = run(site, tmp_path, "-m", "odise_mm.cli", "info", "--json")
    found = json.loads(done.stdout)
    packed = site / "odise_mm/.mim"
    assert found["folders"]["configs"] == [str(packed / "configs")]
    for path in (packed / "configs/toy").glob("*.py"):
        assert found["configs"][path.stem] == str(path)


def test_no_file_of_a_wheel_is_large(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {item.filename: item.file_size for item in archive.infolist()}
    assert max(sizes.values()) < 20 * MEGABYTE
    assert sum(sizes.values()) < 30 * MEGABYTE


def test_the_toy_model_works_from_a_wheel(site: Path, tmp_path: Path) -> None:
    """The wheel contains its frozen models, vocabularies and weights."""
    packed = site / "odise_mm/.mim"
    image = str(packed / "demo/images/toy_scene.jpg")
    names = ["--texts", "yellow triangle; red moon; white box", "--stuff-texts", "sky; water"]
    options = ["--config", "odise_toy_label", "--out", "out"]
    done = run(site, tmp_path, "-m", "odise_mm.cli", "segment", image, *names, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = read_coco_panoptic(tmp_path / "out/panoptic.json")
    assert {"yellow triangle", "white box"} <= {segment.name for segment in result.segments}
    assert "andom weights" not in done.stdout
    # The environment may be inside the clone, and warnings of libraries contain their paths.
    assert str(ROOT) not in (done.stdout + done.stderr).replace(sys.prefix, "")


@pytest.mark.parametrize("config", ["odise_toy_label", "odise_toy_caption"])
def test_files_that_toy_configs_name_are_in_a_wheel(
    config: str, site: Path, tmp_path: Path
) -> None:
    code = (
        "from odise_mm.config.finding import load_config\n"
        f"cfg = load_config({config!r})\n"
        "print(cfg.clip_folder, cfg.diffusion_folder, cfg.base_names, cfg.all_names)\n"
        "print(*cfg.subsets.values())\n"
        "from odise_mm.checkpoints.published_weights import find_published\n"
        "print(find_published(cfg).path)"
    )
    done = run(site, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
    files = list(map(Path, done.stdout.split()))
    assert len(files) == 7
    for file in files:
        assert file.resolve().is_relative_to(site) and file.exists()


def test_an_editable_installation_has_links(clone: Path, tmp_path: Path) -> None:
    build(clone, "editable", tmp_path)
    for name in FOR_MIM:
        link = clone / "odise_mm/.mim" / name
        assert link.is_symlink() and link.resolve() == clone / name
        assert not Path(os.readlink(link)).is_absolute()
    assert "odise_mm/.mim" in (ROOT / ".gitignore").read_text().split()


def test_a_source_distribution_has_all_files_of_a_wheel(clone: Path, tmp_path: Path) -> None:
    archive = build(clone, "sdist", tmp_path)
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    for name in ("tools", "configs", "demo", "odise_mm", *TOY):
        wanted = {file for file in listing(clone / name) if not file.startswith(".mim/")}
        assert listing(folder / name) >= wanted
    assert (folder / "model-index.yml").is_file()
