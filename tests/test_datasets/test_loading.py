"""LoadImage and ResizeKeepRatio in a pipeline."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from odise_mm.registry import TRANSFORMS
from odise_mm.utils.image import ImageError


def build(**kwargs):
    return TRANSFORMS.build(kwargs)


def test_load_image(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (7, 5), (1, 2, 3)).save(path)
    load = build(type="LoadImage")
    results = load(dict(img_path=str(path)))
    assert results["img"].shape == (5, 7, 3) and results["img"][0, 0].tolist() == [3, 2, 1]
    assert results["img_shape"] == results["ori_shape"] == (5, 7)
    assert results["img_path"] == str(path)
    memory = load(dict(img=np.zeros((4, 6), np.uint8)))
    assert memory["img"].shape == (4, 6, 3) and memory["img_path"] is None
    with pytest.raises(ImageError, match="no such file"):
        load(dict(img_path="missing.png"))
    with pytest.raises(ImageError, match="img_path"):
        load({})


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 4000), (2, 2560)),
        ((4000, 3), (2560, 2)),
        ((1, 1), (1024, 1024)),
        ((1, 20_000), (1, 2560)),
        ((20_000, 1), (2560, 1)),
        ((480, 640), (1024, 1365)),
        ((427, 640), (1024, 1535)),
    ],
)
def test_no_side_is_zero(shape, expected):
    image = np.full((*shape, 3), 9, np.uint8)
    results = build(type="ResizeKeepRatio", scale=(2560, 1024))(dict(img=image))
    assert results["img"].shape == (*expected, 3)
    assert results["img_shape"] == expected
    assert results["scale_factor"] == (expected[1] / shape[1], expected[0] / shape[0])
    assert (results["img"] == 9).all()


def test_resize_equals_mmdet():
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    ours = build(type="ResizeKeepRatio", scale=(160, 64))(dict(img=image.copy()))
    plain = dict(type="mmdet.Resize", scale=(160, 64), keep_ratio=True, backend="pillow")
    theirs = build(**plain)(dict(img=image.copy()))
    assert np.array_equal(ours["img"], theirs["img"])
    with Image.fromarray(image) as pil:
        direct = np.asarray(pil.resize((92, 64), Image.Resampling.BILINEAR))
    assert np.array_equal(ours["img"], direct)
