"""Configs work without changes in mmengine's runner and mmdet's tools."""

from __future__ import annotations

import runpy
from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from tests.support.parts import CONFIGS
from tests.support.small_coco import write_small_coco

# Class names that the toy world's CLIP knows.
NAMES = {
    "cat": "red box",
    "dog": "white ball",
    "sky-other-merged": "wood",
    "grass-merged": "gravel",
}
BROWSE = Path(mmdet.__file__).parent / ".mim/tools/analysis_tools/browse_dataset.py"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """The toy world's config with three small images."""
    for split in ("train", "val"):
        data = write_small_coco(tmp_path, split)
        content = data.read()
        for category in content["categories"]:
            category["name"] = NAMES[category["name"]]
        data.write(content)
    names = tmp_path / "names.txt"
    names.write_text("thing: red box\nthing: white ball\nstuff: wood\nstuff: gravel\n")
    path = tmp_path / "config.py"
    path.write_text(
        f"""
_base_ = ["{CONFIGS}/toy/odise_toy_label.py"]
data = dict(vocabulary="{names}", data_root="{tmp_path}")
model = dict(vocabulary="{names}", ensemble=dict(train_vocabulary="{names}"))
train_dataloader = dict(batch_size=1, dataset=data)
val_dataloader = dict(dataset=dict(subsets=None, **data))
test_dataloader = val_dataloader
val_evaluator = [dict(type="PanopticQuality")]
test_evaluator = val_evaluator
work_dir = "{tmp_path}/work"
"""
    )
    return path


@pytest.mark.skipif(not BROWSE.is_file(), reason="mmdet is installed without its tools")
def test_mmdets_browser_shows_the_images(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run mmdet's tool, which builds the dataset with mmdet's registry and draws its images."""
    out = toy.parent / "drawn"
    arguments = ["browse_dataset.py", str(toy), "--output-dir", str(out), "--not-show"]
    monkeypatch.setattr("sys.argv", arguments)
    runpy.run_path(str(BROWSE), run_name="__main__")
    drawn = {path.name: Image.open(path).size for path in out.iterdir()}
    assert drawn == {
        f"{n:012}.jpg": size for n, size in {7: (40, 24), 3: (30, 40), 25: (33, 33)}.items()
    }


def test_mmengines_runner_trains_and_tests(toy: Path) -> None:
    cfg = Config.fromfile(toy)
    cfg.merge_from_dict({"train_cfg.max_iters": 1, "train_cfg.val_interval": 1})
    runner = Runner.from_cfg(cfg)
    assert type(runner) is Runner
    runner.train()
    steps = runner.train_dataloader.dataset.pipeline.transforms
    assert [type(step).__name__ for step in steps] == [
        "LoadImage",
        "LoadPanopticMap",
        "RandomFlip",
        "PanopticMapToMasks",
        "DrawWords",
        "PackDetInputs",
    ]
    assert runner.iter == 1
    assert any(key.startswith("PanopticQuality") or "PQ" in key for key in runner.test())
