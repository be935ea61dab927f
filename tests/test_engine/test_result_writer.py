"""Values in dumped result files: they can be read as ground truth of the same classes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from PIL import Image

from odise_mm.annotations.ground_truth import read_semantic_truth
from odise_mm.annotations.panoptic_io import read_coco_panoptic
from odise_mm.engine.result_writer import ResultWriterHook, relative_names, unique_stems
from odise_mm.errors import ConfigError
from odise_mm.vocabulary import Vocabulary


def names(count: int) -> Vocabulary:
    return Vocabulary(tuple((f"name {i}",) for i in range(count)), (True,) * count)


def run(
    hook: ResultWriterHook,
    labels: list[int],
    num_classes: int,
    first_id: int = 1,
    path: str = "images/7.jpg",
    **info: Any,
) -> Path | None:
    """Dump an image with a row of one-pixel segments; return the folder of the dump."""
    dataset = SimpleNamespace(
        cat2label={first_id + i: i for i in range(num_classes)},
        get_data_info=lambda index: dict(img_path=path, **info),
    )
    loader = SimpleNamespace(dataset=_Sized(vars(dataset)))
    model = SimpleNamespace(vocabulary=names(num_classes), test_cfg={})
    runner: Any = SimpleNamespace(model=model, test_loop=SimpleNamespace(dataloader=loader))
    sample = DetDataSample(metainfo=dict(img_path=path, img_id=7))
    infos = [
        dict(id=i, category_id=label, isthing=True, score=1.0) for i, label in enumerate(labels, 1)
    ]
    ids = torch.arange(1, len(labels) + 1, dtype=torch.int32)[None, None]
    sample.pred_panoptic_seg = PixelData(sem_seg=ids, metainfo=dict(segments_info=infos))
    sample.pred_sem_seg = PixelData(sem_seg=torch.tensor(labels, dtype=torch.int32)[None, None])
    sample.pred_instances = InstanceData(
        masks=torch.stack([ids[0] == i for i in range(1, len(labels) + 1)]),
        labels=torch.tensor(labels),
        scores=torch.ones(len(labels)),
        bboxes=torch.zeros(len(labels), 4),
    )
    hook.set_name = "mine"
    hook.before_test_epoch(runner)
    hook.after_test_iter(runner, 0, outputs=[sample])
    hook.after_test_epoch(runner)
    return None if hook.dump_dir is None else hook.dump_dir / "mine"


class _Sized(SimpleNamespace):
    def __init__(self, attributes: dict) -> None:
        super().__init__(**attributes)

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("num_classes", [1, 2, 254, 255, 256, 257, 847])
def test_semantic_maps_round_trip(num_classes: int, tmp_path: Path) -> None:
    labels = sorted({0, num_classes // 2, min(254, num_classes - 1), num_classes - 1})
    folder = run(ResultWriterHook(tmp_path), labels, num_classes)
    sample = dict(sem_seg_path=str(folder / "semantic" / "7.png"))
    assert read_semantic_truth(sample, num_classes)[0].tolist() == [labels]


def test_names_keep_folders() -> None:
    """Images with the same name, but another folder or extension, have different files."""
    names = relative_names(["x/a/1.jpg", "x/b/1.jpg", "x/b/1.png", "x/b/c.png/2.jpg"])
    assert list(names.values()) == ["a/1.jpg", "b/1.jpg", "b/1.png", "b/c.png/2.jpg"]
    assert list(unique_stems(names).values()) == ["a/1", "b/1", "b/1_2", "b/c.png_/2"]
    assert relative_names(["x/a/1.jpg"]) == {"x/a/1.jpg": "1.jpg"}


def test_too_many_classes_raise_before_testing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="label maps cannot have 65,536 classes"):
        run(ResultWriterHook(tmp_path), [0], 65536)


def test_drawn_images_have_the_dataset_s_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "7.png"
    Image.new("RGB", (3, 1), (200, 30, 30)).save(path, exif=exif)
    hook = ResultWriterHook(show_dir=tmp_path / "shown")
    run(hook, [0, 1, 2], 3, path=str(path), exif=False)
    with Image.open(tmp_path / "shown/mine/7.jpg") as shown:
        assert shown.width > shown.height
    with pytest.raises(ValueError, match="the panoptic map"):  # upright it is 1 x 3
        run(hook, [0, 1, 2], 3, path=str(path))


@pytest.mark.parametrize("first_id", [0, 1])
def test_category_id_0(first_id: int, tmp_path: Path) -> None:
    folder = run(ResultWriterHook(tmp_path), [0, 1, 2], 3, first_id)
    content = json.loads((folder / "panoptic.json").read_text())
    assert [c["id"] for c in content["categories"]] == [first_id, first_id + 1, first_id + 2]
    (result,) = read_coco_panoptic(folder / "panoptic.json")
    assert [segment.label for segment in result.segments] == [0, 1, 2]
    assert np.array_equal(result.panoptic, [[1, 2, 3]])
    instances = json.loads((folder / "instances.json").read_text())
    assert [one["category_id"] for one in instances] == [first_id, first_id + 1, first_id + 2]
