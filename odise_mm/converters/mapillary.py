"""Prepare Mapillary Vistas 1.2: panoptic annotations of the 65 evaluated classes.

Unpack the research edition of 2017 (config.json, training/, validation/) or the edition with both
versions (config_v1.2.json, training/v1.2/, ...) in DATA_ROOT. For every split (training has 18,000
images, validation 2,000), the converter writes there:

    annotations/panoptic_SPLIT.json, annotations/panoptic_SPLIT/*.png

The input is panoptic/panoptic_2018.json with its PNG files or, in editions without them,
instances/*.png (class = number // 256, instance = number % 256). The classes are those marked
"evaluate" in the provider's config, under their readable names. Everything else is void. Segment
ids count from 1 in every image, because the provider may use the id 0, which means void here.

Example:
    python tools/dataset_converters/mapillary.py data/mapillary --splits validation
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from odise_mm.annotations.json_fields import FLAG, ID, TEXT, WHOLE, fault, shown, twin
from odise_mm.annotations.label_maps import read_label_map
from odise_mm.annotations.panoptic_io import ids_to_rgb, read_panoptic_png
from odise_mm.converters.claims import claim
from odise_mm.converters.files import need_folder, read_json, rows_of, write_png
from odise_mm.converters.program import Row, alone_in, converter_parser, program, show_written
from odise_mm.converters.verification import same_size, verify_panoptic
from odise_mm.converters.work import Item, convert_all, finish, is_complete
from odise_mm.errors import DatasetError
from odise_mm.utils.display import printable
from odise_mm.utils.files import path_inside

UNPACK = "unpack the archive of Mapillary Vistas"
NUM_IMAGES = {"training": 18000, "validation": 2000}  # of the complete dataset
INSTANCES_PER_LABEL = 256


class Label(NamedTuple):
    """Class in the provider's config; ``index`` is None unless the class is evaluated."""

    name: str
    long_name: str
    is_thing: bool
    index: int | None


class Segment(NamedTuple):
    """Segment of the provider: its id, the index of its class in the config, and crowd flag."""

    id: int
    label: int
    is_crowd: bool


class Layout(NamedTuple):
    """Locations of an edition's files."""

    config: Path
    images: Path
    annotations: Path  # contains labels/, instances/ and, in some editions, panoptic/


def find_layout(root: Path, split: str) -> Layout:
    """Find the files of a split in either edition.

    Raises:
        DatasetError: A folder or the config is missing.
    """
    images = need_folder(root / split / "images", UNPACK)
    both = root / split / "v1.2"
    config = next(
        (p for p in (root / "config_v1.2.json", root / "config.json") if p.exists()), None
    )
    if config is None:
        raise DatasetError(f"{root}: contains neither config.json nor config_v1.2.json; {UNPACK}")
    layout = Layout(config, images, both if both.is_dir() else root / split)
    need_folder(layout.annotations / "labels", UNPACK)
    return layout


def read_config(path: Path) -> list[Label]:
    """Return all classes, indexed by their numbers in the label maps.

    Raises:
        DatasetError: The evaluated classes are not those of version 1.2.
    """
    kinds = dict(readable=TEXT, name=TEXT, evaluate=FLAG, instances=FLAG)
    labels, count = [], 0
    for raw in rows_of(read_json(path), "labels", path, **kinds):
        evaluated = bool(raw["evaluate"])
        index = count if evaluated else None
        labels.append(Label(raw["readable"], raw["name"], bool(raw["instances"]), index))
        count += evaluated
    from odise_mm.vocabulary import Vocabulary  # slow import

    vocabulary = Vocabulary.load("mapillary")
    wanted = list(zip(vocabulary.source_names, vocabulary.is_thing, strict=True))
    found = [(label.name, label.is_thing) for label in labels if label.index is not None]
    if found != wanted:
        pairs = enumerate(zip(found, wanted, strict=False))
        place = next((i for i, (a, b) in pairs if a != b), min(len(found), len(wanted)))
        actual = str(found[place]) if place < len(found) else "missing"
        raise DatasetError(
            f"{path}: {len(found)} evaluated classes, but version 1.2 has {len(wanted)}; the first "
            f"difference is class {place}, which is {actual} (name, thing); check the version"
        )
    return labels


def prepare(root: Path, split: str, workers: int) -> None:
    """Write the annotation files of one split.

    Raises:
        DatasetError: A file is missing or invalid; the message names the first one.
    """
    layout = find_layout(root, split)
    labels = read_config(layout.config)
    images = _images(layout)
    out = root / "annotations" / f"panoptic_{split}"
    if (layout.annotations / "panoptic").is_dir():
        sources = _provided_panoptic(layout, labels, images)
    else:
        folder = need_folder(layout.annotations / "instances", UNPACK)
        sources = [(folder / f"{image.stem}.png", None) for image in images]
    items = []
    for image, (source, segments) in zip(images, sources, strict=True):
        maps = layout.annotations / "labels" / f"{image.stem}.png"
        data = (image, maps, segments, labels)
        items.append(Item(source, out / f"{image.stem}.png", data=data))
    if all(map(is_complete, [out.with_suffix(".json"), *(item.output for item in items)])):
        return
    journal = out.with_name(f".{out.name}.journal")
    claim(root, [out.with_suffix(".json"), out], [journal])
    facts = convert_all(items, _convert, f"mapillary {split}", workers, journal=journal)
    entries, annotations = [], []
    for number, (image, fact) in enumerate(zip(images, facts, strict=True), start=1):
        size = dict(height=fact["height"], width=fact["width"])
        entries.append(dict(id=number, file_name=image.name, **size))
        annotations.append(
            dict(image_id=number, file_name=f"{image.stem}.png", segments_info=fact["segments"])
        )
    categories = [
        dict(id=label.index + 1, name=label.name, isthing=int(label.is_thing))
        for label in labels
        if label.index is not None
    ]
    content = dict(images=entries, annotations=annotations, categories=categories)
    finish(out.with_suffix(".json"), content, journal)


def _images(layout: Layout) -> list[Path]:
    images = sorted(layout.images.glob("*.jpg"))
    if not images:
        raise DatasetError(f"{layout.images}: contains no *.jpg; {UNPACK} again")
    return images


def _provided_panoptic(
    layout: Layout, labels: list[Label], images: list[Path]
) -> list[tuple[Path, list[Segment]]]:
    """Return the provider's PNG file and segments of every image."""
    folder = layout.annotations / "panoptic"
    path = folder / "panoptic_2018.json"
    content = read_json(path)
    class_of = {}
    for place, label in enumerate(labels):
        class_of[label.name] = class_of[label.long_name] = place
    class_of_category = {}
    for category in rows_of(content, "categories", path, id=ID, name=TEXT):
        if category["name"] not in class_of:
            raise DatasetError(
                f"{path}: category '{printable(category['name'])}' is not in {layout.config.name}"
            )
        class_of_category[category["id"]] = class_of[category["name"]]
    found = {}
    kinds = dict(file_name=TEXT, segments_info="a list")
    for annotation in rows_of(content, "annotations", path, **kinds):
        png = path_inside(folder, annotation["file_name"], DatasetError, str(path))
        where = f"{path}: {printable(annotation['file_name'])}"
        segments = []
        for info in rows_of(annotation, "segments_info", where, id=WHOLE, category_id=ID):
            problem = fault(info, "iscrowd", FLAG, required=False)
            if info["category_id"] not in class_of_category:
                hint = twin(info["category_id"], class_of_category)
                problem = (
                    f"has category {shown(info['category_id'])}, which 'categories' does not "
                    f"list{hint}"
                )
            if problem:
                raise DatasetError(f"{where} {problem}")
            place = class_of_category[info["category_id"]]
            segments.append(Segment(info["id"], place, bool(info.get("iscrowd", 0))))
        if png.stem in found:
            raise DatasetError(f"{where} is annotated twice")
        found[png.stem] = (png, segments)
    for image in images:
        if image.stem not in found:
            raise DatasetError(f"{path}: has no annotation for {image}")
    return [found[image.stem] for image in images]


def _convert(item: Item) -> dict:
    """Write the panoptic map of one image; return its size and segments."""
    image, labels_path, segments, labels = item.data
    ids = read_label_map(item.source) if segments is None else read_panoptic_png(item.source)
    same_size(ids, item.source, image)
    drawn, places = np.unique(ids, return_inverse=True)  # a single pass, as the images are large
    if segments is None:
        segments = [_of_number(number, item, labels) for number in drawn.tolist()]
    else:
        _check_ids(ids, set(drawn.tolist()), item)
    infos, stuff = [], {}
    new_ids = np.zeros(len(drawn), np.int32)
    for segment in sorted(segments):
        label = labels[segment.label]
        if label.index is None:
            continue
        info = None if label.is_thing else stuff.get(label.index)
        if info is None:
            crowd = int(segment.is_crowd and label.is_thing)
            info = dict(id=len(infos) + 1, category_id=label.index + 1, iscrowd=crowd)
            infos.append(info)
            if not label.is_thing:
                stuff[label.index] = info
        new_ids[np.searchsorted(drawn, segment.id)] = info["id"]
    result = new_ids[places].reshape(ids.shape)
    areas = np.bincount(result.ravel())
    for info, (y, x) in zip(infos, ndimage.find_objects(result), strict=True):
        box = [x.start, y.start, x.stop - x.start, y.stop - y.start]
        info |= dict(area=int(areas[info["id"]]), bbox=box)
    write_png(item.output, ids_to_rgb(result))
    return dict(height=ids.shape[0], width=ids.shape[1], segments=infos)


def _of_number(number: int, item: Item, labels: list[Label]) -> Segment:
    """Return the segment of a number in instances/*.png."""
    place = number // INSTANCES_PER_LABEL
    if place >= len(labels):
        raise DatasetError(
            f"{item.source}: number {number} has class {place}, but the config has only "
            f"{len(labels)} classes"
        )
    return Segment(number, place, False)


def _check_ids(ids: np.ndarray, drawn: set[int], item: Item) -> None:
    """Check that the PNG and the JSON have the same ids, except in pixels without evaluation."""
    _, labels_path, segments, labels = item.data
    listed = {segment.id for segment in segments}
    if len(listed) < len(segments):
        raise DatasetError(f"{item.source}: panoptic_2018.json lists two segments with the same id")
    if listed - drawn:
        raise DatasetError(
            f"{item.source}: has no pixels of segment {min(listed - drawn)}, which "
            "panoptic_2018.json lists"
        )
    extra = sorted(drawn - listed)
    if not extra:
        return
    maps = read_label_map(labels_path)
    same_size(maps, labels_path, item.source)
    void = [place for place, label in enumerate(labels) if label.index is None]
    for number in extra:
        if not np.isin(maps[ids == number], void).all():
            raise DatasetError(
                f"{item.source}: segment {number} is not in panoptic_2018.json, and "
                f"labels/{labels_path.name} has an evaluated class there"
            )


def verify(root: Path, split: str, workers: int) -> list[Row]:
    """Check that the annotation files of one split are consistent and match the images.

    Raises:
        DatasetError: A file is missing or invalid; the message names the first one.
    """
    layout = find_layout(root, split)
    images = _images(layout)
    path = root / "annotations" / f"panoptic_{split}.json"
    found = verify_panoptic(path, path.with_suffix(""), layout.images, workers=workers)
    names = [category["name"] for category in read_json(path)["categories"]]
    labels = [label for label in read_config(layout.config) if label.index is not None]
    if names != [label.name for label in labels]:
        raise DatasetError(
            f"{path}: its categories are not those of {layout.config}; remove it and run this "
            "program again"
        )
    if found.images != len(images):
        raise DatasetError(
            f"{path}: {found.images} images, but {layout.images} has {len(images)}; remove it "
            "and run this program again"
        )
    return [
        Row(path, "images", found.images, NUM_IMAGES[split]),
        Row(path, "segments", found.segments),
        Row(path, "classes present", found.classes),
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    parser = converter_parser(__doc__, "data/mapillary", list(NUM_IMAGES), "validation")
    args = parser.parse_args(argv)
    with program(), alone_in(args.data_root, args.verify_only):
        rows = []
        for split in args.splits:
            if not args.verify_only:
                prepare(args.data_root, split, args.workers)
            rows += verify(args.data_root, split, args.workers)
        show_written("Mapillary Vistas 1.2", rows)
    return 0
