"""What is required, what was tested and what an environment already has fit together."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from odise_mm.utils import requirements as at_import

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "requirements"))
import environment  # noqa: E402

FILES = ["mminstall", "runtime", "optional", "tests"]
PYTHONS = ["3.10", "3.11", "3.12"]
LINES = [line for name in FILES for line in environment.parse(ROOT / f"requirements/{name}.txt")]


def constraints(python: str) -> dict[str, str]:
    """Name -> tested version under a Python; fails on two versions of one package."""
    found: dict[str, str] = {}
    for line in environment.parse(ROOT / "constraints.txt"):
        entry = Requirement(line)
        if entry.marker and not entry.marker.evaluate({"python_version": python}):
            continue
        (specifier,) = entry.specifier
        name = canonicalize_name(entry.name)
        assert specifier.operator == "==" and name not in found, line
        found[name] = specifier.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_has_one_tested_version_in_its_range(python: str) -> None:
    tested = constraints(python)
    for line in LINES:
        wanted = Requirement(line)
        assert wanted.specifier.contains(tested[canonicalize_name(wanted.name)]), line


def test_versions_checked_at_import_are_those_required() -> None:
    files = {Requirement(line).name: Requirement(line).specifier for line in LINES}
    for package, supported in at_import.SUPPORTED.items():
        assert (
            files[at_import.ADVICE.get(package, package)] == Requirement(f"x{supported}").specifier
        )


def test_import_check_names_package_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    at_import.check_requirements()
    monkeypatch.setattr(at_import, "version", lambda name: "1.0")
    with pytest.raises(at_import.RequirementError, match=r"torch>=2.6, but 1.0 .*pip install"):
        at_import.check_requirements()


def test_different_builds_of_torch_and_torchvision_are_pointed_out(
    recwarn: pytest.WarningsRecorder,
) -> None:
    for torch, torchvision in [
        ("2.14.1", "0.29.1"),
        ("2.13.0+cpu", "0.28.0+cpu"),
        ("2.8+cpu", None),
    ]:
        at_import._compare_builds(torch, torchvision)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"torchvision==0\.28\.0 --index-url .*/whl/cpu"):
        at_import._compare_builds("2.13.0+cpu", "0.28.0")


def names(present: dict[str, str]) -> dict[str, str]:
    return {environment.name_of(line): line for line in environment.requirements(present)}


def test_fresh_environment_gets_mmcv_lite_and_headless_opencv() -> None:
    wanted = names({})
    assert wanted["torch"] == "torch>=2.6" and "mmcv-lite" in wanted
    assert wanted["opencv-python"].startswith("opencv-python @ file:///")
    assert "opencv-python-headless" in wanted


def test_an_environment_keeps_its_torch_mmcv_and_opencv() -> None:
    wanted = names({"torch": "2.13.0+cpu", "mmcv": "2.1.0", "opencv-python": "4.10.0.84"})
    assert wanted["torch"] == "torch==2.13.0+cpu"
    assert not {"mmcv", "mmcv-lite", "opencv-python", "opencv-python-headless"} & set(wanted)


def test_contrib_opencv_is_not_overlaid() -> None:
    wanted = names({"opencv-contrib-python": "4.10.0.84"})
    assert "opencv-python-headless" not in wanted and "@" in wanted["opencv-python"]


def test_an_old_torch_stops_the_installation() -> None:
    with pytest.raises(SystemExit, match=r"torch 2\.6 or newer.*1\.13\.1"):
        environment.requirements({"torch": "1.13.1"})


def test_installed_packages_are_seen_from_build_isolation() -> None:
    """While it builds, pip hides the environment from sys.path; here too."""
    code = (
        "import sys\n"
        "sys.path = [sys.argv[1]] + [p for p in sys.path if not p.endswith('-packages')]\n"
        "import environment; print(environment.installed())"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(ROOT / "requirements")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r"'torch': '\d", done.stdout) and "'mmengine'" in done.stdout


def test_empty_opencv_has_the_tested_version() -> None:
    text = (ROOT / "requirements/opencv_headless/setup.py").read_text()
    assert re.search(r'version="(.+)"', text).group(1) == constraints("3.11")["opencv-python"]
