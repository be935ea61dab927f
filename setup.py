"""Packaging of odise_mm.

``pip install -e .`` inspects the environment and keeps its torch, a compiled mmcv and the fork of
OpenMMLab (requirements/environment.py). ``python -m build`` builds wheels in a separate, empty
environment. Their requirements are those in the files, with OpenMMLab, because metadata cannot
express alternatives.

Tools, configs, the demo and the model index are outside the package. MIM looks for them in
``odise_mm/.mim``: a wheel has copies there, an editable installation has links. The files that the
toy world's configs refer to have the same relative paths there as in the repository.
"""

import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "requirements"))
from environment import installed, parse, pythons, requirements  # noqa: E402

VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "odise_mm/version.py").read_text()).group(1)
README = ROOT / "README.md"
PRESENT = installed()
# An editable installation also makes the clone's projects importable, which configs use in
# custom_imports. A wheel does not contain them, because the name "projects" is too general.
PACKAGES = ["odise_mm", "odise_mm.*"] + ["projects", "projects.*"] * ("editable_wheel" in sys.argv)
EXTRAS = ("tests", "docs", "video", "parquet", "export", "api", "web", "memory", "ray")
FOR_MIM = (
    "tools",
    "configs",
    "demo",
    "model-index.yml",
    "projects/toy_world/vocabularies",
    "projects/toy_world/weights",
)


class BuildWithTools(build_py):
    """Build the package together with the files for MIM."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            link_for_mim(ROOT / "odise_mm/.mim")
        else:
            copy_for_mim(Path(self.build_lib, "odise_mm/.mim"))


def copy_for_mim(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # an earlier build may have had other files
    for name in FOR_MIM:
        if (ROOT / name).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__", "*.py[co]")
            shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
        else:
            shutil.copy2(ROOT / name, folder / name)


def link_for_mim(folder: Path) -> None:
    for name in FOR_MIM:
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        try:
            link.symlink_to(os.path.relpath(ROOT / name, link.parent))
        except OSError as error:  # Windows without the permission for links
            print(f"cannot create link {link} ({error}); MIM will not find {name}", file=sys.stderr)


setup(
    name="odise_mm",
    version=VERSION,
    description="Open-vocabulary panoptic segmentation with diffusion models, on OpenMMLab",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    author="odise_mm contributors",
    license="Apache-2.0",
    keywords="segmentation, panoptic, open-vocabulary, diffusion, OpenMMLab",
    python_requires=pythons(PRESENT),
    packages=find_packages(include=PACKAGES),
    package_data={
        "odise_mm": ["py.typed"],
        "odise_mm.vocabulary": ["builtin/*"],
        "odise_mm.checkpoints": ["not_in_openseg.txt"],
        "odise_mm.models.necks.captioners": ["places.txt"],
    },
    install_requires=requirements(PRESENT),
    extras_require={name: parse(ROOT / f"requirements/{name}.txt") for name in EXTRAS},
    cmdclass={"build_py": BuildWithTools},
    entry_points={"console_scripts": ["odise-mm = odise_mm.cli.main:main"]},
    zip_safe=False,
)
