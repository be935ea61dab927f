"""Check of the installed versions of dependencies, at import.

OpenMMLab exists twice: as the original packages, and as a maintained fork whose package names start
with "onedl-". Both provide the same modules, so exactly one of them must be installed.
"""

import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from packaging.specifiers import SpecifierSet

# Packages whose wrong versions cause obscure errors; all others are left to pip (setup.py).
TORCH = ">=2.6"
# Module -> the distribution that provides it, and its versions.
ORIGINAL: dict[str, tuple[str, str]] = {
    "mmengine": ("mmengine", ">=0.10.6,<1.0"),
    "mmcv": ("mmcv-lite", ">=2.0.1,<2.2.0"),
    "mmdet": ("mmdet", ">=3.3.0,<3.4"),
    "mmseg": ("mmsegmentation", ">=1.2.2,<1.3"),
}
FORK: dict[str, tuple[str, str]] = {
    "mmengine": ("onedl-mmengine", ">=0.10.12,<0.11"),
    "mmcv": ("onedl-mmcv", ">=2.3.6,<2.4"),
    "mmdet": ("onedl-mmdetection", ">=3.5.1,<3.6"),
    "mmseg": ("onedl-mmsegmentation", ">=1.4.2,<1.5"),
}
_COMPILED = {"mmcv-lite": "mmcv"}  # alternative distribution with the same module and versions


class RequirementError(ImportError):
    """A dependency of odise_mm that is missing or has an incompatible version."""


def _installed(distribution: str) -> str | None:
    """Return the version of a distribution, or None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _present(stack: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Return the versions of the installed distributions of a stack, by name."""
    names = [name for name, _ in stack.values()]
    names += [_COMPILED[name] for name in names if name in _COMPILED]
    found = {name: _installed(name) for name in names}
    return {name: number for name, number in found.items() if number is not None}


def check_requirements() -> None:
    """Compare the installed versions with the supported ones, without importing the packages.

    Raises:
        RequirementError: If a package is missing or incompatible, or if packages of both OpenMMLab
            and its fork are installed. The message names the package, the installed version, and a
            command that fixes it.
    """
    original, fork = _present(ORIGINAL), _present(FORK)
    if original and fork:
        raise RequirementError(
            f"OpenMMLab ({', '.join(original)}) and its fork ({', '.join(fork)}) are both "
            "installed and overwrite each other's files. Remove both: pip uninstall -y "
            f"{' '.join([*original, *fork])}. Then install one: {_command(ORIGINAL)}, or "
            f"{_command(FORK)}"
        )
    torch = _installed("torch")
    _check("torch", TORCH, torch, advice="torch")
    if not original and not fork:
        raise RequirementError(
            f"odise_mm needs OpenMMLab, which is not installed. Try: {_command(ORIGINAL)} (or its "
            f"fork: {_command(FORK)})"
        )
    stack, present = (FORK, fork) if fork else (ORIGINAL, original)
    for name, versions in stack.values():
        provider = _COMPILED.get(name, name)
        _check(provider, versions, present.get(provider, present.get(name)), advice=name)
    _compare_builds(torch, _installed("torchvision"))
    if not fork and find_spec("pkg_resources") is None:
        raise RequirementError(
            "mmengine needs pkg_resources, which setuptools dropped in version 82. "
            'Try: pip install "setuptools<81"'
        )


def _command(stack: dict[str, tuple[str, str]]) -> str:
    """Return the command that installs a stack."""
    return "pip install " + " ".join(f'"{name}{versions}"' for name, versions in stack.values())


def _check(name: str, versions: str, found: str | None, advice: str) -> None:
    if found is not None and SpecifierSet(versions).contains(found, prereleases=True):
        return
    state = "it is not installed" if found is None else f"{found} is installed"
    raise RequirementError(
        f'odise_mm needs {name}{versions}, but {state}. Try: pip install "{advice}{versions}"'
    )


def _compare_builds(torch: str, torchvision: str | None) -> None:
    """Warn if torch comes from PyTorch's own index and torchvision is a different build.

    pip does not prevent this: a torchvision from PyPI can be installed with torch 2.13.0+cpu, but
    fails to load.
    """
    label = torch.partition("+")[2]
    if torchvision is None or not label.startswith(("cpu", "cu", "rocm", "xpu")):
        return
    number, _, other = torchvision.partition("+")
    if other != label:
        warnings.warn(
            f"torch {torch} and torchvision {torchvision} are different builds. If torchvision "
            "fails to import ('operator torchvision::nms does not exist'), run: pip install "
            f"--force-reinstall --no-deps torchvision=={number} "
            f"--index-url https://download.pytorch.org/whl/{label}",
            stacklevel=3,
        )
