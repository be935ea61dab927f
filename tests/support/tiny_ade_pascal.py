"""Tiny copies of the providers' archives of ADE20K and Pascal, as they are after unpacking.

``write_raw_<set>(data)`` writes a tiny dataset below the folder ``data``, which replaces ``data/``,
and returns its ground truth. ``prepare(name, data)`` also runs the converter, for tests that need
the prepared dataset.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from odise_mm.vocabulary import Vocabulary

SIZES = ((40, 56), (48, 33), (31, 64))  # height, width


@dataclass
class Truth:
    """Ground truth of a tiny dataset, by name of the test image.

    Attributes:
        root: folder of the dataset.
        images: paths of the images.
        labels: maps (H, W) of the provider's class numbers.
        instances: maps (H, W) of object numbers, 0 for no object, if the provider has objects.
        names: names of the provider's class numbers, if the archive has a list.
    """

    root: Path
    images: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    instances: dict[str, np.ndarray] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)


def patches(rng: np.random.Generator, size: tuple[int, int], values: list[int]) -> np.ndarray:
    """Draw a map (H, W) of rectangles, in which every value occurs."""
    rows, columns = 4, max(3, -(-len(values) // 4))
    grid = np.resize(rng.permutation(values), (rows, columns))
    y = np.arange(size[0]) * rows // size[0]
    x = np.arange(size[1]) * columns // size[1]
    return grid[y[:, None], x[None, :]]


def write_image(path: Path, labels: np.ndarray, rng: np.random.Generator) -> None:
    """Write an image whose colors depend on the labels."""
    colors = rng.integers(0, 256, (int(labels.max()) + 1, 3))
    noise = rng.integers(-20, 20, (*labels.shape, 3))
    pixels = np.clip(colors[labels] + noise, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def write_map(path: Path, pixels: np.ndarray, palette: bool = False) -> None:
    """Write a PNG file, with a random palette if ``palette``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image = image.convert("P")
        image.putdata(pixels.reshape(-1).tolist())
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    image.save(path)


def ade20k_things() -> list[int]:
    """Return SceneParsing's indices, from 1, of the 100 instance classes in order."""
    flags = Vocabulary.load("ade20k").is_thing
    return [index for index, thing in enumerate(flags, start=1) if thing]


def write_raw_ade20k(data: Path) -> Truth:
    """Write SceneParsing and its instance annotations with 3 test and 2 training images.

    Objects of one class touch each other, and some pixels are unlabeled. The last patch of things
    has no instance. One object covers a pixel that is stuff in the semantic map.
    """
    rng = np.random.default_rng(1)
    truth = Truth(data / "ADEChallengeData2016")
    things = ade20k_things()
    stuff = [index for index in range(1, 151) if index not in things]
    for folder, prefix, sizes in (
        ("validation", "ADE_val", SIZES),
        ("training", "ADE_train", SIZES[:2]),
    ):
        for number, size in enumerate(sizes, start=1):
            name = f"{prefix}_{number:08d}"
            chosen = [int(v) for v in rng.choice(things, 3, replace=False)]
            grounds = [int(v) for v in rng.choice(stuff, 3, replace=False)]
            # Class by patch number. Patches 1 and 2 are two objects of one class.
            classes = np.array([0, chosen[0], chosen[0], *chosen[1:], *grounds])
            patch = patches(rng, size, list(range(8)))
            semantic = classes[patch]
            instance = np.where((patch > 0) & (patch < 4), patch, 0)  # patch 4 has no instance
            place = np.array([0, *[things.index(c) + 1 for c in classes[1:5]], 0, 0, 0])[patch]
            y, x = np.argwhere(patch == 6)[0]
            instance[y, x], place[y, x] = 3, things.index(int(classes[3])) + 1
            place[instance == 0] = 0
            write_image(truth.root / "images" / folder / f"{name}.jpg", semantic, rng)
            write_map(
                truth.root / "annotations" / folder / f"{name}.png", semantic.astype(np.uint8)
            )
            write_map(
                truth.root / "annotations_instance" / folder / f"{name}.png",
                np.stack([place, instance, 0 * place], axis=-1).astype(np.uint8),
            )
            if folder == "validation":
                truth.images[name] = truth.root / "images" / folder / f"{name}.jpg"
                truth.labels[name], truth.instances[name] = semantic, instance
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    names = Vocabulary.load("ade20k").source_names
    lines += [f"{i}\t0.1\t1\t1\t{int(i in stuff)}\t{n}" for i, n in enumerate(names, start=1)]
    (truth.root / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    (truth.root / "sceneCategories.txt").write_text(
        "".join(f"{name} street\n" for name in truth.images)
    )
    return truth


# Names of the tiny full release by their number, from 1.
ADE_FULL = {
    1: "wall", 2: "building, edifice", 3: "sky", 5: "floor, flooring", 300: "car, auto",
    301: "wheel", 600: "person, someone", 999: "sidewalk, pavement", 1200: "rock, stone",
}  # fmt: skip
ADE_FULL_NAMES = 1300


def write_raw_ade847(data: Path) -> Truth:
    """Write the full release with 3 test and 2 training images in folders by scene.

    "wheel" occurs only as a part of objects, "sky" only in training images, "rock, stone" only in
    test images, and "floor, flooring" nowhere. So the classes are 1, 2, 300, 600 and 999.
    """
    rng = np.random.default_rng(2)
    truth = Truth(data / "ADE20K_2021_17_01", names=dict(ADE_FULL))
    names = [ADE_FULL.get(number, f"thing number {number}") for number in range(1, 1301)]
    numbers = {
        "training": ([0, 1, 2, 3, 300], [1, 600, 999]),
        "validation": ([0, 1, 2, 1200], [1, 300, 600, 999], [1, 2, 600]),
    }
    folders, files, present = [], [], []
    for folder, values_of_images in numbers.items():
        for index, values in enumerate(values_of_images):
            name = f"ADE_{'train' if folder == 'training' else 'val'}_{index + 1:08d}"
            below = f"images/ADE/{folder}/urban/street_{index}"
            place = truth.root / below
            labels = patches(rng, SIZES[index], values)
            write_image(place / f"{name}.jpg", labels, rng)
            coded = np.stack([labels // 256 * 10, labels % 256, labels % 7], axis=-1)
            write_map(place / f"{name}_seg.png", coded.astype(np.uint8))
            objects = [dict(name_ndx=v, name=names[v - 1]) for v in values if v]
            text = json.dumps(dict(annotation=dict(filename=f"{name}.jpg", object=objects)))
            (place / f"{name}.json").write_text(text)
            write_map(place / name / f"instance_000_{name}.png", (labels > 0).astype(np.uint8))
            folders.append(f"ADE20K_2021_17_01/{below}")
            files.append(f"{name}.jpg")
            present.append(values)
            if folder == "validation":
                truth.images[name], truth.labels[name] = place / f"{name}.jpg", labels
    presence = np.zeros((ADE_FULL_NAMES, len(files)))
    is_part = np.zeros_like(presence)
    for column, values in enumerate(present):
        presence[[v - 1 for v in values if v], column] = 2
        presence[300, column] = is_part[300, column] = 4  # wheels
    index = dict(
        filename=files,
        folder=folders,
        scene=["/street"] * len(files),
        objectnames=names,
        objectcounts=presence.sum(axis=1),
        objectPresence=presence,
        objectIsPart=is_part,
    )
    (truth.root / "index_ade20k.pkl").write_bytes(pickle.dumps(index, protocol=4))
    return truth


def write_raw_pascal_context(data: Path) -> Truth:
    """Write VOC2010 and Pascal Context with 3 test images and 1 training image.

    Another image has no .mat file. The 59 names have random numbers among the 459, and one name is
    spelled differently.
    """
    rng = np.random.default_rng(3)
    truth = Truth(data / "VOCdevkit" / "VOC2010")
    known = [
        "potted plant" if name == "pottedplant" else name
        for name in Vocabulary.load("pascal_context59").source_names
    ]
    places = rng.choice(np.arange(1, 460), 59, replace=False)
    truth.names = {number: f"odd thing {number}" for number in range(1, 460)}
    truth.names.update({int(p): name for p, name in zip(places, known, strict=True)})
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for index in range(5):
        name, size = f"2008_{index:06d}", SIZES[index % 3]
        values = [0, 459, *[int(v) for v in rng.choice(places, 4)], int(rng.integers(1, 460))]
        labels = patches(rng, size, values)
        lists["train" if index == 3 else "val"].append(name)
        write_image(truth.root / "JPEGImages" / f"{name}.jpg", labels, rng)
        if index == 4:
            continue
        (truth.root / "trainval").mkdir(exist_ok=True)
        mat = dict(LabelMap=labels.astype(np.uint16))
        path = truth.root / "trainval" / f"{name}.mat"
        savemat(path, mat, do_compression=True)
        # The header's text contains the time, but equal data must give equal files.
        path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(116) + path.read_bytes()[116:])
        if index < 3:
            truth.images[name] = truth.root / "JPEGImages" / f"{name}.jpg"
            truth.labels[name] = labels
    for split, names in lists.items():
        listed = truth.root / "ImageSets" / "Main" / f"{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(f"{name}\n" for name in names))
    (truth.root / "labels.txt").write_text(
        "".join(f"{number}: {name}\n" for number, name in truth.names.items())
    )
    (truth.root / "59_labels.txt").write_text(
        "".join(f"{number}: {name}\n" for number, name in enumerate(known, start=1))
    )
    return truth


def write_raw_voc(data: Path) -> Truth:
    """Write VOC2012 with 3 test images and 1 training image; PNG files have a palette and 255."""
    rng = np.random.default_rng(4)
    truth = Truth(data / "VOCdevkit" / "VOC2012")
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for index in range(4):
        name, size = f"2007_{index:06d}", SIZES[index % 3]
        values = [0, *[int(v) for v in rng.choice(np.arange(1, 21), 3, replace=False)], 255]
        labels = patches(rng, size, values)
        lists["train" if index == 3 else "val"].append(name)
        write_image(truth.root / "JPEGImages" / f"{name}.jpg", labels, rng)
        png = truth.root / "SegmentationClass" / f"{name}.png"
        write_map(png, labels.astype(np.uint8), palette=True)
        if index < 3:
            truth.images[name] = truth.root / "JPEGImages" / f"{name}.jpg"
            truth.labels[name] = labels
    for split, names in lists.items():
        listed = truth.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(f"{name}\n" for name in names))
    return truth


def prepare(name: str, data: Path) -> Truth:
    """Write a raw tiny dataset, run its converter, and return the ground truth.

    Args:
        name: name of the dataset: ade20k, ade847, pc59, pc459, voc20 or voc21.
        data: folder that replaces ``data/``.
    """
    from odise_mm.converters import ade20k, ade20k_full, pascal_context, voc

    made: dict[str, tuple[Callable[[Path], Truth], Callable]] = {
        "ade20k": (write_raw_ade20k, ade20k.main),
        "ade847": (write_raw_ade847, ade20k_full.main),
        "pc59": (write_raw_pascal_context, pascal_context.main),
        "pc459": (write_raw_pascal_context, pascal_context.main),
        "voc20": (write_raw_voc, voc.main),
        "voc21": (write_raw_voc, voc.main),
    }
    write, convert = made[name]
    truth = write(data)
    convert([str(truth.root), "--workers", "1"])
    return truth
