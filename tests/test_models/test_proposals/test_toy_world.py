"""Ground-truth masks of toy scenes, named by the toy world's trained CLIP without a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from odise_mm import OpenVocabInferencer
from odise_mm.annotations.panoptic_io import read_panoptic_png
from odise_mm.cli import test as test_tool
from odise_mm.config.finding import load_config
from odise_mm.errors import CheckpointError, ConfigError
from projects.toy_world import generate

ROOT = Path(__file__).resolve().parents[3]
TOY = ROOT / "projects/toy_world"
CONFIG = ROOT / "configs/proposals/file_maskclip.py"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes, and their masks as COCO's results."""
    folder = tmp_path_factory.mktemp("toy")
    generate.main([str(folder), "--splits", "val", "--number", "8", "--workers", "1"])
    content = json.loads((folder / "annotations/panoptic_val2017.json").read_text())
    results = []
    for annotation in content["annotations"]:
        png = folder / "annotations/panoptic_val2017" / annotation["file_name"]
        ids = read_panoptic_png(png)
        for segment in annotation["segments_info"]:
            code = mask_utils.encode(np.asfortranarray((ids == segment["id"]).astype(np.uint8)))
            code["counts"] = code["counts"].decode()
            results.append(dict(image_id=annotation["image_id"], segmentation=code))
    (folder / "masks.json").write_text(json.dumps(results))
    return folder


def options(scenes: Path) -> dict[str, Any]:
    clip = str(TOY / "weights/clip")
    return {
        "model.proposals.file": str(scenes / "masks.json"),
        "model.clip.model": clip,
        "model.clip.weights": clip,
    }


def test_clip_names_the_masks_and_they_come_out_exactly(scenes: Path) -> None:
    inferencer = OpenVocabInferencer(str(CONFIG), device="cpu", cfg_options=options(scenes))
    assert not inferencer.random_weights
    content = json.loads((scenes / "annotations/panoptic_val2017.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    right, total = 0, 0
    for annotation in content["annotations"]:
        name = annotation["file_name"].replace(".png", ".jpg")
        truth = read_panoptic_png(scenes / "annotations/panoptic_val2017" / annotation["file_name"])
        (result,) = inferencer(
            scenes / "val2017" / name, vocabulary=str(TOY / "vocabularies/all.txt")
        )
        for segment in annotation["segments_info"]:
            inside = truth == segment["id"]
            (found,) = np.unique(result.panoptic[inside])  # stuff of one name may be merged
            assert found > 0
            total += 1
            match = next(s for s in result.segments if s.id == found)
            right += match.name == names[segment["category_id"]]
    # 88 names: a guess is right once in 88 times.
    assert right > 0.5 * total, f"{right} of {total}"


def test_the_test_tool_needs_no_checkpoint(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = options(scenes) | {
        "test_dataloader.dataset.data_root": str(scenes),
        "test_dataloader.dataset.ann_file": "annotations/panoptic_val2017.json",
        "test_dataloader.dataset.vocabulary": str(TOY / "vocabularies/all.txt"),
        "test_dataloader.dataset.reduce_zero_label": "False",
        "test_dataloader.num_workers": "0",
        "test_dataloader.persistent_workers": "False",
    }
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(
        f"_base_ = [{str(CONFIG)!r}]\ntest_evaluator = [dict(type='PanopticQuality')]\n"
        "test_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img='val2017/', "
        "seg='annotations/panoptic_val2017/')))\n"
    )
    words = [f"{key}={value}" for key, value in changes.items()]
    arguments = ["config.py", "none", "--out", "results.json", "--cfg-options", *words]
    assert test_tool.main(arguments) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["checkpoint"] is None and not results["random_weights"]
    (row,) = results["sets"].values()
    assert row["metrics"]["panoptic/SQ_st"] == 100


def test_trained_parts_are_refused(scenes: Path, tmp_path: Path) -> None:
    config = load_config(CONFIG)
    config.merge_from_dict(options(scenes))
    config.model.classifiers.insert(0, dict(type="OpenVocabClassifier", null_class=False))
    with pytest.raises(ConfigError, match="needs_checkpoint = False, but .* classifiers.0.logit"):
        OpenVocabInferencer(config, device="cpu")
    config.needs_checkpoint = "no"
    with pytest.raises(ConfigError, match="needs_checkpoint='no' must be True or False"):
        OpenVocabInferencer(config, device="cpu")
    config.needs_checkpoint = True
    with pytest.raises(CheckpointError, match="this config needs weights"):
        OpenVocabInferencer(config, device="cpu")
