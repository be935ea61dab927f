"""A clear word, at import, about a version that cannot work."""

import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from packaging.specifiers import SpecifierSet

# What breaks in ways that are hard to read; everything else is pip's business (setup.py).
SUPPORTED: dict[str, str] = {
    "torch": ">=2.6",
    "mmengine": ">=0.10.6,<1.0",
    "mmcv": ">=2.0.1,<2.2.0",
    "mmdet": ">=3.3.0,<3.4",
}
_OTHER_NAMES: dict[str, tuple[str, ...]] = {"mmcv": ("mmcv", "mmcv-lite")}
ADVICE: dict[str, str] = {"mmcv": "mmcv-lite"}


class RequirementError(ImportError):
    """Something that odise_mm stands on is absent or has a version that doesn't work with it."""


def _installed(package: str) -> str | None:
    for name in _OTHER_NAMES.get(package, (package,)):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def check_requirements() -> None:
    """Compare the installed versions with those that work, without importing anything.

    Raises:
        RequirementError: names the package, what is installed, and the command that helps.
    """
    for package, supported in SUPPORTED.items():
        found = _installed(package)
        if found is not None and SpecifierSet(supported).contains(found, prereleases=True):
            continue
        state = "it is not installed" if found is None else f"{found} is installed"
        raise RequirementError(
            f"odise_mm needs {package}{supported}, but {state}. Try: "
            f'pip install "{ADVICE.get(package, package)}{supported}"'
        )
    _compare_builds(_installed("torch"), _installed("torchvision"))
    if find_spec("pkg_resources") is None:
        raise RequirementError(
            "mmengine needs pkg_resources, which setuptools dropped in version 82. "
            'Try: pip install "setuptools<81"'
        )


def _compare_builds(torch: str, torchvision: str | None) -> None:
    """Warn if torch is a build of PyTorch's own index and torchvision is not (or another one).

    pip cannot know that they belong together: a torchvision from PyPI installs beside
    torch 2.13.0+cpu, and then does not load.
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
