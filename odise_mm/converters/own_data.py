"""Prepare a folder of one's own data for training: recognize, convert, check, split, and configure.

The images are in ``images/``. The annotations are one of:

    panoptic.json and panoptic/   COCO's panoptic format
    instances.json                COCO's instance format, with polygons or run lengths
    labels/*.png and names.txt    class indices; 255 is ignored
    labels/*.txt and data.yaml    polygons of Ultralytics' YOLO; become instances.json
    labels/*.json or images/*.json    LabelMe's files; become instances.json
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import yaml

from odise_mm.annotations.coco_json import read_coco
from odise_mm.annotations.masks import Rle, to_rle
from odise_mm.converters.files import image_size, parsing, read_json, read_lines, read_pixels
from odise_mm.converters.verification import verify_instances, verify_panoptic, verify_semantic
from odise_mm.errors import DatasetError
from odise_mm.utils.display import printable, some
from odise_mm.utils.files import write_json, write_text
from odise_mm.utils.image import image_suffixes
from odise_mm.vocabulary import Vocabulary

TINY = 16
"""Masks with fewer pixels are reported."""
OVERLAP = 0.5
"""Instances are reported if another one covers more than this part of them."""


@dataclass
class OwnData:
    """What was found in a folder.

    Attributes:
        folder: The folder.
        kind: "panoptic", "instance" or "semantic".
        splits: Number of images of "train" and "val".
        rows: Class name, number of images and number of segments of each class.
        notes: What should be looked at, in sentences.
        suffix: Suffix of the images of a semantic dataset.
    """

    folder: Path
    kind: str
    splits: dict[str, int]
    rows: list[tuple[str, int, int]]
    notes: list[str] = field(default_factory=list)
    suffix: str = ""


@dataclass
class _Shape:
    """An object of a file of polygons or masks.

    Attributes:
        image: Id of the image.
        category: Id of the category.
        rings: Its polygons.
        masks: Its masks, which are joined with the polygons.
    """

    image: int
    category: int
    rings: list[list[float]] = field(default_factory=list)
    masks: list[Rle] = field(default_factory=list)


def prepare(folder: Path, val_part: float = 0.2, workers: int = 1) -> OwnData:
    """Check a folder and write the files of its splits, and ``names.txt`` if it is missing.

    Images with the same content get into the same split.

    Args:
        folder: See the module.
        val_part: Part of the images for validation, above 0 and below 1.
        workers: Number of processes.

    Raises:
        DatasetError: There are no images or no annotations, or they are invalid. The message names
            the file.
        VocabularyError: ``names.txt`` is invalid or does not fit the annotations.
    """
    images = folder / "images"
    if not images.is_dir():
        raise DatasetError(f"{images}: folder of images not found; put the images there")
    kind = _convert(folder)
    if kind == "semantic":
        return _prepare_semantic(folder, val_part, workers)
    file = folder / ("panoptic.json" if kind == "panoptic" else "instances.json")
    notes: list[str] = []
    if kind == "panoptic":
        verify_panoptic(file, folder / "panoptic", images, check_areas=False, workers=workers)
    else:
        notes += verify_instances(file, images, workers=workers, tolerant=True).notes
    content = read_coco(file, kind)
    names = _names(folder, list(content.categories.values()))
    counts, segments = Counter(), Counter()
    with_any, tiny = set(), []
    for annotation in content.annotations:
        parts = annotation.get("segments_info", [annotation])
        segments.update(part["category_id"] for part in parts)
        counts.update({part["category_id"] for part in parts} if kind == "panoptic" else ())
        tiny += [annotation["image_id"] for part in parts if part.get("area", TINY) < TINY]
        if parts:
            with_any.add(annotation["image_id"])
    if kind == "instance":
        pairs = {(a["image_id"], a["category_id"]) for a in content.annotations}
        counts.update(category for _, category in pairs)
        notes += _overlap_notes(content.images, content.annotations)
    name_of = {id_: image["file_name"] for id_, image in content.images.items()}
    notes += _note([name_of[i] for i in name_of if i not in with_any], "without annotations")
    notes += _note([name_of[i] for i in tiny], f"with masks of fewer than {TINY} pixels")
    listed = [images / name for name in name_of.values()]
    train, val, doubles = _split(listed, val_part)
    notes += doubles
    raw = read_json(file)
    ids = {images / image["file_name"]: image["id"] for image in raw["images"]}
    for split, chosen in (("train", train), ("val", val)):
        kept = {ids[path] for path in chosen}
        write_json(
            folder / f"{split}.json",
            {
                **raw,
                "images": [image for image in raw["images"] if image["id"] in kept],
                "annotations": [a for a in raw["annotations"] if a["image_id"] in kept],
            },
        )
    rows = [
        (category["name"], counts[id_], segments[id_])
        for id_, category in content.categories.items()
    ]
    notes += _unused(rows)
    known = set(names.source_names)
    missing = [name for name, _, _ in rows if name not in known]
    if missing:
        raise DatasetError(
            f"{folder / 'names.txt'}: {some(map(repr, missing))} of {file} not among its names; "
            "add a line for each, or write `good name | name in the file`"
        )
    return OwnData(folder, kind, {"train": len(train), "val": len(val)}, rows, notes)


def _prepare_semantic(folder: Path, val_part: float, workers: int) -> OwnData:
    from odise_mm.annotations.label_maps import class_indices, read_label_map

    if not (folder / "names.txt").is_file():
        raise DatasetError(
            f"{folder / 'names.txt'}: not found; write one line per class index, from 0, such as "
            "`stuff: road`"
        )
    names = Vocabulary.load(folder / "names.txt")
    found = [path for path in _image_files(folder / "images")]
    suffix, _ = Counter(path.suffix for path in found).most_common(1)[0]
    pairs = [(path, folder / "labels" / f"{path.stem}.png") for path in found]
    pairs = [pair for pair in pairs if pair[0].suffix == suffix and pair[1].is_file()]
    used = {path for path, _ in pairs}
    notes = _note([p.name for p in found if p not in used], f"without a label map ({suffix})")
    verify_semantic(pairs, len(names), workers=workers)
    counts: Counter[int] = Counter()
    for _, label in pairs:
        values = np.unique(class_indices(read_label_map(label), label, len(names)))
        counts.update(values[values >= 0].tolist())
    train, val, doubles = _split([path for path, _ in pairs], val_part)
    for split, chosen in (("train", train), ("val", val)):
        write_text(folder / f"{split}.txt", "".join(f"{path.stem}\n" for path in chosen))
    rows = [(name, counts[i], counts[i]) for i, name in enumerate(names.source_names)]
    splits = {"train": len(train), "val": len(val)}
    return OwnData(folder, "semantic", splits, rows, notes + doubles + _unused(rows), suffix)


# --- reading and converting -----------------------------------------------------------------------


def _convert(folder: Path) -> str:
    """Return the kind of the annotations; convert those of YOLO and LabelMe first."""
    labels = folder / "labels"
    if (folder / "panoptic.json").is_file():
        return "panoptic"
    made = folder / "instances.json"
    if not made.is_file():
        if any(labels.glob("*.png")):
            return "semantic"
        labelme = [*labels.glob("*.json"), *(folder / "images").glob("*.json")]
        if (folder / "data.yaml").is_file():
            content = _from_yolo(folder)
        elif labelme:
            content = _from_labelme(sorted(labelme), folder / "images")
        else:
            raise DatasetError(
                f"{folder}: no annotations found; expected panoptic.json, instances.json, "
                "labels/*.png, data.yaml with labels/*.txt, or LabelMe's files in labels/"
            )
        write_json(made, content)
    return "instance"


def _image_files(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in image_suffixes())
    if not found:
        raise DatasetError(f"{folder}: contains no images")
    return found


def _content(images: list[dict], shapes: list[_Shape], names: Sequence[str]) -> dict:
    """Return COCO's instances."""
    from pycocotools import mask as mask_utils

    size_of = {image["id"]: (image["height"], image["width"]) for image in images}
    annotations = []
    for number, shape in enumerate(shapes, 1):
        masks = list(shape.masks)
        if shape.rings:
            masks.append(to_rle(shape.rings, size_of[shape.image]))
        rle = mask_utils.merge(masks)
        annotations.append(
            dict(
                id=number,
                image_id=shape.image,
                category_id=shape.category,
                segmentation={**rle, "counts": rle["counts"].decode()}
                if shape.masks
                else shape.rings,
                area=int(mask_utils.area(rle)),
                bbox=mask_utils.toBbox(rle).tolist(),
                iscrowd=0,
            )
        )
    categories = [dict(id=i, name=name) for i, name in enumerate(names, 1)]
    return dict(images=images, annotations=annotations, categories=categories)


def _entry(path: Path, number: int) -> dict[str, Any]:
    height, width = image_size(path)
    return dict(id=number, file_name=path.name, height=height, width=width)


def _from_yolo(folder: Path) -> dict:
    file = folder / "data.yaml"
    try:
        names = yaml.safe_load(file.read_text(encoding="utf-8"))["names"]
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file}: has no list `names` ({error})") from error
    names = [names[i] for i in sorted(names)] if isinstance(names, dict) else list(names)
    images, shapes = [], []
    for number, path in enumerate(_image_files(folder / "images"), 1):
        images.append(_entry(path, number))
        labels = folder / "labels" / f"{path.stem}.txt"
        size = np.array([images[-1]["width"], images[-1]["height"]])
        for place, line in enumerate(read_lines(labels) if labels.is_file() else [], 1):
            where = f"{labels}:{place}"
            try:
                label, *values = line.split()
                points = np.array(values, dtype=float).reshape(-1, 2)
                known = 0 <= int(label) < len(names)
            except ValueError as error:
                raise DatasetError(f"{where}: not `class x y x y ...` ({error})") from error
            if not known or len(points) < 3:
                problem = "a box, not a polygon" if len(points) == 2 else "no such class or polygon"
                raise DatasetError(f"{where}: {problem}: {printable(line, 60)}")
            shapes.append(_Shape(number, int(label) + 1, [(points * size).flatten().tolist()]))
    return _content(images, shapes, names)


def read_labelme(folder: Path, images: Path) -> dict:
    """Return the LabelMe files of a folder as COCO's instances.

    Raises:
        DatasetError: there are none, or one is invalid.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise DatasetError(f"{folder}: contains no LabelMe files (*.json)")
    return _from_labelme(files, images)


def _from_labelme(files: Sequence[Path], folder: Path) -> dict:
    images, shapes, names = [], [], dict[str, int]()
    for number, file in enumerate(files, 1):
        content = read_json(file)
        with parsing(file, "a file of LabelMe"):
            # LabelMe on Windows writes backslashes.
            images.append(_entry(folder / PureWindowsPath(content["imagePath"]).name, number))
            size = (images[-1]["height"], images[-1]["width"])
            groups: dict[Any, _Shape] = {}
            for place, shape in enumerate(content["shapes"]):
                category = names.setdefault(shape["label"], len(names) + 1)
                group = shape.get("group_id")
                key = (place,) if group is None else (category, group)
                one = groups.setdefault(key, _Shape(number, category))
                where = f"{file}: shape {place + 1}"
                if shape.get("shape_type") == "mask":
                    one.masks.append(_labelme_mask(shape, size, where))
                else:
                    one.rings.append(_labelme_ring(shape, where))
            shapes += groups.values()
    return _content(images, shapes, list(names))


def _labelme_ring(shape: dict, where: str) -> list[float]:
    """Return a polygon or rectangle as a ring [x1, y1, x2, y2, ...]."""
    points = np.asarray(shape["points"], dtype=float)
    kind = shape.get("shape_type", "polygon")
    if kind == "rectangle" and points.shape == (2, 2):
        (x0, y0), (x1, y1) = points
        points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    elif kind not in ("polygon", "rectangle") or len(points) < 3:
        raise DatasetError(
            f"{where} is a {printable(kind)} of {len(points)} points; only polygons, rectangles "
            "and masks can be used"
        )
    return points.flatten().tolist()


def _labelme_mask(shape: dict, size: tuple[int, int], where: str) -> Rle:
    """Return a mask shape as run lengths of the whole image.

    LabelMe stores a mask as a PNG file of its box, in base64. The points are the first and the last
    pixel of the box.
    """
    from pycocotools import mask as mask_utils

    try:
        file = base64.b64decode(shape["mask"], validate=True)
    except ValueError as error:
        raise DatasetError(f"{where}: its mask is not in base64 ({error})") from error
    pixels = read_pixels(file, name=f"{where}, mask")
    left, top = (round(float(value)) for value in shape["points"][0])
    bottom, right = top + pixels.shape[0], left + pixels.shape[1]
    if pixels.ndim != 2 or min(left, top) < 0 or bottom > size[0] or right > size[1]:
        raise DatasetError(
            f"{where}: a mask of {pixels.shape} pixels at x {left}, y {top} does not fit into the "
            f"image of {size[1]} x {size[0]} pixels"
        )
    whole = np.zeros(size, np.uint8, order="F")
    whole[top:bottom, left:right] = pixels > 0
    return mask_utils.encode(whole)


# --- checks and splits ----------------------------------------------------------------------------


def _names(folder: Path, categories: list[dict]) -> Vocabulary:
    file = folder / "names.txt"
    if not file.is_file():
        kinds = ["thing" if category.get("isthing", 1) else "stuff" for category in categories]
        lines = [f'{k}: "{c["name"]}"\n' for k, c in zip(kinds, categories, strict=True)]
        write_text(file, "".join(lines))
    return Vocabulary.load(file)


def _note(names: Sequence[str], what: str) -> list[str]:
    found = list(dict.fromkeys(names))
    return [f"{len(found)} images {what}: {some(map(printable, found))}"] if found else []


def _unused(rows: Sequence[tuple[str, int, int]]) -> list[str]:
    names = [name for name, images, _ in rows if not images]
    return [f"{len(names)} classes without annotations: {some(map(printable, names))}"] * bool(
        names
    )


def _overlap_notes(images: dict, annotations: list[dict]) -> Iterator[str]:
    """Yield a note on images with instances that another instance covers."""
    from pycocotools import mask as mask_utils

    rles: dict[Any, list] = {}
    for one in annotations:
        if not one.get("iscrowd"):
            image = images[one["image_id"]]
            rle = to_rle(one["segmentation"], (image["height"], image["width"]))
            rles.setdefault(image["id"], []).append(rle)
    covered = []
    for image_id, masks in rles.items():
        # with iscrowd, the value is the covered part of the first mask
        part = mask_utils.iou(masks, masks, [1] * len(masks)) - np.eye(len(masks))
        if (part > OVERLAP).any():
            covered.append(images[image_id]["file_name"])
    yield from _note(covered, f"with objects of which more than {OVERLAP:.0%} lie below another")


def _split(paths: Sequence[Path], val_part: float) -> tuple[list[Path], list[Path], list[str]]:
    """Split images by content; return those for training and validation, and notes."""
    groups: dict[str, list[Path]] = {}
    for path in paths:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        groups.setdefault(digest, []).append(path)
    if len(groups) < 2:
        raise DatasetError(f"{len(groups)} different images: a split needs at least 2")
    wanted = min(max(1, round(val_part * len(groups))), len(groups) - 1)
    # evenly spaced, so that both splits contain all parts of a sorted folder
    chosen = set(np.linspace(0, len(groups) - 1, wanted).round().astype(int).tolist())
    parts: tuple[list[Path], list[Path]] = ([], [])
    for index, group in enumerate(groups.values()):
        parts[index in chosen].extend(group)
    doubles = [path.name for group in groups.values() for path in group[1:]]
    return *parts, _note(doubles, "that have the same content as another (kept in one split)")


def write_config(data: OwnData, base: str, path: Path, max_iters: int) -> None:
    """Write the config of a fine-tuning run.

    Args:
        data: The prepared folder.
        base: Path of the config to start from.
        path: File to write.
        max_iters: Number of iterations.
    """
    root = f"{os.path.relpath(data.folder)}/"
    ending = "txt" if data.kind == "semantic" else "json"
    prefix = dict(
        panoptic='dict(img="images/", seg="panoptic/")',
        instance='dict(img="images/")',
        semantic='dict(img_path="images/", seg_map_path="labels/")',
    )[data.kind]
    more = f', img_suffix="{data.suffix}"' if data.kind == "semantic" else ""
    metrics = dict(
        panoptic='[dict(type="PanopticQuality"), dict(type="InstanceAP"), '
        'dict(type="SemanticIoU")]',
        instance='[dict(type="InstanceAP", ann_file=data_root + "val.json")]',
        semantic='[dict(type="SemanticIoU")]',
    )[data.kind]
    model = 'model = dict(vocabulary=data_root + "names.txt")'
    if data.kind == "instance":
        model = (
            'model = dict(\n    vocabulary=data_root + "names.txt",\n'
            "    # Stuff is not annotated, so masks there are not trained to be nothing.\n"
            "    head=dict(train_cfg=dict(ignore_unlabeled=0.5)),\n)"
        )
    warm = max(1, max_iters // 10)
    write_text(
        path,
        f'''_base_ = ["{os.path.relpath(base, path.parent or ".")}"]
data_root = "{root}"
max_iters = {max_iters}
data = dict(
    _delete_=True,
    type="{data.kind.capitalize()}Dataset",
    vocabulary="names.txt",
    data_root=data_root,
    data_prefix={prefix}{more},
)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(ann_file="train.{ending}", pipeline=_base_.train_pipeline, **data),
)
val_dataloader = dict(
    dataset=dict(ann_file="val.{ending}", pipeline=_base_.test_pipeline, test_mode=True, **data)
)
test_dataloader = val_dataloader
val_evaluator = {metrics}
test_evaluator = val_evaluator
{model}
optim_wrapper = dict(optimizer=dict(lr=2e-5))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end={warm}),
    dict(type="CosineAnnealingLR", by_epoch=False, begin={warm}, end=max_iters, eta_min=0),
]
train_cfg = dict(max_iters=max_iters, val_interval={max(1, max_iters // 4)})
default_hooks = dict(
    checkpoint=dict(interval={max(1, max_iters // 4)}),
    logger=dict(interval={min(50, max(1, max_iters // 20))}),
)
''',
    )
