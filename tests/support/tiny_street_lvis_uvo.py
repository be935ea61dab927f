"""Tiny copies of the providers' archives of Cityscapes, Mapillary Vistas, LVIS and UVO.

As in ``tests.support.tiny_ade_pascal``, ``write_raw_<set>(data)`` writes a tiny dataset below
``data`` and returns its ground truth, and ``prepare(name, data)`` also runs the converter.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as masks

from odise_mm.vocabulary import Vocabulary
from tests.support.tiny_ade_pascal import SIZES, Truth, patches, write_image, write_map

# Segments of the tiny Cityscapes: road, sky, pole, persons, a group of persons, cars, a bicycle, a
# group of bicycles, a caravan and a group of caravans (which are not evaluated), void.
CITY_NUMBERS = ([7, 23, 24, 24000, 24001, 26000, 4, 1], [7, 17, 26003, 26017, 29000, 3, 0],
                [8, 11, 21, 33, 33002, 29, 31000])  # fmt: skip
VISTAS_VOID = 65


def write_raw_cityscapes(data: Path) -> Truth:
    """Write leftImg8bit and gtFine with 3 test images of 2 cities and 1 training image.

    In the returned ground truth, ``instances`` are the numbers of *_instanceIds.png, and ``labels``
    are those of *_labelIds.png.
    """
    rng = np.random.default_rng(11)
    truth = Truth(data / "cityscapes")
    records = [
        ("val", "frankfurt", "000000_000294", CITY_NUMBERS[0]),
        ("val", "frankfurt", "000001_000538", CITY_NUMBERS[1]),
        ("val", "lindau", "000000_000019", CITY_NUMBERS[2]),
        ("train", "aachen", "000000_000019", CITY_NUMBERS[0]),
    ]
    for index, (split, city, number, values) in enumerate(records):
        name = f"{city}_{number}"
        ids = patches(rng, SIZES[index % 3], values)
        labels = np.where(ids < 1000, ids, ids // 1000)
        image = truth.root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
        truth_of = truth.root / "gtFine" / split / city
        write_image(image, labels, rng)
        write_map(truth_of / f"{name}_gtFine_instanceIds.png", ids.astype(np.uint16))
        write_map(truth_of / f"{name}_gtFine_labelIds.png", labels.astype(np.uint8))
        colors = np.stack([labels * 5, 255 - labels, labels, 0 * labels + 255], axis=-1)
        write_map(truth_of / f"{name}_gtFine_color.png", colors.astype(np.uint8))
        polygons = dict(imgHeight=ids.shape[0], imgWidth=ids.shape[1], objects=[])
        (truth_of / f"{name}_gtFine_polygons.json").write_text(json.dumps(polygons))
        if split == "val":
            truth.images[name], truth.labels[name], truth.instances[name] = image, labels, ids
    return truth


def vistas_config() -> dict:
    """Return config.json of version 1.2, with 65 evaluated labels and void."""
    vocabulary = Vocabulary.load("mapillary")
    labels = [
        dict(
            name=f"group--{name.lower().replace(' ', '-')}",
            readable=name,
            instances=thing,
            evaluate=True,
            color=[index, 2 * index, 3 * index],
        )
        for index, (name, thing) in enumerate(
            zip(vocabulary.source_names, vocabulary.is_thing, strict=True)
        )
    ]
    void = dict(name="void--unlabeled", readable="Unlabeled", instances=False, evaluate=False)
    return dict(version="1.2", mapping="public", labels=[*labels, void | dict(color=[0, 0, 0])])


def write_raw_mapillary(data: Path, panoptic: bool = True) -> Truth:
    """Write Vistas 1.2 with 3 test images and 1 training image.

    The first bird has the number 0 in the instance map. In the panoptic files, the void of the
    second image has an id that is not in the JSON file, and the void of the third image is listed
    there. One person is a crowd, and the sky of the first image consists of two segments.

    In the returned ground truth, ``instances`` are the numbers of instances/*.png, and ``labels``
    are the classes.

    Args:
        data: folder that replaces ``data/``.
        panoptic: whether to write panoptic files.
    """
    rng = np.random.default_rng(12)
    truth = Truth(data / "mapillary")
    vocabulary = Vocabulary.load("mapillary")
    bird, person, car, sky, road = (
        vocabulary.source_names.index(name) for name in ("Bird", "Person", "Car", "Sky", "Road")
    )
    config = vistas_config()
    truth.root.mkdir(parents=True, exist_ok=True)
    (truth.root / "config.json").write_text(json.dumps(config))
    values = [v * 256 for v in (sky, road, VISTAS_VOID, bird)]
    values += [bird * 256 + 1, car * 256 + 1, car * 256 + 2, person * 256 + 7]
    for split, numbers in (("validation", range(3)), ("training", range(1))):
        folder = truth.root / split
        images, annotations = [], []
        for number in numbers:
            name = f"{split[:3]}-Xy_{number}"
            ids = patches(rng, SIZES[number], values)
            labels = ids // 256
            write_image(folder / "images" / f"{name}.jpg", labels, rng)
            write_map(folder / "instances" / f"{name}.png", ids.astype(np.uint16))
            write_map(folder / "labels" / f"{name}.png", labels.astype(np.uint8), palette=True)
            size = dict(height=ids.shape[0], width=ids.shape[1])
            images.append(dict(id=name, file_name=f"{name}.jpg", **size))
            coded, infos = _vistas_panoptic(ids, number, rng)
            if panoptic:
                colors = np.stack([coded % 256, coded // 256 % 256, coded // 65536], axis=-1)
                write_map(folder / "panoptic" / f"{name}.png", colors.astype(np.uint8))
            annotations.append(dict(image_id=name, file_name=f"{name}.png", segments_info=infos))
            if split == "validation":
                truth.images[name] = folder / "images" / f"{name}.jpg"
                truth.labels[name], truth.instances[name] = labels, ids
        if panoptic:
            categories = [
                dict(id=index, name=label["readable"], isthing=int(label["instances"]))
                for index, label in enumerate(config["labels"], start=1)
            ]
            content = dict(images=images, annotations=annotations[::-1], categories=categories)
            (folder / "panoptic" / "panoptic_2018.json").write_text(json.dumps(content))
    return truth


def _vistas_panoptic(
    ids: np.ndarray, number: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[dict]]:
    coded, infos = np.zeros(ids.shape, np.int64), []
    sky = Vocabulary.load("mapillary").source_names.index("Sky")
    person = Vocabulary.load("mapillary").source_names.index("Person")
    for value in np.unique(ids):
        halves = [ids == value]
        if value == sky * 256 and number == 0:  # two segments of one stuff class
            upper = halves[0] & (np.arange(ids.shape[0])[:, None] < ids.shape[0] // 2)
            halves = [h for h in (upper, halves[0] & ~upper) if h.any()]
        for mask in halves:
            label = int(value) // 256
            segment = 0 if label == VISTAS_VOID and number == 0 else int(rng.integers(1, 2**24))
            coded[mask] = segment
            if label == VISTAS_VOID and number < 2:
                continue
            crowd = int(label == person)
            infos.append(
                dict(id=segment, category_id=label + 1, iscrowd=crowd, area=int(mask.sum()))
            )
    return coded, infos


@dataclass
class Instances:
    """Ground truth of a tiny instance segmentation dataset.

    Attributes:
        root: folder of the dataset.
        images: paths of the images by file name.
        masks: category ids and masks (H, W) bool of every image, in the order of the file.
    """

    root: Path
    images: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, list[tuple[int, np.ndarray]]] = field(default_factory=dict)


def _rectangle(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw x, y, width and height of a rectangle inside an image."""
    y, x = int(rng.integers(0, size[0] - 8)), int(rng.integers(0, size[1] - 8))
    return x, y, int(rng.integers(4, size[1] - x)), int(rng.integers(4, size[0] - y))


def _mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = True
    return mask


def write_raw_lvis(data: Path) -> Instances:
    """Write lvis_v1_val.json with all categories, 2 images of val2017 and 1 of train2017."""
    rng = np.random.default_rng(13)
    truth = Instances(data / "lvis")
    names = Vocabulary.load("lvis").source_names
    categories = [
        dict(id=index, name=name, frequency="rcf"[index % 3], synset=f"{name}.n.01",
             synonyms=[name], image_count=1, instance_count=1)
        for index, name in enumerate(names, start=1)
    ]  # fmt: skip
    images, annotations = [], []
    for number, (folder, image_id) in enumerate(
        (("val2017", 397133), ("val2017", 37777), ("train2017", 391895))
    ):
        size = SIZES[number]
        name = f"{folder}/{image_id:012d}.jpg"
        write_image(data / "coco" / name, patches(rng, size, [1, 2, 3]), rng)
        truth.images[name], truth.masks[name] = data / "coco" / name, []
        present = [int(v) for v in rng.choice(np.arange(1, 1204), 3, replace=False)]
        for category in [*present, 1203]:
            box = x, y, width, height = _rectangle(size, rng)
            polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotations.append(
                dict(id=len(annotations) + 1, image_id=image_id, category_id=category,
                     area=float(width * height), bbox=[float(v) for v in box],
                     segmentation=[[float(v) for v in polygon]])
            )  # fmt: skip
            truth.masks[name].append((category, _mask(size, box)))
        absent = [c for c in (1, 2, 3, 4) if c not in present]
        images.append(
            dict(id=image_id, height=size[0], width=size[1],
                 coco_url=f"http://images.cocodataset.org/{name}", flickr_url="", license=1,
                 neg_category_ids=absent, not_exhaustive_category_ids=present[:1])
        )  # fmt: skip
    content = dict(info={}, images=images, annotations=annotations, categories=categories)
    truth.root.mkdir(parents=True, exist_ok=True)
    (truth.root / "lvis_v1_val.json").write_text(json.dumps(content))
    return truth


def write_raw_uvo(data: Path) -> Instances:
    """Write UVO's frame set (3 frames of 2 videos) and dense set (2 frames of a video).

    Masks are compressed run lengths, uncompressed run lengths and polygons. One mask is empty.
    """
    rng = np.random.default_rng(14)
    truth = Instances(data / "uvo")
    images, annotations = [], []
    for number, name in enumerate(("a-B_c1/0.png", "a-B_c1/30.png", "zZ9/59.png")):
        size = SIZES[number]
        path = truth.root / "uvo_videos_sparse_frames" / name
        write_image(path, patches(rng, size, [1, 2, 3]), rng)
        truth.images[name], truth.masks[name] = path, []
        images.append(dict(id=1000 + number, file_name=name, height=size[0], width=size[1]))
        for kind in ("compressed", "plain", "polygon"):
            box = x, y, width, height = _rectangle(size, rng)
            mask = _mask(size, box)
            polygon = [[x, y, x + width, y, x + width, y + height, x, y + height]]
            annotations.append(
                dict(id=len(annotations) + 1, image_id=1000 + number, category_id=1,
                     bbox=list(box), area=width * height,
                     segmentation=polygon if kind == "polygon" else run_lengths(mask, kind))
            )  # fmt: skip
            truth.masks[name].append((1, mask))
    nothing = run_lengths(np.zeros(SIZES[0], bool), "compressed")
    annotations.append(dict(id=99, image_id=1000, category_id=1, segmentation=nothing))
    categories = [dict(id=1, name="object")]
    _write_json(
        truth.root / "FrameSet" / "UVO_frame_val.json",
        dict(images=images, annotations=annotations, categories=categories),
    )
    _write_dense(truth.root, rng)
    return truth


def _write_dense(root: Path, rng: np.random.Generator) -> None:
    """Write a video of two frames, with an object in both and one only in the second frame."""
    size, names = SIZES[0], ["denseV/0.png", "denseV/1.png"]
    for name in names:
        path = root / "uvo_videos_dense_frames" / name
        write_image(path, patches(rng, size, [1, 2]), rng)
    moving = [run_lengths(_mask(size, (4 + 3 * i, 5, 10, 12)), "compressed") for i in range(2)]
    late = [None, run_lengths(_mask(size, (30, 20, 9, 9)), "plain")]
    annotations = [
        dict(id=1, video_id=7, category_id=82, iscrowd=0, segmentations=moving),
        dict(id=2, video_id=7, category_id=1, iscrowd=1, segmentations=late),
    ]
    video = dict(id=7, file_names=names, height=size[0], width=size[1], length=2)
    categories = [dict(id=1, name="person"), dict(id=82, name="other")]
    _write_json(
        root / "VideoDenseSet" / "UVO_video_val_dense.json",
        dict(videos=[video], annotations=annotations, categories=categories),
    )


def run_lengths(mask: np.ndarray, kind: str) -> dict[str, Any]:
    """Return a mask as COCO's run lengths, compressed or as a list of numbers."""
    size = list(mask.shape)
    if kind == "compressed":
        counts = masks.encode(np.asfortranarray(mask, np.uint8))["counts"].decode("ascii")
        return dict(size=size, counts=counts)
    flat = np.concatenate([[False], mask.ravel(order="F")])
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), mask.size)
    return dict(size=size, counts=np.diff(ends, prepend=0).tolist())


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def read_pixels(path: Path) -> np.ndarray:
    """Read the pixel values of an image file."""
    with Image.open(path) as image:
        return np.array(image)


def prepare(name: str, data: Path) -> Truth | Instances:
    """Write a raw tiny dataset, run its converter, and return the ground truth.

    Args:
        name: name of the dataset: cityscapes, mapillary, lvis or uvo.
        data: folder that replaces ``data/``.
    """
    from odise_mm.converters import cityscapes, lvis, mapillary, uvo

    made: dict[str, tuple[Callable[[Path], Truth | Instances], Callable]] = {
        "cityscapes": (write_raw_cityscapes, cityscapes.main),
        "mapillary": (write_raw_mapillary, mapillary.main),
        "lvis": (write_raw_lvis, lvis.main),
        "uvo": (write_raw_uvo, uvo.main),
    }
    write, convert = made[name]
    truth = write(data)
    options = ["--coco", str(data / "coco")] if name == "lvis" else []
    convert([str(truth.root), "--workers", "1", *options])
    return truth
