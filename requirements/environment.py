"""Which requirements fit the environment that odise_mm is being installed into.

Used by setup.py; standard library only. Three things in an environment must survive an
installation, and pip alone would spoil them:

- a torch that is there (the newest torchvision would pull another torch),
- a compiled mmcv (mmcv-lite would be written over it),
- the fork of OpenMMLab (OpenMMLab would be written over it).
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
    """Requirement lines of a file, without comments and blank lines."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def name_of(requirement: str) -> str:
    """Normalized name of the distribution that a requirement line asks for."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement).group()).lower()


def site_folders() -> list[str]:
    """Folders of installed packages, also while pip builds in isolation from them.

    Isolation hides these folders from ``sys.path``, but ``site`` and ``sysconfig`` name them.
    """
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    folders += site.getsitepackages()  # with the base's, in a virtual environment that sees those
    config = Path(sys.prefix, "pyvenv.cfg")
    if not config.is_file() or re.search(r"system-site-packages\s*=\s*true", config.read_text()):
        folders.append(site.getusersitepackages())
    return list(dict.fromkeys(folders))


def installed(folders: list[str] | None = None) -> dict[str, str]:
    """Normalized name -> version of what is installed in ``folders`` (the first one counts)."""
    found: dict[str, str] = {}
    for folder in site_folders() if folders is None else folders:
        for dist in distributions(path=[folder]):
            if dist.metadata["Name"]:
                found.setdefault(name_of(dist.metadata["Name"]), dist.version)
    return found


def has_fork(present: dict[str, str]) -> bool:
    """Whether an environment has the fork of OpenMMLab, or a part of it.

    Args:
        present: normalised name -> version of what the environment has.

    Raises:
        SystemExit: it has parts of OpenMMLab as well.
    """
    fork = sorted(present.keys() & set(map(name_of, parse(HERE / "onedl.txt"))))
    original = sorted(present.keys() & {"mmcv", *map(name_of, parse(HERE / "mminstall.txt"))})
    if fork and original:
        raise SystemExit(
            f"This environment has OpenMMLab ({', '.join(original)}) and its fork "
            f"({', '.join(fork)}), which overwrite each other's files. Remove both: pip uninstall "
            f"-y {' '.join(original + fork)}. Then install odise_mm again; for the fork, "
            "'pip install -r requirements/onedl.txt' goes first."
        )
    return bool(fork)


def pythons(present: dict[str, str]) -> str:
    """The versions of Python that odise_mm works with in an environment.

    Args:
        present: normalised name -> version of what the environment has.
    """
    return ">=3.10,<3.14" if has_fork(present) else ">=3.10,<3.13"


def requirements(present: dict[str, str]) -> list[str]:
    """The requirements of odise_mm, fitted to an environment.

    Args:
        present: normalized name -> version of what the environment has.

    Raises:
        SystemExit: the torch that is there is too old for odise_mm, or OpenMMLab and its fork are
            both there.
    """
    fork = has_fork(present)
    lines = parse(HERE / ("onedl.txt" if fork else "mminstall.txt")) + parse(HERE / "runtime.txt")
    wanted = {name_of(line): line for line in lines}
    if fork:
        del wanted["setuptools"]  # for the pkg_resources that only the original imports
    elif "mmcv" in present:
        del wanted["mmcv-lite"]
    if "torch" in present:
        oldest = re.search(r">=([\d.]+)", wanted["torch"]).group(1)
        if release(present["torch"]) < release(oldest):
            raise SystemExit(
                f"odise_mm needs torch {oldest} or newer, and this environment has "
                f"{present['torch']}. It was left as it is: upgrade torch, or install odise_mm "
                "into a fresh environment."
            )
        # Exactly what is there: pip then picks the torchvision that goes with it.
        wanted["torch"] = f"torch=={present['torch']}"
    return list(wanted.values())


def release(version: str) -> tuple[int, ...]:
    """Leading numbers of a version: "2.13.0+cpu" -> (2, 13, 0)."""
    return tuple(int(part) for part in re.match(r"\d+(\.\d+)*", version).group().split("."))
