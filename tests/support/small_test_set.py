"""A test set and a model whose results are known beforehand, for tests of the test tool."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.model import BaseModel
from PIL import Image

from odise_mm.annotations.panoptic_io import write_panoptic_png
from odise_mm.registry import MODELS
from tests.support.fake_segmentor import FakeSegmentor

HEIGHT, WIDTH = 24, 40

MODEL_CONFIG = """
custom_imports = dict(imports=["tests.support.small_test_set"])
default_scope = "odise_mm"
model = dict(type="HalvesSegmentor")
test_pipeline = [
    dict(type="LoadImage"),
    dict(type="ResizeKeepRatio", scale=(160, 64)),
    dict(
        type="mmdet.PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor",
                   "seg_map_path", "segments_info", "sem_seg_path", "reduce_zero_label"),
    ),
]
"""
"""Model config without a test set."""

SET_CONFIG = """
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="PanopticDataset",
        vocabulary="data/{name}/names.txt",
        data_root="data/{name}/",
        ann_file="panoptic.json",
        data_prefix=dict(img="images/", seg="panoptic/"),
        test_mode=True,
    ),
)
test_evaluator = [
    dict(type="PanopticQuality"),
    dict(type="SemanticIoU"),
    dict(type="InstanceAP"),
]
test_cfg = dict(type="OpenVocabTestLoop")
"""


@MODELS.register_module()
class HalvesSegmentor(FakeSegmentor):
    """FakeSegmentor that can also run in several processes."""

    def __init__(self, ensemble: dict | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.ensemble = ensemble

    def forward(self, inputs, data_samples=None, mode="predict"):
        found = [self._predict(sample) for sample in data_samples]
        for sample in found:
            if "pred_instances" in sample:  # float32, as in the real model
                sample.pred_instances.scores = sample.pred_instances.scores.float()
        return found

    def test_step(self, data):
        return BaseModel.test_step(self, data)


def write_set(folder: Path, borders: Sequence[int]) -> None:
    """Write images with the thing "cat" (id 7) on the left and the stuff "sky" (300) on the right.

    Args:
        folder: folder for ``images/``, ``panoptic/``, ``panoptic.json`` and ``names.txt``.
        borders: first column of the sky, for every image.
    """
    (folder / "images").mkdir(parents=True)
    (folder / "names.txt").write_text("thing: cat\nstuff: sky, blue sky\n")
    images, annotations = [], []
    for index, border in enumerate(borders):
        ids = np.full((HEIGHT, WIDTH), 7)
        ids[:, border:] = 300
        colors = np.where(ids[..., None] == 7, (200, 120, 40), (90, 140, 250)).astype(np.uint8)
        Image.fromarray(colors).save(folder / "images" / f"{index:03d}.png")
        write_panoptic_png(folder / "panoptic" / f"{index:03d}.png", ids)
        name, id_ = f"{index:03d}.png", 10 + index
        images.append(dict(id=id_, file_name=name, height=HEIGHT, width=WIDTH))
        segments = [
            dict(id=7, category_id=1, iscrowd=0, area=border * HEIGHT, bbox=[0, 0, border, HEIGHT]),
            dict(
                id=300,
                category_id=5,
                iscrowd=0,
                area=(WIDTH - border) * HEIGHT,
                bbox=[border, 0, WIDTH - border, HEIGHT],
            ),
        ]
        annotations.append(dict(image_id=id_, file_name=name, segments_info=segments))
    categories = [dict(id=1, name="cat", isthing=1), dict(id=5, name="sky", isthing=0)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / "panoptic.json").write_text(json.dumps(content))


def write_project(folder: Path, sets: dict[str, Sequence[int]]) -> None:
    """Write ``model.py`` and the configs and data of test sets, see :func:`write_set`."""
    configs = folder / "configs" / "_base_" / "datasets"
    configs.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL_CONFIG)
    for name, borders in sets.items():
        (configs / f"{name}.py").write_text(SET_CONFIG.format(name=name))
        write_set(folder / "data" / name, borders)
