"""Packaging of odise_mm.

``pip install -e .`` looks at the environment it installs into and leaves its torch and a compiled
mmcv as they are (requirements/environment.py). ``python -m build`` makes wheels in an environment
of its own, which is empty: their requirements are those of the files alone.
"""

import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "requirements"))
from environment import installed, parse, requirements  # noqa: E402

VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "odise_mm/version.py").read_text()).group(1)
README = ROOT / "README.md"

setup(
    name="odise_mm",
    version=VERSION,
    description="Open-vocabulary panoptic segmentation with diffusion models, on OpenMMLab",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    author="odise_mm contributors",
    license="Apache-2.0",
    keywords="segmentation, panoptic, open-vocabulary, diffusion, OpenMMLab",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["odise_mm", "odise_mm.*"]),
    package_data={
        "odise_mm.datasets": ["vocabularies/*"],
        "odise_mm.models.text": ["places.txt"],
    },
    install_requires=requirements(installed()),
    extras_require={"tests": parse(ROOT / "requirements/tests.txt")},
    zip_safe=False,
)
