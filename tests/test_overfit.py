"""Training works: the tools overfit a model on two real images.

The full run is ``configs/toy/overfit_real_coco.py``; this one is smaller and shorter. It needs the
images 142238 and 439180 of COCO val2017, in COCO's layout, in the folder that ``ODISE_REAL_COCO``
names or in ``data/real_coco``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The features of the two images are computed only in the first iterations.
CONFIG = """
_base_ = ["{base}"]
custom_hooks = [dict(type="FeatureCacheHook", begin=10)]
"""
SMALLER = [
    "model.tile_size=128",
    "model.head.train_cfg.num_points=2048",
    "train_pipeline.2.scale=(320,128)",
    "test_pipeline.1.scale=(320,128)",
]
SHORTER = [
    "train_cfg.max_iters=60",
    "train_cfg.val_interval=60",
    "param_scheduler.1.milestones=[50]",
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Create a folder ``data/`` with the images."""
    pictures = Path(os.environ.get("ODISE_REAL_COCO") or ROOT / "data/real_coco").resolve()
    if not (pictures / "annotations/panoptic_val2017.json").is_file():
        pytest.skip(f"the two COCO images are not in {pictures}; see this file's first lines")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/real_coco").symlink_to(pictures)
    return tmp_path / "data"


def call(tool: str, *arguments: str | Path, cwd: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / tool), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def panoptic_quality(config: str, data: Path) -> dict[str, float]:
    """Train, load the checkpoint in another process, and test there."""
    work, file = data.parent / "work", data.parent / "cached.py"
    file.write_text(CONFIG.format(base=ROOT / "configs/toy" / f"{config}.py"))
    call(
        "train.py", file, "--work-dir", work, "--cfg-options", *SMALLER, *SHORTER,
        cwd=data.parent,
    )  # fmt: skip
    call(
        "test.py", config, work / "iter_60.pth", "--out", work / "result.json",
        "--show-dir", work / "pictures", "--cfg-options", *SMALLER,
        cwd=data.parent,
    )  # fmt: skip
    (result,) = json.loads((work / "result.json").read_text())["sets"].values()
    assert len(list((work / "pictures").rglob("*.jpg"))) == 2
    return result["metrics"]


def test_labels(data: Path) -> None:
    metrics = panoptic_quality("overfit_real_coco", data)
    # 37 and 48 were measured; without training, it is close to 0.
    assert metrics["panoptic/PQ"] > 20
    assert metrics["semantic/mIoU"] > 35


def test_captions(data: Path) -> None:
    metrics = panoptic_quality("overfit_real_coco_caption", data)
    assert metrics["panoptic/PQ"] > 15  # 22 was measured
