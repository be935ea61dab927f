"""Every tool explains itself at once: without importing torch or OpenMMLab's packages."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted(
    path
    for path in [*(ROOT / "tools").rglob("*.py"), *(ROOT / "demo").glob("*.py")]
    if "__main__" in path.read_text()
)
HARNESS = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    heavy = {"torch", "mmcv", "mmengine", "mmdet", "diffusers", "open_clip"} & set(sys.modules)
    assert not end.code and not heavy, (end.code, heavy)
"""


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
def test_help_imports_no_large_library(tool: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, str(tool)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
