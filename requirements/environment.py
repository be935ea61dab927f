"""Adapt the requirements to the environment that odise_mm is installed into.

setup.py uses this module, which needs only the standard library. An installation must keep three
things that pip alone would break:

- an installed torch (the newest torchvision would install another torch),
- a compiled mmcv (mmcv-lite would overwrite its files),
- the fork of OpenMMLab (OpenMMLab would overwrite its files).
"""

from __future__ import annotations

import re
import site
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

HERE = Path(__file__).resolve().parent


def parse(path: Path) -> list[str]:
    """Return the requirement lines of a file, without comments and blank lines."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def name_of(requirement: str) -> str:
    """Return the normalized name of the distribution in a requirement line."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement).group()).lower()


def site_folders() -> list[str]:
    """Return the folders of installed packages, even during isolated builds of pip.

    Build isolation hides these folders from ``sys.path``, but not from ``site`` and ``sysconfig``.
    """
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    folders += (
        site.getsitepackages()
    )  # includes those of the base, if the virtual environment uses them
    config = Path(sys.prefix, "pyvenv.cfg")
    if not config.is_file() or re.search(r"system-site-packages\s*=\s*true", config.read_text()):
        folders.append(site.getusersitepackages())
    return list(dict.fromkeys(folders))


def installed(folders: list[str] | None = None) -> dict[str, str]:
    """Return the installed distributions in ``folders``, normalized name -> version.

    If several folders have the same distribution, the first one counts.
    """
    found: dict[str, str] = {}
    for folder in site_folders() if folders is None else folders:
        for dist in distributions(path=[folder]):
            if dist.metadata["Name"]:
                found.setdefault(name_of(dist.metadata["Name"]), dist.version)
    return found


def has_fork(present: dict[str, str]) -> bool:
    """Return whether an environment has the fork of OpenMMLab, or a part of it.

    Args:
        present: Installed distributions, normalized name -> version.

    Raises:
        SystemExit: The environment also has parts of OpenMMLab.
    """
    fork = sorted(present.keys() & set(map(name_of, parse(HERE / "onedl.txt"))))
    original = sorted(present.keys() & {"mmcv", *map(name_of, parse(HERE / "mminstall.txt"))})
    if fork and original:
        raise SystemExit(
            f"This environment has OpenMMLab ({', '.join(original)}) and its fork "
            f"({', '.join(fork)}), which overwrite each other's files. Remove both: pip uninstall "
            f"-y {' '.join(original + fork)}. Then install odise_mm again; to use the fork, run "
            "'pip install -r requirements/onedl.txt' first."
        )
    return bool(fork)


def pythons(present: dict[str, str]) -> str:
    """Return the Python versions that odise_mm supports in an environment.

    Args:
        present: Installed distributions, normalized name -> version.
    """
    return ">=3.10,<3.14" if has_fork(present) else ">=3.10,<3.13"


def requirements(present: dict[str, str]) -> list[str]:
    """Return the requirements of odise_mm, adapted to an environment.

    Args:
        present: Installed distributions, normalized name -> version.

    Raises:
        SystemExit: The installed torch is too old, or OpenMMLab and its fork are both installed.
    """
    fork = has_fork(present)
    lines = parse(HERE / ("onedl.txt" if fork else "mminstall.txt")) + parse(HERE / "runtime.txt")
    wanted = {name_of(line): line for line in lines}
    if fork:
        del wanted["setuptools"]  # only OpenMMLab needs it, for pkg_resources
    elif "mmcv" in present:
        del wanted["mmcv-lite"]
    if "torch" in present:
        oldest = re.search(r">=([\d.]+)", wanted["torch"]).group(1)
        if release(present["torch"]) < release(oldest):
            raise SystemExit(
                f"odise_mm needs torch {oldest} or newer, but this environment has "
                f"{present['torch']}. Nothing was changed: upgrade torch, or install odise_mm into "
                "a new environment."
            )
        # Pin the installed version, so that pip chooses the matching torchvision.
        wanted["torch"] = f"torch=={present['torch']}"
    return list(wanted.values())


def release(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: "2.13.0+cpu" -> (2, 13, 0)."""
    return tuple(int(part) for part in re.match(r"\d+(\.\d+)*", version).group().split("."))
