"""Requirements, tested versions and installed packages are consistent."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from odise_mm.utils import requirements as at_import

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "requirements"))
import environment  # noqa: E402

FILES = ["mminstall", "runtime", "tests", "docs"]
# Tools for checks and documentation, for which any version is fine.
TOOLS = {
    "ruff",
    "mypy",
    "pytest-cov",
    "ipykernel",
    "nbclient",
    "mkdocs-material",
    "mkdocstrings[python]",
}
PYTHONS = ["3.10", "3.11", "3.12"]
TABLE = ROOT / "requirements/README.md"
ORIGINAL = {"mmengine": "0.10.7", "mmcv-lite": "2.1.0", "mmdet": "3.3.0", "mmsegmentation": "1.2.2"}
FORK = {
    "onedl-mmengine": "0.10.12",
    "onedl-mmcv": "2.3.6",
    "onedl-mmdetection": "3.5.1",
    "onedl-mmsegmentation": "1.4.2",
}
LINES = [line for name in FILES for line in environment.parse(ROOT / f"requirements/{name}.txt")]


def constraints(python: str, file: str = "constraints.txt") -> dict[str, str]:
    """Return the tested versions for a Python by name; fail for two versions of one package."""
    found: dict[str, str] = {}
    for line in environment.parse(ROOT / file):
        if line.startswith("-c "):
            found.update(constraints(python, line.removeprefix("-c ")))
            continue
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


@pytest.mark.parametrize("python", [*PYTHONS, "3.13"])
def test_the_fork_has_a_tested_version_in_its_range(python: str) -> None:
    tested = constraints(python, "constraints-onedl.txt")
    wanted = list(map(Requirement, environment.requirements(FORK)))
    for entry in wanted:
        assert entry.specifier.contains(tested[canonicalize_name(entry.name)]), str(entry)
    assert {entry.name for entry in wanted} >= set(FORK)


def lowest() -> dict[str, str]:
    """Return the versions in lowest.txt by name."""
    pins = [Requirement(line) for line in environment.parse(ROOT / "requirements/lowest.txt")]
    assert all(len(pin.specifier) == 1 and str(pin.specifier).startswith("==") for pin in pins)
    return {pin.name: next(iter(pin.specifier)).version for pin in pins}


def test_every_requirement_has_a_lower_bound_that_the_scheduled_check_uses() -> None:
    bounds = {}
    for line in set(LINES) - TOOLS:
        wanted = Requirement(line)
        (bound,) = [part.version for part in wanted.specifier if part.operator == ">="]
        bounds[wanted.name] = bound
        pin = lowest()[wanted.name]
        # the first build of OpenCV 4.10 has an extra number
        assert Version(pin) == Version("4.10.0.84" if wanted.name == "opencv-python" else bound)
        assert wanted.specifier.contains(pin), line
    assert set(bounds) == set(lowest())


def test_the_table_of_lower_bounds_names_each_with_its_version() -> None:
    rows = re.findall(r"^\| `([\w.-]+)` \| ([\d.]+) \|", TABLE.read_text(), re.MULTILINE)
    assert dict(rows) == lowest() and len(rows) == len(lowest())


@pytest.mark.parametrize("check", ["bounds", "onedl"])
def test_a_scheduled_check_names_tests_that_exist(check: str) -> None:
    script = (ROOT / ".ci" / check).read_text()
    text = (ROOT / f".github/workflows/{check}.yml").read_text()
    named = re.findall(r"tests/[\w/]+(?:\.py)?", script + text)
    assert len(named) > (10 if check == "bounds" else 1)
    assert all((ROOT / name).exists() for name in named)
    workflow = yaml.safe_load(text)
    assert set(workflow[True]) == {"schedule", "workflow_dispatch"}, "YAML reads `on` as true"
    steps = workflow["jobs"][check]["steps"]
    assert f"bash .ci/{check}" in steps[-1]["run"]
    assert check not in (ROOT / ".ci/run").read_text(), "a scheduled check, not every run's"


def test_versions_checked_at_import_are_those_required() -> None:
    files = {Requirement(line).name: Requirement(line).specifier for line in LINES}
    assert files["torch"] == Requirement(f"x{at_import.TORCH}").specifier
    for stack, name in [(at_import.ORIGINAL, "mminstall"), (at_import.FORK, "onedl")]:
        lines = environment.parse(ROOT / f"requirements/{name}.txt")
        assert {f"{package}{versions}" for package, versions in stack.values()} == set(lines)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Function that sets the packages that the check at import finds."""

    def see(present: dict[str, str]) -> None:
        def version(name: str) -> str:
            if name not in present:
                raise PackageNotFoundError(name)
            return present[name]

        monkeypatch.setattr(at_import, "version", version)

    return see


def refusal() -> str:
    """Return the message of the check at import, which must be one line."""
    with pytest.raises(at_import.RequirementError) as error:
        at_import.check_requirements()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_installed_packages_pass_the_check_at_import() -> None:
    at_import.check_requirements()


@pytest.mark.parametrize("stack", [ORIGINAL, FORK, {**ORIGINAL, "mmcv": "2.1.0"}])
def test_import_check_accepts_either_stack(stack: dict[str, str], pretend, monkeypatch) -> None:
    monkeypatch.setattr(at_import, "find_spec", lambda name: object())
    pretend({"torch": "2.14.1", **stack})
    at_import.check_requirements()


def test_import_check_names_package_and_remedy(pretend) -> None:
    pretend({"torch": "1.0", **ORIGINAL})
    assert re.search(r"torch>=2.6, but 1.0 .*pip install", refusal())
    pretend({"torch": "2.14.1", **FORK, "onedl-mmcv": "2.3.0"})
    assert re.search(r"onedl-mmcv>=2.3.6,<2.4, but 2.3.0 .*pip install", refusal())
    pretend({"torch": "2.14.1", **ORIGINAL, "mmcv": "2.2.0"})
    assert re.search(r"mmcv>=2.0.1,<2.2.0, but 2.2.0 .*pip install \"mmcv-lite>", refusal())
    pretend({"torch": "2.14.1", "onedl-mmengine": "0.10.12"})
    assert re.search(r"onedl-mmcv.*, but it is not installed.*pip install", refusal())


@pytest.mark.parametrize("part", ORIGINAL)
def test_import_check_refuses_both_stacks(part: str, pretend) -> None:
    pretend({"torch": "2.14.1", **FORK, part: ORIGINAL[part]})
    message = refusal()
    assert f"pip uninstall -y {part} {' '.join(FORK)}." in message
    assert 'pip install "mmengine>' in message and 'pip install "onedl-mmengine>' in message


def test_import_check_names_both_stacks_if_there_is_neither(pretend) -> None:
    pretend({"torch": "2.14.1"})
    assert re.search(r'pip install "mmengine>.*fork: pip install "onedl-mmengine>', refusal())


@pytest.mark.parametrize("stack", [ORIGINAL, FORK])
def test_only_the_original_needs_pkg_resources(stack, pretend, monkeypatch) -> None:
    monkeypatch.setattr(at_import, "find_spec", lambda name: None)
    pretend({"torch": "2.14.1", **stack})
    if stack is ORIGINAL:
        assert "setuptools<81" in refusal()
    else:
        at_import.check_requirements()


def test_different_builds_of_torch_and_torchvision_give_a_warning(
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


def test_an_empty_environment_gets_the_requirements_files() -> None:
    wanted = environment.requirements({})
    assert sorted(wanted) == sorted(
        environment.parse(ROOT / "requirements/mminstall.txt")
        + environment.parse(ROOT / "requirements/runtime.txt")
    )
    assert not any("@" in line for line in wanted), "a wheel would name files of this machine"


def test_an_environment_keeps_its_torch_and_compiled_mmcv() -> None:
    wanted = names({"torch": "2.13.0+cpu", "mmcv": "2.1.0"})
    assert wanted["torch"] == "torch==2.13.0+cpu"
    assert set(names({})) - set(wanted) == {"mmcv-lite"}


@pytest.mark.parametrize("part", FORK)
def test_an_environment_keeps_the_fork(part: str) -> None:
    """This includes an environment with only a part of it, as a dependency of other packages."""
    present = {"torch": "2.14.1", part: FORK[part]}
    wanted = names(present)
    assert set(names({})) - set(wanted) == {*ORIGINAL, "setuptools"}
    assert set(wanted) - set(names({})) == set(FORK)
    assert environment.pythons(present) == ">=3.10,<3.14"
    assert environment.pythons({}) == environment.pythons(ORIGINAL) == ">=3.10,<3.13"


@pytest.mark.parametrize("original", ["mmcv", *ORIGINAL])
def test_an_environment_with_both_stacks_stops_the_installation(original: str) -> None:
    with pytest.raises(SystemExit, match=rf"{original}.*pip uninstall -y {original} onedl-mmcv"):
        environment.requirements({original: "1", "onedl-mmcv": "2.3.6"})


def test_requirements_equal_the_imports_of_the_package() -> None:
    """Undeclared imports work only as long as another package installs them."""
    files = [*ROOT.glob("odise_mm/**/*.py"), *ROOT.glob("tools/**/*.py"), *ROOT.glob("demo/*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.level == 0}
    tops = {module.split(".")[0] for module in modules}
    ours = set(sys.stdlib_module_names) | {"odise_mm", "tools"}
    other = {"PIL": "pillow", "cv2": "opencv-python", "mmseg": "mmsegmentation", "yaml": "pyyaml"}
    other["open_clip"] = "open-clip-torch"
    imported = {other.get(name, name).replace("_", "-") for name in tops - ours}
    indirect = {"setuptools", "tensorboard"}  # needed by mmengine
    # Imported for conversions of results, for videos, for a format of the output, and for export.
    optional = {"supervision", "fiftyone", "av", "pyarrow", "onnxruntime", "onnxscript"}
    optional |= {"usearch"}  # for large memories
    optional |= {"ray"}  # imported for labeling on a cluster
    # Imported by the HTTP API; those after the first come with it.
    optional |= {"fastapi", "starlette", "pydantic", "anyio"}
    optional |= {"fastapi-offline", "prometheus-client", "uvicorn"}
    optional |= {"gradio"}  # for the web page
    for_types = {"typing-extensions"}  # imported only by type checkers
    assert imported - {"mmcv"} - optional - for_types == set(names({})) - {"mmcv-lite"} - indirect


def test_an_old_torch_stops_the_installation() -> None:
    with pytest.raises(SystemExit, match=r"torch 2\.6 or newer.*1\.13\.1"):
        environment.requirements({"torch": "1.13.1"})


def test_installed_packages_are_seen_from_build_isolation() -> None:
    """During a build, pip removes the environment from sys.path; this test does the same."""
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
    assert re.search(r"'torch': '\d", done.stdout) and "mmengine'" in done.stdout


def test_empty_opencv_has_the_tested_version() -> None:
    text = (ROOT / "requirements/opencv_headless/setup.py").read_text()
    assert re.search(r'version="(.+)"', text).group(1) == constraints("3.11")["opencv-python"]
