"""Images with an EXIF orientation; annotations of the stored or of the upright image."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from PIL import Image
from torch.utils.data import DataLoader

from odise_mm.annotations.ground_truth import check_size
from odise_mm.annotations.panoptic_io import write_panoptic_png
from odise_mm.errors import ConfigError, DatasetError
from odise_mm.evaluation import SemanticIoU
from odise_mm.registry import DATASETS, TRANSFORMS
from odise_mm.utils.image import exif_orientation, read_image, turned_hint

# How stored pixels become upright ones, from the EXIF standard (0th row, 0th column).
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,  # top, left
    2: lambda a: a[:, ::-1],  # top, right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.swapaxes(0, 1),  # left, top
    6: lambda a: a[::-1].swapaxes(0, 1),  # right, top
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda a: a[:, ::-1].swapaxes(0, 1),  # left, bottom
}
TURNED = (5, 6, 7, 8)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Callable[[], list[str]]]:
    """Return all warnings so far, including those of worker processes."""
    handler = logging.FileHandler(tmp_path / "log.txt")
    handler.setLevel(logging.WARNING)
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lambda: (tmp_path / "log.txt").read_text().splitlines()
    logger.removeHandler(handler)
    handler.close()


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw segments 1 (red), 2 (green) and 3 (blue); all orientations look different."""
    ids = np.ones((height, width), np.int32)
    ids[:, width // 3 :] = 2
    ids[: height // 4] = 3
    return np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)[ids - 1], ids


def write(
    root: Path,
    orientation: int,
    upright: bool,
    size: tuple[int, int] = (24, 36),
    number: int = 4,
) -> None:
    """Write all three kinds of annotations, of the upright or of the stored images."""
    image, ids = scene(*size)
    if upright:
        ids = UPRIGHT[orientation](ids)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for folder in ("images", "panoptic", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "names.txt").write_text("thing: red\nthing: green\nthing: blue\n")
    images, annotations, objects = [], [], []
    for index in range(number):
        Image.fromarray(image).save(root / f"images/{index}.png", exif=exif)
        write_panoptic_png(root / f"panoptic/{index}.png", ids)
        Image.fromarray((ids - 1).astype(np.uint8)).save(root / f"labels/{index}.png")
        height, width = ids.shape
        images.append(dict(id=index, file_name=f"{index}.png", height=height, width=width))
        infos = [
            dict(id=i, category_id=i, area=int((ids == i).sum()), bbox=[0, 0, 1, 1], iscrowd=0)
            for i in (1, 2, 3)
        ]
        annotations.append(dict(image_id=index, file_name=f"{index}.png", segments_info=infos))
        for info in infos:
            counts = np.diff(
                np.flatnonzero(
                    np.diff(np.concatenate([[0], (ids == info["id"]).T.ravel(), [2]])) != 0
                ),
                prepend=0,
            )
            mask = dict(size=[height, width], counts=counts.tolist())
            objects.append({**info, "id": len(objects) + 1, "image_id": index,
                            "segmentation": mask, "bbox": [0, 0, width, height]})  # fmt: skip
    categories = [dict(id=i, name=n, isthing=1) for i, n in enumerate(("red", "green", "blue"), 1)]
    for name, content in (("panoptic", annotations), ("instances", objects)):
        text = json.dumps(dict(images=images, annotations=content, categories=categories))
        (root / f"{name}.json").write_text(text)


def panoptic(root: Path, **changes: Any) -> Any:
    pipeline = [dict(type="LoadImage"), dict(type="LoadPanopticMap")]
    config = dict(
        type="PanopticDataset",
        vocabulary="names.txt",
        data_root=str(root),
        ann_file="panoptic.json",
        data_prefix=dict(img="images/", seg="panoptic/"),
        pipeline=pipeline,
    )
    return DATASETS.build({**config, **changes})


def instances(root: Path, **changes: Any) -> Any:
    load = dict(type="mmdet.LoadAnnotations", with_bbox=True, with_mask=True)
    config = dict(
        type="InstanceDataset",
        vocabulary="names.txt",
        data_root=str(root),
        ann_file="instances.json",
        data_prefix=dict(img="images/"),
        pipeline=[dict(type="LoadImage"), load],
    )
    return DATASETS.build({**config, **changes})


def semantic(root: Path, **changes: Any) -> Any:
    config = dict(
        type="SemanticDataset",
        vocabulary="names.txt",
        data_root=str(root),
        data_prefix=dict(img_path="images/", seg_map_path="labels/"),
        img_suffix=".png",
        pipeline=[dict(type="LoadImage")],
    )
    return DATASETS.build({**config, **changes})


def agrees(item: dict) -> bool:
    """Return whether every segment has its color; images are BGR."""
    label = item["img"].argmax(-1)
    return np.array_equal(2 - label, item["gt_seg_map"] - 1)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_rotated_as_in_the_standard(orientation: int, tmp_path: Path) -> None:
    image, _ = scene(24, 36)
    write(tmp_path, orientation, True, number=1)
    path = tmp_path / "images/0.png"
    assert exif_orientation(path) == orientation
    assert np.array_equal(read_image(path)[..., ::-1], UPRIGHT[orientation](image))
    assert np.array_equal(read_image(path, exif=False)[..., ::-1], image)
    with Image.open(path) as pil:
        assert np.array_equal(read_image(pil, exif=False)[..., ::-1], image)
    assert exif_orientation(tmp_path / "names.txt") == exif_orientation("gone.jpg") == 1


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("upright", [True, False])
def test_panoptic_annotations_of_upright_and_stored_images(
    orientation: int, upright: bool, tmp_path: Path, log: Callable[[], list[str]]
) -> None:
    write(tmp_path, orientation, upright)
    for exif in (None, True) if upright else (False,):
        assert all(map(agrees, panoptic(tmp_path, exif=exif)))
    step = dict(type="LoadImage", exif=upright)
    other = panoptic(tmp_path, pipeline=[step, dict(type="LoadPanopticMap")])
    assert all(map(agrees, other)) and other.exif == upright
    # The wrong choice: detected by the size, or logged once.
    wrong, before = panoptic(tmp_path, exif=not upright), len(log())
    if orientation in TURNED:
        with pytest.raises(DatasetError, match=rf"EXIF orientation \({orientation}\).*`exif`"):
            wrong[0]
    elif orientation != 1:
        assert not any(map(agrees, wrong))
        assert len(log()) - before == (not upright)


def test_one_warning_per_dataset_also_of_worker_processes(
    tmp_path: Path, log: Callable[[], list[str]]
) -> None:
    write(tmp_path, 2, True, number=8)
    for count, make in enumerate((panoptic, semantic, instances), start=1):
        dataset = make(tmp_path)
        loader = DataLoader(dataset, batch_size=None, num_workers=2, collate_fn=len)
        assert len(list(loader)) == len(list(loader)) == 8
        lines = log()
        assert len(lines) == count
        assert "has EXIF orientation 2" in lines[-1]
        assert "set exif=False in the dataset" in lines[-1] and "/images/" in lines[-1]


def test_no_warning_with_explicit_exif(tmp_path: Path, log: Callable[[], list[str]]) -> None:
    write(tmp_path, 3, False)
    for dataset in (panoptic(tmp_path, exif=False), semantic(tmp_path, exif=False)):
        list(dataset)
    TRANSFORMS.build(dict(type="LoadImage"))(dict(img_path=str(tmp_path / "images/0.png")))
    write(tmp_path / "plain", 1, True)
    list(panoptic(tmp_path / "plain"))
    assert not log()


def test_square_images_with_quarter_turns_warn(
    tmp_path: Path, log: Callable[[], list[str]]
) -> None:
    write(tmp_path, 6, False, size=(24, 24))
    assert not agrees(panoptic(tmp_path)[0])
    assert "has EXIF orientation 6" in log()[0]


@pytest.mark.parametrize("orientation", TURNED)
def test_instances(orientation: int, tmp_path: Path) -> None:
    write(tmp_path, orientation, False)
    with pytest.raises(DatasetError, match=rf"0\.png: .*EXIF orientation \({orientation}\)"):
        instances(tmp_path)[0]
    item = instances(tmp_path, exif=False)[0]
    masks, (_, ids) = item["gt_masks"].to_ndarray(), scene(24, 36)
    assert [np.array_equal(mask, ids == i) for i, mask in enumerate(masks, 1)] == [True] * 3


@pytest.mark.parametrize("orientation", TURNED)
def test_semantic_evaluation_mentions_exif(orientation: int, tmp_path: Path) -> None:
    write(tmp_path, orientation, False)
    for exif in (True, False):
        dataset = semantic(tmp_path, exif=exif)
        item = dataset[0]
        metric = SemanticIoU()
        metric.dataset_meta = dataset.metainfo
        found = torch.from_numpy(2 - item["img"].argmax(-1))[None]
        sample = {**dataset.get_data_info(0), "pred_sem_seg": dict(sem_seg=found)}
        if exif:
            with pytest.raises(DatasetError, match=rf"EXIF orientation \({orientation}\)"):
                metric.process(None, [sample])
        else:
            metric.process(None, [sample])
            assert metric.evaluate(1)["semantic/mIoU"] == 100


def test_hint_only_for_rotated_sizes(tmp_path: Path) -> None:
    write(tmp_path, 6, False, number=1)
    write(tmp_path / "plain", 1, False, number=1)
    turned, plain = tmp_path / "images/0.png", tmp_path / "plain/images/0.png"
    assert "(6)" in turned_hint((24, 36), (36, 24), turned)
    assert "EXIF" in turned_hint((24, 36), (36, 24))
    assert turned_hint((24, 36), (36, 24), plain) == ""
    assert turned_hint((24, 36), (24, 35), turned) == turned_hint((24, 24), (24, 24), turned) == ""
    with pytest.raises(DatasetError, match=r"another version of the image$"):
        check_size("a.png", (24, 36), (24, 35), turned)


def test_invalid_exif_raises(tmp_path: Path) -> None:
    write(tmp_path, 1, True, number=1)
    with pytest.raises(ConfigError, match=r"PanopticDataset\(exif='no'\)"):
        panoptic(tmp_path, exif="no")
    with pytest.raises(ConfigError, match=r"LoadImage\(exif=0\)"):
        TRANSFORMS.build(dict(type="LoadImage", exif=0))
    with pytest.raises(
        ConfigError, match=r"SemanticDataset\(exif=True\): contradicts .* LoadImage"
    ):
        semantic(tmp_path, exif=True, pipeline=[dict(type="LoadImage", exif=False)])


def test_load_image_can_be_copied_and_pickled() -> None:
    step = TRANSFORMS.build(dict(type="LoadImage", exif=False))
    for other in (copy.deepcopy(step), pickle.loads(pickle.dumps(step))):
        assert other.exif is False and repr(other).endswith("exif=False)")
